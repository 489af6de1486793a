"""What is saved is what was trained, and comes back bit for bit: 14 architectures x 4 methods."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.architectures import (
    ARCHITECTURES,
    HEAD,
    METHODS,
    NAMES,
    TRUTHS,
    batch_of,
    config,
    local_weights,
    logits_of,
    parts_of,
    tiny_weights,
    train,
    true_depth,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from whet.engine import artifact
from whet.engine.checkpoint import is_complete, load_tensors, tensors_of
from whet.engine.image import Image
from whet.errors import ModelError, RunError
from whet.model.tiny import TinyWeights
from whet.paths import Paths
from whet.peft.base import apply, trained_names


@pytest.fixture(scope="session")
def paths(cache):
    return Paths(cache=str(cache))


def start(node, paths, seed=1):
    """A model ready to train, and what every tensor of it was before."""
    encoder, method = parts_of(node)
    torch.manual_seed(seed)
    loaded = encoder.load(HEAD, paths)
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in loaded.model.named_parameters()}
    return loaded, before, apply(method, loaded)


def save(model, path):
    """The weights file of a checkpoint."""
    image = Image(tensors_of(model))
    image.fill(tensors_of(model))
    path.unlink(missing_ok=True)
    image.write(path)


def export(folder, model, loaded, node):
    checkpoint = folder.with_name(f"{folder.name}-checkpoint.safetensors")
    save(model, checkpoint)
    artifact.export(folder, checkpoint, model, loaded, node, NAMES)
    return folder


def reload(folder, paths):
    torch.manual_seed(99)
    state = torch.get_rng_state()
    trained = artifact.load(folder, paths)
    assert torch.equal(torch.get_rng_state(), state), "loading leaves the random numbers alone"
    assert not trained.model.training
    return trained


def should_train(method, name, truth):
    """By the documentation of each method."""
    if method == "none" or name in truth.head:
        return True
    if method == "bitfit":
        return name.endswith("bias")
    return method == "top_layers" and true_depth(name, truth) >= len(truth.blocks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_train_save_load(architecture, method, paths, tmp_path):
    truth, node = TRUTHS[architecture], config(method, tiny_weights(architecture))
    if (architecture, method) == ("modernbert", "bitfit"):
        with pytest.raises(ModelError, match=r"ModernBert.*no bias terms"):
            start(node, paths)
        return
    loaded, before, model = start(node, paths)
    assert loaded.new == set(truth.head)
    for name, (tensor, _) in before.items():
        assert tensor.requires_grad == should_train(method, name, truth), name
    train(model, loaded.tokenizer)
    for name, (tensor, old) in before.items():
        moves = should_train(method, name, truth) and name not in truth.idle
        assert torch.equal(tensor, old) != moves, name
    batch = batch_of(loaded.tokenizer, seed=7)
    wanted = logits_of(model, batch)
    folder = export(tmp_path / "model", model, loaded, node)
    found = reload(folder, paths)
    assert torch.equal(logits_of(found.model, batch), wanted)
    assert found.label_names == NAMES
    again = batch_of(found.tokenizer, seed=7)
    assert all(torch.equal(again.inputs[name], values) for name, values in batch.inputs.items())
    check_files(folder, method, model, before, batch, wanted)


def check_files(folder, method, model, before, batch, wanted):
    if method == "none":
        assert not (folder / artifact.PART).exists()
        plain, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert torch.equal(logits_of(plain, batch), wanted)
        assert plain.config.architectures == [type(plain).__name__] and plain.config.id2label == dict(
            enumerate(NAMES)
        )
        return
    assert not (folder / artifact.WHOLE).exists()
    saved = load_file(folder / artifact.PART)
    assert set(saved) == {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert sum(tensor.numel() for tensor in saved.values()) == sum(
        tensor.numel() for tensor in model.parameters() if tensor.requires_grad
    )
    share = (folder / artifact.PART).stat().st_size / (4 * sum(old.numel() for _, old in before.values()))
    assert share < (0.75 if method == "top_layers" else 0.4), "an adapter is small even beside a tiny model"


MLM = {"bert": "bert.pooler.dense", "albert": "albert.pooler", "deberta-v2": "pooler.dense"}


def mlm_only(architecture, paths, folder):
    """Weights as many are published: the trunk and a masked language model's head, no pooler."""
    made = TinyWeights(architecture=architecture).locate(paths).folder
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(made)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(made).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "bitfit", "top_layers"])
@pytest.mark.parametrize("architecture", MLM)
def test_a_pooler_that_the_weights_lack_is_trained_and_saved(architecture, method, paths, tmp_path):
    base = mlm_only(architecture, paths, tmp_path / "base")
    assert not any("pooler" in name for name in load_file(base / "model.safetensors"))
    node = config(method, local_weights(base))
    loaded, before, model = start(node, paths)
    pooler = {f"{MLM[architecture]}.weight", f"{MLM[architecture]}.bias"}
    assert loaded.new == pooler | {"classifier.weight", "classifier.bias"}
    train(model, loaded.tokenizer)
    for name in loaded.new:
        tensor, old = before[name]
        assert tensor.requires_grad and not torch.equal(tensor, old), name
    folder = export(tmp_path / "model", model, loaded, node)
    assert pooler <= set(load_file(folder / artifact.PART))
    batch = batch_of(loaded.tokenizer, seed=3)
    assert torch.equal(logits_of(reload(folder, paths).model, batch), logits_of(model, batch))


@pytest.fixture
def lora_folder(paths, tmp_path):
    """An exported LoRA of a tiny BERT."""
    node = config("lora", tiny_weights("bert"))
    loaded, _, model = start(node, paths)
    return export(tmp_path / "model", model, loaded, node)


@pytest.fixture
def whole_folder(paths, tmp_path):
    node = config("none", tiny_weights("bert"))
    loaded, _, model = start(node, paths)
    return export(tmp_path / "model", model, loaded, node)


def one_line_error(error, folder, paths, *parts):
    with pytest.raises(error) as caught:
        artifact.load(folder, paths)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text


def rewrite_card(folder, change):
    card = json.loads((folder / artifact.CARD).read_text())
    change(card)
    (folder / artifact.CARD).write_text(json.dumps(card))


def test_another_base_is_refused(lora_folder, paths):
    rewrite_card(lora_folder, lambda card: card["model"]["weights"].update(seed=1))
    one_line_error(ModelError, lora_folder, paths, "model.weights=tiny bert", "not the base of the training")


def test_a_base_that_is_gone_is_named(lora_folder, paths):
    rewrite_card(lora_folder, lambda card: card["model"].update(weights=local_weights("/nowhere/at/all")))
    one_line_error(ModelError, lora_folder, paths, "model.weights.path")


@pytest.mark.parametrize("name", [artifact.PART, artifact.WHOLE])
def test_damaged_weights(name, request, paths):
    folder = request.getfixturevalue("lora_folder" if name == artifact.PART else "whole_folder")
    file = folder / name
    tensors = load_file(file)
    first, *others = sorted(tensors)
    file.unlink()
    one_line_error(RunError, folder, paths, name, "missing")
    save_file({key: tensors[key] for key in others}, file)
    one_line_error(RunError, folder, paths, first, "1 differ")
    save_file({**tensors, "stranger": torch.ones(1)}, file)
    one_line_error(RunError, folder, paths, "stranger")
    save_file({**tensors, first: torch.ones(1, 1)}, file)
    one_line_error(RunError, folder, paths, first)
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:-50])
    one_line_error(RunError, folder, paths, name, "damaged")
    file.write_bytes(b"")
    one_line_error(RunError, folder, paths, name, "damaged")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", "\xff"])
def test_a_damaged_card(content, whole_folder, paths):
    (whole_folder / artifact.CARD).write_text(content, encoding="latin-1")
    one_line_error(RunError, whole_folder, paths, artifact.CARD, "damaged")


def test_other_damage(whole_folder, paths):
    rewrite_card(whole_folder, lambda card: card.update(format=2))
    one_line_error(RunError, whole_folder, paths, "format 2", "reads format 1")
    rewrite_card(whole_folder, lambda card: card.update(format=1))
    (whole_folder / "config.json").unlink()
    one_line_error(RunError, whole_folder, paths, "config.json")
    (whole_folder / artifact.CARD).unlink()
    one_line_error(RunError, whole_folder, paths, "did its run finish?")


def test_a_lora_folder_is_no_whole_model_for_others(lora_folder):
    with pytest.raises(OSError, match="no file named"):
        AutoModelForSequenceClassification.from_pretrained(lora_folder)


@pytest.mark.parametrize("method", ["none", "lora"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_of_the_training_is_kept(attention, method, paths, tmp_path):
    node = config(method, tiny_weights("bert"), attention=attention)
    loaded, _, model = start(node, paths)
    found = reload(export(tmp_path / "model", model, loaded, node), paths)
    assert found.model.config._attn_implementation == attention
    batch = batch_of(loaded.tokenizer)
    assert torch.equal(logits_of(found.model, batch), logits_of(model, batch))


@pytest.mark.parametrize("method", ["none", "lora"])
def test_half_precision_weights_train_and_come_back_in_single(method, paths, tmp_path):
    made = TinyWeights(architecture="bert").locate(paths).folder
    AutoModel.from_pretrained(made, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(made).save_pretrained(tmp_path / "half")
    node = config(method, local_weights(tmp_path / "half"))
    loaded, _, model = start(node, paths)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    train(model, loaded.tokenizer)
    folder = export(tmp_path / "model", model, loaded, node)
    batch = batch_of(loaded.tokenizer)
    assert torch.equal(logits_of(reload(folder, paths).model, batch), logits_of(model, batch))
    if method == "none":
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
        assert torch.equal(logits_of(plain, batch), logits_of(model, batch))


def test_an_older_folder_is_replaced_and_nothing_is_left_aside(lora_folder, paths, monkeypatch):
    (lora_folder / "old").touch()
    node = config("none", tiny_weights("gpt2"))
    loaded, _, model = start(node, paths)

    def no_links(source, target):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    export(lora_folder, model, loaded, node)
    assert not (lora_folder / "old").exists() and not (lora_folder / artifact.PART).exists()
    assert type(reload(lora_folder, paths).model).__name__ == "GPT2ForSequenceClassification"
    assert not [path for path in lora_folder.parent.iterdir() if path.name.startswith(".")]


# ---------------------------------------------------------------- checkpoints


def test_tied_tensors_are_saved_once_and_come_back(paths, tmp_path):
    _, before, model = start(config("none", tiny_weights("bart")), paths)
    tied = [name for name in model.state_dict() if name.endswith(("embed_tokens.weight", "shared.weight"))]
    assert len(tied) == 3 and len(set(tensors_of(model)) & set(tied)) == 1
    save(model, tmp_path / "a.safetensors")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    load_tensors(model, tmp_path / "a.safetensors")
    assert all(torch.equal(tensor, old) for tensor, old in before.values())
    assert model.get_input_embeddings().weight is model.model.encoder.embed_tokens.weight


def test_only_what_trains_is_saved(paths):
    _, _, model = start(config("bitfit", tiny_weights("bert")), paths)
    assert not is_complete(model)
    assert list(tensors_of(model)) == trained_names(model)
    before = tensors_of(model)["classifier.bias"]
    with torch.no_grad():
        model.classifier.bias.add_(1)
    assert torch.equal(tensors_of(model)["classifier.bias"], model.classifier.bias)
    assert before.shape == (3,)
