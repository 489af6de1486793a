"""Tiny weights: any architecture by name, the same for the same seed, small."""

import pytest
import torch
from safetensors.torch import load_file
from tests.model.architectures import ARCHITECTURES, HEAD, batch_of, logits_of

from whet.errors import ModelError
from whet.model.encoder import Encoder
from whet.model.tiny import TinyWeights, byte_tokenizer
from whet.paths import Paths


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


READ_TYPES = {"bert", "roberta", "albert", "electra", "xlm-roberta", "funnel", "camembert", "xlnet"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_works_by_its_name_alone(architecture, paths):
    loaded = Encoder(name="x", weights=TinyWeights(architecture=architecture)).load(HEAD, paths)
    assert loaded.model.config.model_type == architecture
    assert 20_000 < sum(tensor.numel() for tensor in loaded.model.parameters()) < 100_000
    assert ("token_type_ids" in loaded.tokenizer.model_input_names) == (architecture in READ_TYPES)
    plain = loaded.tokenizer("az", "é")
    alone = {token: number for token, number in loaded.tokenizer.get_vocab().items() if token in ("a", "z")}
    assert plain["input_ids"][:4] == [1, alone["a"], alone["z"], 2] and len(plain["input_ids"]) == 7
    batch = batch_of(loaded.tokenizer)
    assert logits_of(loaded.model, batch).shape == (6, 3)
    assert loaded.located.id == f"tiny {architecture}" and len(loaded.located.sha256) == 64


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_no_logits(architecture, paths):
    """A mask that is ignored, or a padding id that isn't the model's, would show here."""
    loaded = Encoder(name="x", weights=TinyWeights(architecture=architecture)).load(HEAD, paths)
    batch = batch_of(loaded.tokenizer)
    together = logits_of(loaded.model, batch)
    for row, mask in enumerate(batch.inputs["attention_mask"].bool()):
        alone = {name: values[row : row + 1, mask] for name, values in batch.inputs.items()}
        with torch.no_grad():
            logits = loaded.model(**alone).logits
        torch.testing.assert_close(logits, together[row : row + 1], atol=1e-5, rtol=1e-4)


def test_the_seed_decides_and_nothing_else(paths, tmp_path):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = TinyWeights(seed=4).locate(paths)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    torch.manual_seed(17)
    elsewhere = TinyWeights(seed=4).locate(Paths(cache=str(tmp_path)))
    assert elsewhere.folder != first.folder and elsewhere.sha256 == first.sha256
    assert TinyWeights(seed=4).locate(paths) == first
    assert TinyWeights(seed=5).locate(paths).sha256 != first.sha256


def test_options_reach_the_config(paths):
    folder = TinyWeights(options={"num_hidden_layers": 3, "hidden_size": 16}).locate(paths).folder
    tensors = load_file(folder / "model.safetensors")
    assert len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}) == 3
    assert tensors["embeddings.word_embeddings.weight"].shape == (261, 16)
    named = TinyWeights(architecture="distilbert", options={"num_hidden_layers": 1}).locate(paths).folder
    assert not any(".layer.1." in name for name in load_file(named / "model.safetensors"))


@pytest.mark.parametrize(
    ("settings", "key", "problem"),
    [
        ({"architecture": "brt"}, "architecture", "did you mean bert?"),
        ({"options": {"hiden_size": 8}}, "options.hiden_size", "did you mean hidden_size?"),
        ({"options": {"hidden_size": "wide"}}, "options", "hidden_size"),
        ({"options": {"hidden_size": 31}}, "options", "multiple of the number of attention heads"),
        (
            {"architecture": "xlnet", "options": {"max_position_embeddings": 8}},
            "options.max_position_embeddings",
            "none",
        ),
    ],
)
def test_impossible_settings(settings, key, problem, tmp_path):
    with pytest.raises(ModelError) as caught:
        TinyWeights(**settings).locate(Paths(cache=str(tmp_path)))
    assert caught.value.key == key and problem in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "tiny").iterdir()), "nothing half made is left"


def test_a_second_process_may_be_first(tmp_path, monkeypatch):
    paths = Paths(cache=str(tmp_path))
    first = TinyWeights().locate(paths)
    weights = TinyWeights()
    weights._make(first.folder)
    assert weights.locate(paths) == first
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == [first.folder.name]


def test_bytes_go_there_and_back():
    tokenizer = byte_tokenizer()
    text = "naïve ☃ 你好\t\x00!"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) + 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids
