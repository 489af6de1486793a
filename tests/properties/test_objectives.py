"""One table of properties for every objective: it trains, changes the outcome, resumes, goes with LoRA."""

from __future__ import annotations

import copy
import functools
import json
import tempfile

import numpy as np
import pytest
import torch
from tests.engine.test_resume import end_of, folder_of, keys, kill_at, killed_run, train  # noqa: F401
from tests.model.architectures import HEAD, NAMES, TRUTHS, tiny

from whet.augmentation.aeda import Aeda
from whet.config import conf_dir, load, part
from whet.data.batch import Collator, Examples
from whet.data.batching import Batching
from whet.data.files import Files
from whet.data.tokens import encode
from whet.engine.callbacks import State
from whet.engine.plan import Plan
from whet.engine.precision import Amp
from whet.engine.resume import read, take
from whet.engine.step import Stepper
from whet.objective.base import Forward, Objective, Setting
from whet.objective.perturbation import Perturbed
from whet.objective.plain import plain
from whet.optimizer.adamw import adamw
from whet.paths import Paths
from whet.peft.base import apply, trained_names
from whet.peft.lora import lora
from whet.scheduler.constant import constant
from whet.task.single_label import SingleLabel
from whet.types import Duration

CPU = torch.device("cpu")
ROOM = tempfile.TemporaryDirectory(prefix="whet-properties-")
"""For tokens of texts without labels."""
NAMED = sorted(path.stem for path in (conf_dir() / "objective").glob("*.yaml"))
MISSING = {"distill": {"teacher": "nowhere"}}
"""Settings that have no default."""
OTHERS = [name for name in NAMED if name != "plain"]
ARCHITECTURES = ["bert", "distilbert", "deberta-v2", "gpt2", "modernbert", "roberta"]
TEXTS = [(f"{'good fine' if row % 3 else 'bad dull'} {'x' * (row % 5 + 1)}",) for row in range(12)]
LABELS = np.array([2 if row % 3 else 0 for row in range(12)])
TASK = SingleLabel(name="t", data=Files(path="unused.csv"))


def test_the_table_is_complete():
    assert len(OTHERS) >= 15 and set(ARCHITECTURES) <= set(TRUTHS)


@pytest.fixture(scope="module")
def loaded_once(cache):
    """A fresh copy of a tiny model, read once."""

    @functools.cache
    def read_once(architecture, head):
        torch.manual_seed(1)
        return tiny(architecture, dropout=0.1, head=head).load(HEAD, Paths(cache=str(cache)))

    return lambda architecture, head="own": copy.deepcopy(read_once(architecture, head))


def head_for(name):
    """The `model.head` that an objective works on."""
    node = load(conf_dir() / "objective" / f"{name}.yaml")
    made = part({**node, **MISSING.get(name, {})}, Objective | None, "objective")
    return getattr(made, "needs_head", None) or "own"


def made_of(name, model, tokenizer) -> Objective:
    """The choice as its YAML has it, ready."""
    node = load(conf_dir() / "objective" / f"{name}.yaml")
    node |= MISSING.get(name, {})
    if name in ("pseudo_label", "uda", "fixmatch"):
        node["threshold"] = 0.4  # a model of random weights is sure of nothing
    made = part(node, Objective | None if name != "plain" else object, "objective")
    if name == "distill":  # its own tests have real teachers
        made._kind, made._said = TASK.kind, torch.eye(3)[LABELS] * 4
        return made
    made.check(TASK)
    made.prepare(setting_of(model, tokenizer))
    return made


def setting_of(model, tokenizer) -> Setting:
    """A run on the rows, with as many texts that have no label."""
    return Setting(
        task=TASK, label_names=NAMES, train=Examples("train", np.arange(12).astype(str), TEXTS, LABELS),
        left=[(f"{text} {'y' * row}",) for row, (text,) in enumerate(TEXTS)], tokenizer=tokenizer, max_length=32,
        batching=Batching(size=12, tokens=None), model=model, amp=Amp(CPU, "fp32"), paths=Paths(cache=ROOM.name),
        augmentation=Aeda(), seed=1, total=6,
    )  # fmt: skip


def stepper_of(objective, model, tokenizer, steps=6, precision="fp32", **settings):
    batching = Batching(size=12, tokens=None)
    tokens = encode(TEXTS, tokenizer, 32)
    collator = Collator.of(tokens, LABELS, tokenizer, batching)
    return Stepper(
        model=model, criterion=TASK.criterion(LABELS, NAMES), objective=objective, optimizer=adamw(model, lr=5e-3),
        schedule=constant, plan=Plan.of(tokens.lengths, batching, 1, 0, Duration(steps, "st"), None),
        collator=collator, examples=Examples("train", np.arange(12).astype(str), TEXTS, LABELS),
        amp=Amp(CPU, precision), clip=1.0, **settings,
    )  # fmt: skip


def loss_of(made) -> float:
    """The task's own mean loss over all rows, without dropout."""
    made.model.eval()
    with torch.no_grad():
        batch = made.collator(np.arange(12), CPU)
        return plain(Forward(made.model, made.criterion), batch).item() / 12


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(name, loaded, steps=6, precision="fp32"):
    """(weights, loss before, loss after) of a run whose random numbers start from the same seed."""
    model = loaded.model
    objective = plain if name == "plain" else made_of(name, model, loaded.tokenizer)
    made = stepper_of(objective, model, loaded.tokenizer, steps, precision)
    before = loss_of(made)
    torch.manual_seed(0)
    for update in made.plan:
        made.update(update)
    made.before_judging()
    return flat(model), before, loss_of(made)


@pytest.fixture(scope="module")
def plainly(loaded_once):
    return functools.cache(lambda architecture, head: trained("plain", loaded_once(architecture, head)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OTHERS)
def test_it_trains_and_changes_the_outcome(name, architecture, loaded_once, plainly):
    head = head_for(name)
    weights, before, after = trained(name, loaded_once(architecture, head))
    assert torch.isfinite(weights).all() and after < 0.9 * before
    assert (weights - plainly(architecture, head)[0]).abs().max() > 1e-5


@pytest.mark.parametrize("name", OTHERS)
def test_under_lora_with_frozen_embeddings(name, loaded_once, monkeypatch):
    """Perturbations live at the output of the frozen table, and the gradient reaches them there."""
    met, inner = [], Forward.embedding

    def embedding(self, change):
        def both(words):
            moved = change(words)
            met.append((moved - words).detach().abs().sum().item())
            return moved

        return inner(self, both)

    monkeypatch.setattr(Forward, "embedding", embedding)
    ends = []
    for chosen in (name, "plain"):
        loaded = loaded_once("bert", head_for(name))
        torch.manual_seed(2)
        loaded.model = apply(lora, loaded)
        assert not loaded.model.get_input_embeddings().weight.requires_grad
        frozen = loaded.model.get_input_embeddings().weight.clone()
        assert any("lora" in item for item in trained_names(loaded.model))
        weights, before, after = trained(chosen, loaded)
        assert after < before and torch.equal(loaded.model.get_input_embeddings().weight, frozen)
        ends.append(weights)
    assert (ends[0] - ends[1]).abs().max() > 1e-6
    moves = isinstance(made_of(name, loaded.model, loaded.tokenizer), Perturbed)
    assert (max(met, default=0.0) > 1e-3) == moves


@pytest.mark.parametrize("name", OTHERS)
def test_interrupted_is_uninterrupted(name, loaded_once, tmp_path):
    """Three updates, a checkpoint, and another process's objects that make the other three: the same bits."""
    ends = []
    for fresh in (True, False):
        loaded = loaded_once("bert", head_for(name))
        made = stepper_of(made_of(name, loaded.model, loaded.tokenizer), loaded.model, loaded.tokenizer)
        torch.manual_seed(5 if fresh else 99)
        updates = list(made.plan)
        if fresh:
            for update in updates[:3]:
                made.update(update)
            (tmp_path / "kept").mkdir()
            take(made, State(step=3, total=6), []).write(tmp_path / "kept")
        else:
            read(tmp_path / "kept", made, [])
        for update in updates[3:]:
            made.update(update)
        ends.append(flat(loaded.model))
    assert torch.equal(*ends)


def test_a_whole_run_goes_on_to_the_same_end(workplace, keys, kill_at):  # noqa: F811
    """With state of its own, through the command line."""
    mine = [*keys, "objective=smart", "engine.duration=2ep"]
    assert train(*mine, "name=whole") == 0
    folder = killed_run(workplace, mine, "killed", kill_at, 5)
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == end_of(folder_of(workplace, "whole"))


@pytest.mark.parametrize("name", OTHERS)
def test_half_precision_learns_the_same(name, loaded_once):
    """bf16 is the default where a processor has it: the loss falls by as much, but for rounding."""
    _, before, after = trained(name, loaded_once("bert", head_for(name)))
    _, _, rounded = trained(name, loaded_once("bert", head_for(name)), precision="bf16")
    assert rounded < before and rounded == pytest.approx(after, abs=0.2 * (before - after) + 0.01)


@pytest.mark.parametrize("architecture", ["bart", "xlm-roberta", "electra", "mpnet", "funnel", "albert"])
def test_perturbations_meet_other_architectures_too(architecture, loaded_once):
    """Of an encoder-decoder, the encoder's words; and the perturbed pass changes the weights."""
    weights, before, after = trained("fgm", loaded_once(architecture), steps=3)
    assert after < before
    assert (weights - trained("plain", loaded_once(architecture), steps=3)[0]).abs().max() > 1e-5


def test_objective_augmentation_and_peft_are_chosen_freely(workplace, quick):
    mine = [
        *quick,
        "objective=freelb",
        "peft=lora",
        "model.weights.architecture=gpt2",
        "engine.precision=bf16",
    ]
    assert train(*mine, "name=all", "engine.duration=2st") == 0
    assert json.loads((folder_of(workplace, "all") / "run.json").read_text())["status"] == "finished"
