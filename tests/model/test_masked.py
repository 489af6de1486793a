"""Hidden tokens: how many, which, by what; logits of those alone; the saved directory."""

import numpy as np
import pytest
import torch
from tests.model.architectures import tiny
from transformers import AutoModel, AutoModelForMaskedLM

from whet.errors import ModelError
from whet.model.masked import hide, load_masked, only_at, save_masked
from whet.model.tiny import byte_tokenizer
from whet.paths import Paths

TOKENIZER = byte_tokenizer()


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


def texts(rows=200, length=40):
    """[rows, length] a CLS, bytes, a SEP, padding."""
    rng = np.random.default_rng(0)
    ids = np.zeros((rows, length), dtype=np.int64)
    for row in ids:
        size = rng.integers(1, length - 2)
        row[0], row[1 : size + 1], row[size + 1] = 1, rng.integers(5, 261, size), 2
    return torch.from_numpy(ids)


def test_tokens_are_hidden_as_in_the_paper():
    ids = texts()
    ordinary = (ids > 4).sum(1)
    counts = torch.maximum((0.3 * ordinary).round(), torch.ones(1)).long()
    hidden, chosen = hide(ids, counts, TOKENIZER, torch.Generator().manual_seed(0))
    assert torch.equal(chosen.sum(1), counts)
    assert not chosen[ids <= 4].any()
    assert torch.equal(hidden[~chosen], ids[~chosen])
    masked = (hidden[chosen] == TOKENIZER.mask_token_id).double().mean()
    kept = (hidden[chosen] == ids[chosen]).double().mean()
    assert masked.item() == pytest.approx(0.8, abs=0.04) and kept.item() == pytest.approx(0.1, abs=0.03)


def test_every_token_has_the_same_chance():
    ids = torch.arange(5, 25).repeat(3000, 1)
    _, chosen = hide(ids, torch.full((3000,), 3), TOKENIZER, torch.Generator().manual_seed(1))
    assert chosen.double().mean(0).numpy() == pytest.approx(np.full(20, 3 / 20), abs=0.03)


def test_the_generator_decides():
    ids, counts = texts(), torch.ones(200, dtype=torch.int64)
    one, same, other = (hide(ids, counts, TOKENIZER, torch.Generator().manual_seed(s))[0] for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "distilbert", "electra", "modernbert", "deberta-v2"]
)
def test_logits_of_the_chosen_alone(architecture, paths, tmp_path):
    """They are those of the whole pass; what is saved serves as weights, trunk unchanged."""
    encoder = tiny(architecture)
    loaded = load_masked(encoder, paths)
    assert loaded.new, "tiny weights have no such head"
    model = loaded.model.eval()
    ids = texts(6, 12)
    mask, chosen = (ids > 0).long(), torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask).logits
        with only_at(model, chosen):
            few = model(input_ids=ids, attention_mask=mask).logits
    assert few.shape == (int(chosen.sum()), whole.shape[-1])
    torch.testing.assert_close(few, whole[chosen])
    save_masked(model, loaded, tmp_path / "model")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(again(input_ids=ids, attention_mask=mask).logits, whole)
    trunk, before = (AutoModel.from_pretrained(p) for p in (tmp_path / "model", loaded.located.folder))
    for name, tensor in before.state_dict().items():
        assert torch.equal(trunk.state_dict()[name], tensor), name


def test_dropout_is_the_encoders(paths):
    for rate in (0.0, 0.3):
        model = load_masked(tiny("bert", dropout=rate), paths).model
        assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {rate}
    with pytest.raises(ModelError, match="model.head_dropout=0.2: there is no dropout above the trunk"):
        load_masked(tiny("bert", head_dropout=0.2), paths)


def test_what_can_not_guess(paths):
    with pytest.raises(ModelError, match="model.weights"):
        load_masked(tiny("gpt2"), paths)
