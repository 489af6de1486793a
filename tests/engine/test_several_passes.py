"""Objectives of several passes and several gradients: what the engine promises them."""

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from tests.engine.test_resume import end_of, folder_of, keys, kill_at, killed_run, train  # noqa: F401
from tests.engine.test_step import CLASSES, CPU, NAMES, Bag, bad_at, fused, run, sgd, stepper, task

from whet.data.batching import Batching
from whet.engine.precision import Amp
from whet.engine.train import Parts
from whet.errors import NonFiniteError
from whet.objective.base import Objective, passes
from whet.objective.plain import plain

CRITERION = task().criterion(CLASSES, NAMES)


def made_of(objective, model=None, **settings):
    model = model or Bag()
    return stepper(
        model, CRITERION, CLASSES, objective=objective, **{"optimizer": sgd(model, lr=0.1), **settings}
    )


def parts(forward, batch):
    """Three sums that add up to 1.75 times the plain one."""
    for share in (1.0, 0.5, 0.25):
        yield share * plain(forward, batch)


def whole(forward, batch):
    return 1.75 * plain(forward, batch)


# ---------------------------------------------------------------- generators


def test_one_tensor_is_one_pass():
    tensor = torch.tensor(2.0)
    assert list(passes(tensor)) == [tensor]
    assert list(passes(iter([tensor, tensor]))) == [tensor, tensor]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_generator_is_the_sum_of_what_it_yields(accumulate):
    batching = Batching(size=8 // accumulate, tokens=None)
    found = [run(made_of(one, batching=batching, accumulate=accumulate)) for one in (parts, whole)]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-7)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)


def test_between_two_yields_the_gradient_is_there_and_the_graph_is_gone():
    seen = []

    def looking(forward, batch):
        loss = plain(forward, batch)
        yield loss
        seen.append(forward.model.head.weight.grad.clone())
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()
        yield 0 * plain(forward, batch)

    model = Bag()
    made = made_of(looking, model, clip=None)
    made.update(next(iter(made.plan)))
    torch.testing.assert_close(seen[0], model.head.weight.grad)


def test_memory_that_runs_out_between_two_yields_halves_the_batch():
    """What the first part left in the gradients is forgotten with it."""

    def hungry(forward, batch):
        yield plain(forward, batch)
        if len(batch.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield 0.75 * plain(forward, batch)

    made = made_of(hungry)
    weights, _ = run(made)
    assert made.pieces == 4
    torch.testing.assert_close(weights, run(made_of(whole))[0], rtol=1e-5, atol=1e-7)


def test_pieces_and_steps_are_numbered():
    seen = []

    def watching(forward, batch):
        seen.append((forward.step, forward.total, forward.round, forward.piece, len(batch.rows)))
        return plain(forward, batch)

    made = made_of(watching, batching=Batching(size=4, tokens=None), accumulate=2, duration="1ep")
    run(made)
    assert [item[:4] for item in seen] == [(s, 4, 0, p) for s in range(4) for p in range(2)]


# ---------------------------------------------------------------- several gradients


@dataclass
class Story(Objective):
    """Tells what was called, and what the gradient was then."""

    turns: int = 3
    told: list = field(default_factory=list)
    broken: int | None = None

    @property
    def rounds(self):
        return self.turns

    def __call__(self, forward, batch):
        self.told.append(("pass", forward.round, forward.piece))
        if forward.round == self.broken:
            raise ZeroDivisionError
        return (forward.round + 1) * plain(forward, batch)

    def between(self, turn):
        self.told.append("between")
        self.norm = turn.norm().item()
        self.gradient = torch.cat([p.grad.flatten() for p in turn.parameters])

    def restore(self):
        self.told.append("restore")

    def after(self, forward):
        self.told.append(("after", forward.step))


def test_everything_is_called_in_order():
    made = made_of(story := Story(), batching=Batching(size=4, tokens=None), accumulate=2)
    for update in list(made.plan)[:2]:
        made.update(update)
    one = [[("pass", turn, piece) for piece in (0, 1)] for turn in range(3)]
    update = [*one[0], "between", *one[1], "between", *one[2], "restore"]
    assert story.told == [*update, ("after", 0), *update, ("after", 1)]


def test_the_last_gradient_counts_and_the_first_loss_is_told():
    def thrice(forward, batch):
        return 3 * plain(forward, batch)

    model, other = Bag(), Bag()
    made, plainly = made_of(story := Story(), model, clip=None), made_of(thrice, other, clip=None)
    results = [one.update(next(iter(one.plan))) for one in (made, plainly)]
    assert results[0].loss == pytest.approx(results[1].loss / 3)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm)
    torch.testing.assert_close(model.head.weight, other.head.weight)
    assert (
        story.gradient.norm().item()
        == pytest.approx(story.norm)
        == pytest.approx(results[1].grad_norm * 2 / 3)
    )


@pytest.mark.parametrize("broken", [1, 2])
def test_restore_is_called_whatever_happens(broken):
    made = made_of(story := Story(broken=broken))
    with pytest.raises(ZeroDivisionError):
        made.update(next(iter(made.plan)))
    assert story.told.count("restore") == 1 and story.told[-1] == "restore"


def scaled(times, forward, batch):
    return times * plain(forward, batch)


class Steps(Story):
    """Every gradient becomes a step."""

    def between(self, turn):
        turn.update()


def test_steps_in_between_are_steps_of_the_optimizer():
    """Three steps on each window, clipped, at the window's rate: what three updates on it would do."""
    model, other = Bag(), Bag()
    settings = {"clip": 0.1, "schedule": lambda step, *_: 0.5 + step / 8}
    made, plainly = made_of(Steps(), model, **settings), made_of(plain, other, **settings)
    for update in list(made.plan)[:3]:
        made.update(update)
        for times in (1, 2, 3):
            plainly.objective = functools.partial(scaled, times)
            plainly.update(update)
    for one, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, theirs, rtol=1e-5, atol=1e-7)


def test_a_step_in_between_that_is_not_finite_is_left_out():
    class Bad(Steps):
        def __call__(self, forward, batch):
            return plain(forward, batch) * (math.inf if forward.round == 1 else 1.0)

    model, other = Bag(), Bag()
    bad, good = made_of(Bad(), model), made_of(Steps(turns=2), other)
    good.objective.__class__ = type(
        "Even", (Steps,), {"__call__": lambda _, forward, batch: plain(forward, batch)}
    )
    for one in (bad, good):
        one.update(next(iter(one.plan)))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_steps_in_between_with_sixteen_bit_numbers(name):
    ends = [run(made_of(Steps(), amp=Amp(CPU, amp)))[0] for amp in ("fp32", name)]
    assert (ends[0] - ends[1]).abs().max() < 0.05


def test_after_a_bad_update_no_step_in_between_is_made_either():
    """On a device that is ahead of the host the weights stop at the first bad update."""
    model, sober = Bag(), Bag()
    steps = Steps(turns=2)
    bad = bad_at({4})  # the first gradient of the third update
    steps.__class__ = type("Bad", (Steps,), {"__call__": lambda _, forward, batch: bad(forward, batch)})
    made = made_of(steps, model, optimizer=fused(model), lag=3)
    with pytest.raises(NonFiniteError, match="loss is nan at step 3"):
        run(made)
    calm = Steps(turns=2)
    calm.__class__ = type("Calm", (Steps,), {"__call__": lambda _, forward, batch: plain(forward, batch)})
    good = made_of(calm, sober, optimizer=fused(sober))
    for update in list(good.plan)[:2]:
        good.update(update)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), sober.parameters(), strict=True))


# ---------------------------------------------------------------- a whole run


class Slowly(Objective):
    """Pulls the head towards a running mean of its weights: state that a resumed run needs."""

    def prepare(self, setting):
        self.head = setting.model.classifier.weight
        self.mean = self.head.detach().clone()

    def __call__(self, forward, batch) -> Iterator[torch.Tensor]:
        yield plain(forward, batch)
        yield 5.0 * len(batch.rows) * (self.head - self.mean).square().sum()

    def after(self, forward):
        self.mean.lerp_(self.head.detach(), 0.3)

    def tensors(self):
        return {"mean": self.mean}

    def load_tensors(self, tensors):
        self.mean.copy_(tensors["mean"])

    def facts(self):
        return {"pull": 5.0}


@pytest.fixture
def slowly(monkeypatch):
    """Runs with `objective=fgm` get `Slowly` instead."""
    inner = Parts.__post_init__

    def swapped(self):
        self.objective = Slowly()
        inner(self)

    monkeypatch.setattr(Parts, "__post_init__", swapped)


def test_state_survives_a_resume_to_the_bit(workplace, keys, kill_at, slowly, monkeypatch):  # noqa: F811
    keys = [*keys, "engine.duration=2ep"]
    assert train(*keys, "name=whole") == 0
    folder = killed_run(workplace, keys, "killed", kill_at, 7)
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == end_of(folder_of(workplace, "whole"))
    assert json.loads((folder / "run.json").read_text())["objective"] == {"pull": 5.0}
    lost = killed_run(workplace, keys, "lost", kill_at, 7)
    monkeypatch.setattr(Slowly, "load_tensors", lambda *_: None)
    assert train(f"resume={lost}") == 0
    assert end_of(lost) != end_of(folder), "the state matters"


def test_a_run_goes_on_only_towards_the_same(workplace, keys, kill_at, slowly, monkeypatch, capsys):  # noqa: F811
    folder = killed_run(workplace, keys, "killed", kill_at, 4)
    monkeypatch.setattr(Slowly, "facts", lambda _: {"pull": 6.0})
    assert train(f"resume={folder}") == 2
    assert "the objective's pull isn't that of the run any more" in capsys.readouterr().err


PROBE = ["peft=linear_probe", "engine.frozen=eval", "engine.duration=2ep", "engine.precision=fp32"]


@pytest.mark.parametrize(("objective", "cache", "because"), [
    ("sam", "on", None), ("fgm", "off", "the objective changes the embeddings"),
])  # fmt: skip
def test_the_trunk_cache_heeds_the_objective(workplace, quick, objective, cache, because):
    assert train(*quick, *PROBE, f"objective={objective}", f"name={objective}") == 0
    frozen = json.loads((folder_of(workplace, objective) / "run.json").read_text())["frozen"]
    assert (frozen["cache"], frozen.get("because")) == (cache, because)


def test_hidden_states_rule_out_packing(workplace, quick, capsys):
    assert train(*quick, "objective=supcon", "engine.packing=on") == 2
    assert "can't be packed: the objective reads hidden states" in capsys.readouterr().err


def test_compiled_code_is_refused_where_it_would_miss_the_perturbation(workplace, quick, capsys):
    assert train(*quick, "objective=fgm", "engine.compile=true") == 2
    assert "engine.compile=True: compiled code doesn't see the objective" in capsys.readouterr().err
    assert not (workplace / "outputs" / "runs").exists()


def test_what_an_objective_refuses_is_said_before_anything_is_loaded(workplace, quick, monkeypatch, capsys):
    from whet.engine import train as story

    monkeypatch.setattr(story, "get_ready", lambda parts: 1 / 0)
    assert train(*quick, "objective=label_smoothing", "task.label_smoothing=0.1") == 2
    told = capsys.readouterr().err
    assert "objective.epsilon=0.1: the labels would be smoothed twice" in told
