"""Loading with a head: settings that take effect, and errors that say what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.architectures import ARCHITECTURES, HEAD, TRUTHS, batch_of, logits_of, tiny
from torch import nn
from transformers import AutoModelForSequenceClassification

from whet.errors import ModelError
from whet.model.encoder import ALIGNMENT, Encoder, load_tokenizer
from whet.model.layers import trunk_prefix
from whet.model.tiny import TinyWeights
from whet.model.weights import LocalWeights
from whet.paths import Paths
from whet.task.base import Head


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


def rates(model):
    """Rate of every dropout: (trunk's, head's), by module name."""
    found = {name: part.p for name, part in model.named_modules() if isinstance(part, nn.Dropout)}
    head = {name for name in found if not name.startswith(trunk_prefix(model))}
    return {n: p for n, p in found.items() if n not in head}, {n: found[n] for n in head}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_of_the_trunk(architecture, paths):
    _, own_head = rates(tiny(architecture).load(HEAD, paths).model)
    trunk, head = rates(tiny(architecture, dropout=0.37).load(HEAD, paths).model)
    assert head == own_head, "the head keeps its own rate"
    assert set(trunk.values()) <= {0.37}
    assert bool(trunk) or architecture == "bart", "BART's are functional: the next test is for them"
    assert rates(tiny(architecture, dropout=0.0).load(HEAD, paths).model)[1] == own_head


def test_where_weights_lie_in_their_file_does_not_matter(paths, tmp_path):
    """A file whose tensors begin anywhere gives a model whose tensors begin where torch's do."""
    source = TinyWeights().locate(paths).folder
    logits, begins = [], set()
    for name, note in (("one", "x"), ("two", "x" * 9), ("three", "x" * 17)):
        folder = shutil.copytree(source, tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        save_file(weights, folder / "model.safetensors", {"format": "pt", "note": note})
        begins |= {
            tensor.data_ptr() % ALIGNMENT for tensor in load_file(folder / "model.safetensors").values()
        }
        torch.manual_seed(1)
        loaded = Encoder(name=name, weights=LocalWeights(path=str(folder))).load(HEAD, paths)
        model = loaded.model
        assert {t.data_ptr() % ALIGNMENT for t in (*model.parameters(), *model.buffers())} == {0}
        assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items() if n in weights)
        logits.append(logits_of(model, batch_of(loaded.tokenizer)))
    assert begins != {0}, "these files are no test"
    assert all(torch.equal(each, logits[0]) for each in logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropouts_are_all_that_is_random(architecture, paths):
    """At rate zero training says what evaluation says: no dropout was missed; above it doesn't."""
    settings = {"head_dropout": 0.0} if TRUTHS[architecture].head_dropout else {}
    for rate in (0.0, 0.5):
        loaded = tiny(architecture, dropout=rate, **settings).load(HEAD, paths)
        batch = batch_of(loaded.tokenizer)
        calm = logits_of(loaded.model, batch)
        with torch.no_grad():
            said = loaded.model.train()(**batch.inputs).logits
        assert torch.allclose(said, calm, atol=1e-6) == (rate == 0.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_of_the_head(architecture, paths):
    own_trunk, own_head = rates(tiny(architecture).load(HEAD, paths).model)
    if not TRUTHS[architecture].head_dropout:
        with pytest.raises(ModelError, match=r"model\.head_dropout=0\.41: the head of gpt2 has no dropout"):
            tiny(architecture, head_dropout=0.41).load(HEAD, paths)
        return
    trunk, head = rates(tiny(architecture, head_dropout=0.41).load(HEAD, paths).model)
    assert trunk == own_trunk
    assert set(head) == set(own_head) and set(head.values()) == {0.41}
    trunk, head = rates(tiny(architecture, dropout=0.2, head_dropout=0.3).load(HEAD, paths).model)
    assert set(trunk.values()) <= {0.2} and set(head.values()) == {0.3}


@pytest.mark.parametrize("setting", ["dropout", "head_dropout"])
def test_dropout_changes_what_is_said_in_training_and_no_weights(setting, paths):
    torch.manual_seed(1)
    plain = tiny("bert", dropout=0.0, head_dropout=0.0).load(HEAD, paths)
    torch.manual_seed(1)
    noisy = tiny("bert", **{"dropout": 0.0, "head_dropout": 0.0, setting: 0.5}).load(HEAD, paths)
    batch = batch_of(plain.tokenizer)
    assert torch.equal(logits_of(plain.model, batch), logits_of(noisy.model, batch)), (
        "the same head was drawn"
    )
    say = [loaded.model.train()(**batch.inputs).logits for loaded in (plain, noisy)]
    assert not torch.equal(*say)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention(architecture, paths):
    torch.manual_seed(1)
    eager = tiny(architecture, attention="eager").load(HEAD, paths)
    assert eager.model.config._attn_implementation == "eager"
    if not TRUTHS[architecture].sdpa:
        with pytest.raises(ModelError, match=rf"model\.attention=sdpa: {architecture} hasn't got it"):
            tiny(architecture, attention="sdpa").load(HEAD, paths)
        return
    torch.manual_seed(1)
    sdpa = tiny(architecture, attention="sdpa").load(HEAD, paths)
    assert sdpa.model.config._attn_implementation == "sdpa"
    batch = batch_of(eager.tokenizer)
    torch.testing.assert_close(
        logits_of(sdpa.model, batch), logits_of(eager.model, batch), atol=1e-5, rtol=1e-4
    )


@pytest.fixture
def three_classes(paths, tmp_path):
    """Weights that bring a head of three classes."""
    made = TinyWeights().locate(paths).folder
    AutoModelForSequenceClassification.from_pretrained(made, num_labels=3).save_pretrained(tmp_path / "three")
    load_tokenizer(made).save_pretrained(tmp_path / "three")
    return tmp_path / "three"


def local(folder, **settings):
    return Encoder(name="x", weights=LocalWeights(path=str(folder)), **settings)


TWO = Head(2, "single_label_classification", ("no", "yes"))


def test_a_head_that_fits_is_kept(three_classes, paths):
    loaded = local(three_classes).load(HEAD, paths)
    assert loaded.new == frozenset()
    assert torch.equal(
        loaded.model.classifier.weight, load_file(three_classes / "model.safetensors")["classifier.weight"]
    )


def test_a_head_of_another_size_is_replaced_only_on_demand(three_classes, paths):
    with pytest.raises(
        ModelError, match=r"classifier\.weight.*needs 2 outputs: set model\.replace_head=true"
    ):
        local(three_classes).load(TWO, paths)
    loaded = local(three_classes, replace_head=True).load(TWO, paths)
    assert loaded.new == {"classifier.weight", "classifier.bias"}
    assert loaded.model.classifier.weight.shape == (2, 32)
    saved = load_file(three_classes / "model.safetensors")
    assert all(torch.equal(t, saved[n]) for n, t in loaded.model.named_parameters() if n not in loaded.new)


def test_the_config_knows_the_task(paths):
    config = tiny("bert").load(TWO, paths).model.config
    assert (config.num_labels, config.problem_type) == (2, "single_label_classification")
    assert config.id2label == {0: "no", 1: "yes"} and config.label2id == {"no": 0, "yes": 1}
    config = tiny("bert").load(Head(1, "regression", ()), paths).model.config
    assert (config.num_labels, config.problem_type) == (1, "regression")


def test_only_the_seed_decides_the_new_head(paths):
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(tiny("bert").load(HEAD, paths).model.classifier.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_sizes_that_contradict_the_config(three_classes, paths):
    settings = json.loads((three_classes / "config.json").read_text())
    (three_classes / "config.json").write_text(json.dumps({**settings, "vocab_size": 300}))
    with pytest.raises(
        ModelError, match=r"sizes aren't those of config\.json \(bert\.embeddings\.word_embeddings"
    ):
        local(three_classes, replace_head=True).load(HEAD, paths)


def test_weights_of_something_else(three_classes, paths):
    tensors = load_file(three_classes / "model.safetensors")
    save_file(
        {f"student.{name}": t for name, t in tensors.items()},
        three_classes / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match="they hold no block of BertForSequenceClassification"):
        local(three_classes).load(HEAD, paths)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", b"{", "can't read its config"),
        ("config.json", b'{"model_type": "brt"}', "can't read its config"),
        ("config.json", b'{"model_type": "vit"}', "Unrecognized configuration class"),
        ("tokenizer.json", None, "tokenizer"),
        ("model.safetensors", b"nothing", "model.weights"),
    ],
)
def test_unreadable_folders_are_one_line(name, content, problem, three_classes, paths):
    if content is None:
        (three_classes / name).unlink()
    else:
        (three_classes / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        local(three_classes).load(HEAD, paths)
    text = str(caught.value)
    assert text.startswith("model.weights") and problem in text and "\n" not in text


def test_keys_of_the_weights_are_completed(paths):
    with pytest.raises(ModelError) as caught:
        Encoder(name="x", weights=LocalWeights(path="/nowhere")).load(HEAD, paths)
    assert caught.value.key == "model.weights.path"


def test_a_tokenizer_without_padding_pads_with_its_end(paths, tmp_path):
    folder = tmp_path / "gpt2"
    shutil.copytree(TinyWeights(architecture="gpt2").locate(paths).folder, folder)
    for name, absent in (("tokenizer_config.json", "pad_token"), ("config.json", "pad_token_id")):
        settings = json.loads((folder / name).read_text())
        settings.pop(absent)
        (folder / name).write_text(json.dumps(settings))
    loaded = local(folder).load(HEAD, paths)
    assert loaded.tokenizer.pad_token == "[SEP]" and loaded.model.config.pad_token_id == 2
    assert logits_of(loaded.model, batch_of(loaded.tokenizer)).shape == (6, 3)


def test_the_tokenizer_alone(paths):
    tokenizer, located = tiny("bert").tokenizer(paths)
    assert tokenizer("a")["input_ids"] == load_tokenizer(located.folder)("a")["input_ids"]
    assert located == tiny("bert").locate(paths)
