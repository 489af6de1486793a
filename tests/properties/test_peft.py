"""Every method on every kind of architecture: what trains, what is saved, what comes back, what folds."""

import copy
import functools

import pytest
import torch
from safetensors.torch import load_file
from tests.model.architectures import HEAD, NAMES, TRUTHS, batch_of, logits_of, tiny, tiny_weights
from torch import nn

from whet.config import Method, build, compose, conf_dir
from whet.engine import artifact
from whet.engine.checkpoint import is_complete, tensors_of
from whet.engine.image import Image
from whet.errors import ModelError
from whet.model.encoder import Encoder
from whet.paths import Paths
from whet.peft.base import apply, companions, trained_names
from whet.peft.fold import fold, plain_names
from whet.task.base import Task

METHODS = sorted(path.stem for path in (conf_dir() / "peft").glob("*.yaml"))
ARCHITECTURES = ("bert", "roberta", "distilbert", "deberta-v2", "gpt2", "modernbert")
SMALL = {
    "vera": ["peft.r=8"],
    "prefix": ["peft.tokens=3"],
    "prompt": ["peft.tokens=3"],
    "p_tuning": ["peft.tokens=3", "peft.hidden=8"],
    "bottleneck": ["peft.placement=houlsby", "peft.reduction=4", "peft.activation=gelu"],
    "lora": ["peft.dropout=0"],
    "adalora": ["peft.every=1"],
}
REFUSED = {
    ("bitfit", "modernbert"): "no bias terms",
    ("prefix", "deberta-v2"): "deberta-v2 out of reach; choose peft=prompt",
    ("mam", "deberta-v2"): "deberta-v2 out of reach",
    ("unipelt", "deberta-v2"): "deberta-v2 out of reach",
}
"""What an architecture has no place for, and what is said of it."""
WHOLE = {"none", "gradual_unfreezing"}
OWN = {"none", "gradual_unfreezing", "top_layers", "bitfit", "layer_norm", "linear_probe"}
"""Methods that train parameters of the model and add none."""
FOLDED = {"lora", "rslora", "dora", "adalora", "ia3", "vera"}
CHANGED_AT_ONCE = {"prefix", "prompt", "p_tuning", "mam", "unipelt"}
"""Others say what the pretrained model says until they are trained."""


@pytest.fixture(scope="module")
def paths(cache):
    return Paths(cache=str(cache))


@functools.cache
def node_of(method):
    """The method's node, as the command line composes it."""
    return compose("train", [f"peft={method}", "model=tiny", *SMALL.get(method, [])])["peft"]


def method_of(name):
    return build({"peft": node_of(name)}, holder).keywords["peft"]


def holder(*, peft: Method):
    """What a method's node is checked against."""


@functools.cache
def pretrained(architecture, cache):
    """Loaded once; copied for every method."""
    torch.manual_seed(1)
    return tiny(architecture).load(HEAD, Paths(cache=cache))


def start(method, architecture, paths):
    loaded = copy.copy(pretrained(architecture, paths.cache))
    loaded.model = copy.deepcopy(loaded.model)
    return loaded, apply(method_of(method), loaded)


def learn(model, batch, rate, steps=8):
    """Losses of a few updates on one batch, as the engine makes them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    modes = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    model.train()
    for module in modes:
        module.p = 0.0
    losses = []
    for step in range(steps):
        for companion in companions(model):
            companion.before_update(step, steps, steps)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels)
        loss.backward()
        for companion in companions(model):
            companion.after_gradient()
        optimizer.step()
        for companion in companions(model):
            companion.after_update(step)
        losses.append(loss.item())
    return losses


def signature(*, task: Task, model: Encoder, peft: Method):
    """What a model's card keeps."""


def saved(model, loaded, method, architecture, folder):
    """The run's `model` folder."""
    image = Image(tensors_of(model))
    image.fill(tensors_of(model))
    image.write(folder.with_suffix(".safetensors"))
    node = {
        "task": {
            "_target_": "whet.task.single_label.SingleLabel",
            "name": "toy",
            "data": {"_target_": "whet.data.files.Files", "path": "nowhere.csv"},
        },
        "model": {
            "_target_": "whet.model.encoder.Encoder",
            "name": "toy",
            "weights": tiny_weights(architecture),
        },
        "peft": node_of(method),
    }
    artifact.export(folder, folder.with_suffix(".safetensors"), model, loaded, node, NAMES)
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_on_an_architecture(method, architecture, paths, tmp_path):
    if (method, architecture) in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[method, architecture]):
            start(method, architecture, paths)
        return
    plain = pretrained(architecture, paths.cache)
    batch = batch_of(plain.tokenizer)
    batch.labels[:4] = 2  # random trunks say nearly the same of every text: let one class be frequent
    untouched = logits_of(plain.model, batch)
    old = {name: tensor.detach().clone() for name, tensor in plain.model.named_parameters()}

    loaded, model = start(method, architecture, paths)
    assert torch.equal(logits_of(model, batch), untouched) == (method not in CHANGED_AT_ONCE)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    trained, head = set(trained_names(model)), set(TRUTHS[architecture].head)
    assert head <= trained
    losses = learn(model, batch, 3e-3 if method in OWN else 2e-2)
    assert min(losses) < 0.95 * losses[0]

    for name, tensor in model.named_parameters():
        assert name in trained or torch.equal(tensor, before[name]), name
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert head <= moved
    assert len(moved) > 0.8 * len(trained) - 1, sorted(trained - moved)
    added = {name for name in before if name.replace(".base_layer", "") not in old}
    assert bool(added) == (method not in OWN)
    if method not in OWN:
        assert trained == {name for name in added if not name.endswith("ranknum.default")} | head
    for name in set(before) - added:
        assert before[name].shape == old[name.replace(".base_layer", "")].shape

    wanted = logits_of(model, batch)
    assert not torch.equal(wanted, untouched)
    folder = saved(model, loaded, method, architecture, tmp_path / "model")
    assert is_complete(model) == (method in WHOLE)
    kept = set(load_file(next(folder.glob("*.safetensors"))))
    assert kept == (set(tensors_of(model)) if method in WHOLE else trained)
    state = torch.get_rng_state()
    found = artifact.load(folder, paths).model
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits_of(found, batch), wanted)

    if method in OWN | FOLDED:
        assert bool(fold(found, method)) == (method in FOLDED)
        assert {name for name, _ in found.named_parameters()} <= plain_names(found)
        torch.testing.assert_close(logits_of(found, batch), wanted, atol=1e-5, rtol=1e-4)
    else:
        with pytest.raises(
            ModelError, match=rf"peft={method}: can't be folded into the weights \(.*use the run"
        ):
            fold(found, method)
        assert torch.equal(logits_of(found, batch), wanted), "left as it was"
