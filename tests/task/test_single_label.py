"""Cross entropy with class weights and smoothing, against its formula and torch's mean."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from whet.data.files import Files
from whet.errors import ConfigError
from whet.task.single_label import SingleLabel

NAMES = ("a", "b", "c")
LABELS = np.array([0, 2, 1, 2, 2, 0, 1, 2])
LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 3


def task(**settings):
    return SingleLabel(name="t", data=Files(path="unused.csv"), **settings)


def naive(logits, labels, weights, smoothing):
    """[n] losses, from the definition."""
    found = []
    for z, y in zip(logits.double().numpy(), labels, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        target = np.full(len(z), smoothing / len(z))
        target[y] += 1 - smoothing
        found.append(-(target * weights * np.log(p)).sum())
    return np.array(found)


SETTINGS = [
    {},
    {"label_smoothing": 0.1},
    {"class_weights": {"b": 5.0}},
    {"class_weights": "balanced"},
    {"class_weights": {"a": 0.2, "c": 3.0}, "label_smoothing": 0.3},
]


def weights_of(settings):
    given = settings.get("class_weights")
    if given == "balanced":
        return 8 / (3 * np.bincount(LABELS))
    return np.array([(given or {}).get(name, 1.0) for name in NAMES])


@pytest.mark.parametrize("settings", SETTINGS)
def test_losses_by_the_formula_and_the_mean_is_torchs(settings):
    criterion = task(**settings).criterion(LABELS, NAMES)
    weights, smoothing = weights_of(settings), settings.get("label_smoothing", 0.0)
    losses = criterion.losses(LOGITS, torch.from_numpy(LABELS))
    np.testing.assert_allclose(losses.numpy(), naive(LOGITS, LABELS, weights, smoothing), rtol=1e-5)
    mean = losses.sum() / criterion.weights(LABELS).sum()
    theirs = F.cross_entropy(
        LOGITS, torch.from_numpy(LABELS), torch.from_numpy(weights).float(), label_smoothing=smoothing
    )
    assert mean.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_gradient_is_softmax_minus_target():
    logits = LOGITS.clone().requires_grad_()
    criterion = task().criterion(LABELS, NAMES)
    criterion.losses(logits, torch.from_numpy(LABELS)).sum().backward()
    expected = LOGITS.softmax(1) - F.one_hot(torch.from_numpy(LABELS), 3)
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("settings", SETTINGS)
def test_rows_without_a_label_count_for_nothing(settings):
    criterion = task(**settings).criterion(LABELS, NAMES)
    more = np.append(LABELS, -1)
    logits = torch.cat([LOGITS, torch.full((1, 3), 9.0)]).requires_grad_()
    losses = criterion.losses(logits, torch.from_numpy(more))
    assert losses[-1] == 0 and criterion.weights(more)[-1] == 0
    assert criterion.weights(more).sum() == criterion.weights(LABELS).sum()
    losses.sum().backward()
    assert not logits.grad[-1].any() and logits.grad[:-1].any()


def test_half_precision_logits_are_judged_in_full():
    criterion = task().criterion(LABELS, NAMES)
    assert criterion.losses(LOGITS.bfloat16(), torch.from_numpy(LABELS)).dtype == torch.float32


def test_probabilities_decisions_descriptions():
    made = task()
    p = made.probabilities(LOGITS.numpy())
    np.testing.assert_allclose(p, LOGITS.double().softmax(1).numpy(), rtol=1e-6)
    assert p.dtype == np.float64
    assert made.decide(p).tolist() == LOGITS.argmax(1).tolist()
    told = made.describe(p, NAMES)
    assert [item["label"] for item in told] == [NAMES[place] for place in LOGITS.argmax(1)]
    assert sum(told[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert list(told[0]["probabilities"]) == list(NAMES)


def test_head():
    head = task().head(NAMES)
    assert (head.outputs, head.problem, head.names) == (3, "single_label_classification", NAMES)
    with pytest.raises(ConfigError, match="at least two labels"):
        task().head(["a"])
    with pytest.raises(ConfigError, match="at least two labels"):
        task(labels=["a"])


def test_encode():
    assert task().encode(["c", "a", None], NAMES).tolist() == [2, 0, -1]
