"""One update: exact under accumulation, clipped, and refused whole when a number isn't finite."""

import json
import math
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from whet.data.batch import Collator, Examples
from whet.data.batching import Batching
from whet.data.files import Files
from whet.data.tokens import encode
from whet.engine.plan import Plan, Update
from whet.engine.precision import Amp
from whet.engine.step import Stepper, figures
from whet.errors import NonFiniteError
from whet.model.encoder import Encoder
from whet.model.tiny import TinyWeights, byte_tokenizer
from whet.objective.plain import plain
from whet.optimizer.adamw import adamw
from whet.paths import Paths
from whet.scheduler.constant import constant
from whet.scheduler.linear import linear
from whet.task.binary import Binary
from whet.task.multi_label import MultiLabel
from whet.task.regression import Regression
from whet.task.single_label import SingleLabel
from whet.types import Duration

torch.set_num_threads(1)
CPU = torch.device("cpu")
NAMES = ("a", "b", "c")
ROWS = 29
"""No multiple of any batch size used: the last window is short."""
RNG = np.random.default_rng(5)
TEXTS = [("x" * int(n),) for n in RNG.integers(1, 30, ROWS)]
CLASSES = RNG.permutation([0] * 16 + [1] * 9 + [2] * 4)
TOKENS = encode([(f"{'abcdefghij'[i % 10]}{text}",) for i, (text,) in enumerate(TEXTS)], byte_tokenizer(), 64)


class Bag(nn.Module):
    """The mean of token vectors, and a linear map."""

    def __init__(self, outputs=3):
        super().__init__()
        torch.manual_seed(3)
        self.table, self.head = nn.Embedding(261, 8), nn.Linear(8, outputs)

    def forward(self, input_ids, attention_mask, **_):
        mask = attention_mask.unsqueeze(-1).to(self.table.weight.dtype)
        return SimpleNamespace(logits=self.head((self.table(input_ids) * mask).sum(1) / mask.sum(1)))


def task(kind=SingleLabel, **settings):
    return kind(name="t", data=Files(path="unused.csv"), **settings)


def adam(model, lr=1e-2):
    return with_base(torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1))


def sgd(model, lr=0.5):
    return with_base(torch.optim.SGD(model.parameters(), lr=lr))


def with_base(optimizer):
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def stepper(model, criterion, labels, batching=None, accumulate=1, duration="2ep", **settings):
    batching = batching or Batching(size=8, tokens=None)
    plan = Plan.of(TOKENS.lengths, batching, accumulate, 0, Duration.parse(duration), None)
    collator = Collator.of(TOKENS, labels, byte_tokenizer(), batching)
    examples = Examples("train", np.array([f"id-{i}" for i in range(ROWS)]), TEXTS, labels)
    defaults = {
        "optimizer": adam(model),
        "schedule": linear,
        "objective": plain,
        "amp": Amp(CPU, "fp32"),
        "clip": 1.0,
        "folder": None,
    }
    return Stepper(
        model=model,
        criterion=criterion,
        plan=plan,
        collator=collator,
        examples=examples,
        **{**defaults, **settings},
    )


def run(made):
    """All updates; parameters afterwards and results on the way."""
    results = [made.update(update) for update in made.plan]
    return torch.cat([p.detach().flatten() for p in made.model.parameters()]), results


TASKS = {
    "plain": (task(), CLASSES, 3),
    "class weights": (task(class_weights={"a": 0.3, "c": 4.0}), CLASSES, 3),
    "balanced and smooth": (task(class_weights="balanced", label_smoothing=0.1), CLASSES, 3),
    "some unlabelled": (task(class_weights={"b": 2.0}), np.where(np.arange(ROWS) % 4 == 0, -1, CLASSES), 3),
    "binary": (task(Binary, positive_weight=3.0, label_smoothing=0.1), (CLASSES > 0).astype(np.int64), 1),
    "multi-label": (task(MultiLabel), np.eye(3, dtype=np.float32)[CLASSES], 3),
    "regression": (task(Regression), RNG.normal(size=ROWS).astype(np.float32), 1),
}
CUTS = {
    "size 4 x 2": ({"size": 4, "tokens": None}, 2),
    "size 2 x 4": ({"size": 2, "tokens": None}, 4),
    "size 1 x 8": ({"size": 1, "tokens": None}, 8),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-6)])
def test_accumulation_is_the_big_batch(cut, name, precision, tolerance):
    made, labels, outputs = TASKS[name]
    criterion = made.criterion(labels, NAMES)
    settings, accumulate = CUTS[cut]

    def trained(batching, accumulate):
        model = Bag(outputs).to(precision)
        return run(stepper(model, criterion, labels, batching, accumulate, optimizer=sgd(model)))

    big, results = trained(Batching(size=8, tokens=None), 1)
    small, others = trained(Batching(**settings), accumulate)
    assert (big - small).abs().max() < tolerance
    assert [r.rows for r in results] == [r.rows for r in others] and len(results) == 8
    for one, other in zip(results, others, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-6)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4, abs=1e-6)
        assert (one.tokens, one.lr) == (other.tokens, other.lr)


@pytest.mark.parametrize("name", ["plain", "class weights", "some unlabelled"])
def test_with_adamw_on_a_transformer(name, cache):
    made, labels, _ = TASKS[name]
    criterion = made.criterion(labels, NAMES)

    def trained(size, accumulate):
        torch.manual_seed(0)
        encoder = Encoder(name="tiny", weights=TinyWeights(), dropout=0.0, head_dropout=0.0)
        model = encoder.load(made.head(NAMES), Paths(cache=str(cache))).model.double()
        optimizer = adamw(model, lr=1e-3, head_lr=1e-2)
        return run(
            stepper(
                model, criterion, labels, Batching(size=size, tokens=None), accumulate, optimizer=optimizer
            )
        )

    big, small = trained(8, 1)[0], trained(2, 4)[0]
    assert (big - small).abs().max() < 1e-6


@pytest.mark.parametrize("name", TASKS)
def test_cutting_a_window_further_changes_nothing(name):
    """Whatever the token budget makes of a window, the update is the same."""
    made, labels, outputs = TASKS[name]
    criterion = made.criterion(labels, NAMES)
    rows = np.random.default_rng(0).permutation(ROWS)[:13]
    budget = Batching(size=13, tokens=60)
    pieces = [
        piece
        for window in budget.windows(TOKENS.lengths[rows], 1, np.random.default_rng(0))
        for piece in window
    ]
    assert len(pieces) > 4
    cuts = [
        [rows],
        [rows[piece] for piece in pieces],
        [rows[:1], rows[1:]],
        [rows[i : i + 1] for i in range(13)],
    ]
    after = []
    for micro_batches in cuts:
        model = Bag(outputs)
        one = stepper(model, criterion, labels, optimizer=sgd(model))
        result = one.update(Update(0, 0.1, micro_batches))
        after.append((torch.cat([p.detach().flatten() for p in model.parameters()]), result))
    for parameters, result in after[1:]:
        assert (parameters - after[0][0]).abs().max() < 1e-6
        assert result.loss == pytest.approx(after[0][1].loss, abs=1e-6)
        assert (result.tokens, result.rows) == (after[0][1].tokens, 13)


def test_against_a_loop_written_out():
    """Windows as plain tensors, torch's own weighted mean, clipping and AdamW."""
    weights = torch.tensor([0.3, 1.0, 4.0])
    criterion = task(class_weights={"a": 0.3, "c": 4.0}).criterion(CLASSES, NAMES)
    model = Bag()
    made = stepper(model, criterion, CLASSES, Batching(size=3, tokens=None), 3, clip=0.05)
    ours, results = run(made)

    other = Bag()
    optimizer = torch.optim.AdamW(other.parameters(), weight_decay=0.1)
    total = made.plan.total
    warmup = math.ceil(0.06 * total)
    for update in made.plan:
        s = update.step
        rate = (s + 1) / warmup if s < warmup else 1 - (s - warmup) / (total - warmup)
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        optimizer.zero_grad()
        logits = []
        rows = np.concatenate(update.micro_batches)
        for row in rows:
            ids = torch.from_numpy(TOKENS.ids[TOKENS.offsets[row] : TOKENS.offsets[row + 1]].astype(np.int64))
            logits.append(other(ids[None], torch.ones_like(ids)[None]).logits[0])
        loss = F.cross_entropy(torch.stack(logits), torch.from_numpy(CLASSES[rows]), weights)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(other.parameters(), 0.05)
        optimizer.step()
        assert results[s].loss == pytest.approx(loss.item(), abs=1e-5)
        assert results[s].grad_norm == pytest.approx(norm.item(), rel=1e-3)
        assert results[s].lr == pytest.approx(1e-2 * rate)
    theirs = torch.cat([p.detach().flatten() for p in other.parameters()])
    assert (ours - theirs).abs().max() < 1e-4  # Adam divides tiny gradients by themselves


def test_a_window_without_any_label_changes_nothing():
    labels = np.full(ROWS, -1)
    model = Bag()
    before = [p.clone() for p in model.parameters()]
    made = stepper(model, task().criterion(CLASSES, NAMES), labels, optimizer=sgd(model))
    result = made.update(next(iter(made.plan)))
    assert result.loss == 0 and result.grad_norm == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ---------------------------------------------------------------- rates, clipping


def test_each_group_follows_the_schedule_from_its_own_base():
    model = Bag()
    groups = [{"params": model.table.parameters(), "lr": 0.1}, {"params": model.head.parameters(), "lr": 0.4}]
    optimizer = with_base(torch.optim.SGD(groups, lr=0.1))
    made = stepper(model, task().criterion(CLASSES, NAMES), CLASSES, optimizer=optimizer)
    for update in made.plan:
        result = made.update(update)
        factor = linear(update.step, made.plan.total, made.plan.per_epoch)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.1 * factor, 0.4 * factor]
        )
        assert result.lr == pytest.approx(0.4 * factor)


@pytest.mark.parametrize("clip", [0.01, 0.1, 1e6, None])
def test_clipping_bounds_the_norm_and_keeps_the_direction(clip):
    labels = CLASSES

    def gradient(limit):
        model = Bag()
        made = stepper(model, task().criterion(labels, NAMES), labels, optimizer=sgd(model), clip=limit)
        result = made.update(next(iter(made.plan)))
        return torch.cat([p.grad.flatten() for p in model.parameters()]), result.grad_norm

    raw, norm = gradient(None)
    clipped, reported = gradient(clip)
    assert raw.norm().item() == pytest.approx(norm, rel=1e-5) == reported
    expected = raw * min(1.0, math.inf if clip is None else clip / norm)
    torch.testing.assert_close(clipped, expected, rtol=1e-4, atol=1e-8)


def test_the_model_trains_in_training_mode():
    model = Bag().eval()
    made = stepper(model, task().criterion(CLASSES, NAMES), CLASSES)
    made.update(next(iter(made.plan)))
    assert model.training


def test_old_gradients_do_not_leak():
    def after(dirt):
        model = Bag()
        made = stepper(model, task().criterion(CLASSES, NAMES), CLASSES, optimizer=sgd(model))
        for p in model.parameters():
            p.grad = torch.full_like(p, dirt)
        made.update(next(iter(made.plan)))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(after(0.0), after(7.0))


# ---------------------------------------------------------------- not finite


def poisoned(value, row):
    """An objective whose loss turns to `value` in the micro-batch that holds `row`."""

    def objective(forward, batch):
        loss = plain(forward, batch)
        return loss + value if row in batch.rows else loss

    return objective


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(value, tmp_path):
    model = Bag()
    made = stepper(
        model,
        task().criterion(CLASSES, NAMES),
        CLASSES,
        Batching(size=4, tokens=None),
        2,
        objective=poisoned(value, 17),
        folder=tmp_path,
    )
    for update in made.plan:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = json.dumps(str(made.optimizer.state_dict()["state"]))
        guilty = [rows for rows in update.micro_batches if 17 in rows]
        if not guilty:
            made.update(update)
            continue
        with pytest.raises(
            NonFiniteError, match=f"loss is {value} at step {update.step + 1}, rows "
        ) as caught:
            made.update(update)
        break
    ids = [f"id-{row}" for row in guilty[0]]
    assert all(row in str(caught.value) for row in ids) and "nonfinite.json" in str(caught.value)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert json.dumps(str(made.optimizer.state_dict()["state"])) == state
    assert all(p.grad is None for p in model.parameters())
    facts = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (facts["step"], facts["what"], facts["value"]) == (update.step + 1, "loss", str(value))
    assert facts["ids"] == ids
    assert facts["texts"] == [list(TEXTS[row]) for row in guilty[0]]
    assert facts["lr"] == [group["lr"] for group in made.optimizer.param_groups]


class Explode(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def exploding(forward, batch):
    return forward.losses(Explode.apply(forward(batch)), batch).sum()


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path):
    model = Bag()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    criterion = task().criterion(CLASSES, NAMES)
    made = stepper(model, criterion, CLASSES, objective=exploding, folder=tmp_path)
    update = next(iter(made.plan))
    with pytest.raises(
        NonFiniteError, match=r"gradient norm is (nan|inf) at step 1, rows id-.*lower optimizer.lr"
    ):
        made.update(update)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    facts = json.loads((tmp_path / "nonfinite.json").read_text())
    assert facts["ids"] == [f"id-{row}" for row in np.concatenate(update.micro_batches)]
    assert facts["what"] == "gradient norm"


def test_without_a_folder_the_message_is_all():
    made = stepper(
        Bag(), task().criterion(CLASSES, NAMES), CLASSES, objective=poisoned(math.nan, 0), duration="1ep"
    )
    with pytest.raises(NonFiniteError) as caught:
        run(made)
    assert "nonfinite.json" not in str(caught.value)


# ---------------------------------------------------------------- number formats


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_autocast_learns_and_weights_stay_fp32(name):
    model = Bag()
    criterion = task().criterion(CLASSES, NAMES)
    made = stepper(model, criterion, CLASSES, amp=Amp(CPU, name), duration="10ep", schedule=constant)
    seen = set()
    model.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    _, results = run(made)
    assert seen == {torch.bfloat16 if name == "bf16" else torch.float16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    per = made.plan.per_epoch
    assert np.mean([r.loss for r in results[-per:]]) < np.mean([r.loss for r in results[:per]]) - 0.05
    assert made.scaler.is_enabled() == (name == "fp16")


def test_fp16_scaling_does_not_change_what_clipping_sees():
    criterion = task().criterion(CLASSES, NAMES)
    norms = []
    for name in ("fp32", "fp16"):
        model = Bag()
        made = stepper(model, criterion, CLASSES, amp=Amp(CPU, name), optimizer=sgd(model), clip=0.01)
        norms.append(made.update(next(iter(made.plan))).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_fp16_skips_an_infinite_step_and_halves_the_scale():
    model = Bag()
    before = [p.detach().clone() for p in model.parameters()]
    criterion = task().criterion(CLASSES, NAMES)
    made = stepper(model, criterion, CLASSES, amp=Amp(CPU, "fp16"), objective=exploding)
    result = made.update(next(iter(made.plan)))
    assert not math.isfinite(result.grad_norm)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert made.scaler.get_scale() == 2**15


def test_fp16_gives_up_when_there_is_no_scale_left():
    criterion = task().criterion(CLASSES, NAMES)
    made = stepper(Bag(), criterion, CLASSES, amp=Amp(CPU, "fp16"), objective=exploding, duration="60st")
    with pytest.raises(NonFiniteError, match="at step 17"):
        run(made)


# ---------------------------------------------------------------- a device that is ahead of the host


def bad_at(steps):
    """An objective whose loss is NaN in the updates numbered so."""
    seen = iter(range(10_000))
    return lambda forward, batch: plain(forward, batch) * (math.nan if next(seen) in steps else 1.0)


def fused(model):
    return with_base(torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=True))


def test_a_lag_changes_no_number():
    criterion = task().criterion(CLASSES, NAMES)
    weights, told = [], []
    for lag in (0, 3):
        model = Bag()
        after, results = run(stepper(model, criterion, CLASSES, optimizer=fused(model), lag=lag))
        weights.append(after)
        told.append([(r.loss, r.grad_norm) for r in figures(results)])
    assert torch.equal(*weights)
    assert np.allclose(*told, rtol=1e-6, atol=0)


def test_with_a_lag_bad_updates_are_left_out_on_the_device(caplog):
    criterion = task().criterion(CLASSES, NAMES)
    weights = []
    for lag in (0, 3):
        model = Bag()
        made = stepper(
            model,
            criterion,
            CLASSES,
            optimizer=fused(model),
            lag=lag,
            on_nan="skip",
            objective=bad_at({1, 2}),
        )
        weights.append(run(made)[0])
        made.settle()
        assert made.skipped == 0 and caplog.text.count("is left out") == 2
        caplog.clear()
    assert torch.equal(*weights)


def test_with_a_lag_nothing_moves_after_the_first_bad_update():
    criterion = task().criterion(CLASSES, NAMES)
    model, sober = Bag(), Bag()
    made = stepper(model, criterion, CLASSES, optimizer=fused(model), lag=3, objective=bad_at({2}))
    made._unread = Slow()  # the numbers of four updates are on their way
    with pytest.raises(NonFiniteError, match="loss is nan at step 3"):
        run(made)
    good = stepper(sober, criterion, CLASSES, optimizer=fused(sober))
    for update in list(good.plan)[:2]:
        good.update(update)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), sober.parameters(), strict=True))


class Slow(deque):
    """Numbers arrive only when they are waited for."""

    def append(self, told):
        super().append(replace(told, there=SimpleNamespace(query=lambda: False, synchronize=lambda: None)))


def test_an_unfused_optimizer_has_no_lag():
    model = Bag()
    assert stepper(model, task().criterion(CLASSES, NAMES), CLASSES, lag=5).lag == 0


def test_batches_made_ahead_are_the_same():
    criterion = task().criterion(CLASSES, NAMES)
    plainly, ahead = Bag(), Bag()
    after, _ = run(stepper(plainly, criterion, CLASSES, accumulate=2))
    made = stepper(ahead, criterion, CLASSES, accumulate=2)
    for update in made.ahead(made.plan):
        assert len(made._made[update.step]) == len(update.micro_batches)
        made.update(update)
    assert torch.equal(after, torch.cat([p.detach().flatten() for p in ahead.parameters()]))
