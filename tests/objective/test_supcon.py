"""The contrastive loss against a double loop; pooling against slices."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.model.architectures import HEAD, tiny
from tests.objective.bag import TASKS, Bag, batch_of, descend, naive, same, task_of

from whet.errors import ConfigError
from whet.objective.plain import plain
from whet.objective.supcon import SupCon, contrast, pool
from whet.paths import Paths
from whet.peft.base import apply
from whet.peft.linear_probe import linear_probe
from whet.peft.lora import lora


def loops(vectors, labels, temperature):
    """Equation 2, term by term."""
    unit = [v / v.norm() for v in vectors]
    found = []
    for i, z in enumerate(unit):
        alike = [j for j in range(len(unit)) if j != i and labels[j] == labels[i] >= 0]
        others = [k for k in range(len(unit)) if k != i and labels[k] >= 0]
        below = sum(math.exp(float(z @ unit[k]) / temperature) for k in others)
        terms = [-math.log(math.exp(float(z @ unit[j]) / temperature) / below) for j in alike]
        found.append(sum(terms) / len(terms) if terms else 0.0)
    return found


def test_contrast_against_loops():
    torch.manual_seed(0)
    vectors, labels = torch.randn(9, 4, dtype=torch.double), torch.tensor([0, 1, 1, 2, -1, 0, 1, -1, 0])
    for temperature in (0.1, 0.7):
        found = contrast(vectors, labels, temperature)
        assert found.tolist() == pytest.approx(loops(vectors, labels, temperature), rel=1e-4)
    assert found[3] == found[4] == 0, "no other text has that label"


@pytest.mark.parametrize("labels", [[0], [-1], [0, 1], [-1, -1]])
def test_nothing_to_compare_is_no_error(labels):
    vectors = torch.randn(len(labels), 4, requires_grad=True)
    loss = contrast(vectors, torch.tensor(labels), 0.3).sum()
    loss.backward()
    assert loss.item() == 0 and (vectors.grad == 0).all()


@pytest.mark.parametrize("left", [False, True])
def test_pooling(left):
    batch = batch_of(left=left)
    mask = batch.inputs["attention_mask"]
    states = torch.randn(*mask.shape, 5)
    texts = [row[real.bool()] for row, real in zip(states, mask, strict=True)]
    for how, take in (("mean", lambda t: t.mean(0)), ("first", lambda t: t[0]), ("last", lambda t: t[-1])):
        torch.testing.assert_close(pool(states, mask, how), torch.stack([take(text) for text in texts]))


@pytest.mark.parametrize("kind", ["single_label", "binary"])
def test_the_sum(kind):
    model, batch = Bag(TASKS[kind][1]), batch_of(kind)
    found = model(**batch.inputs, output_hidden_states=True)
    task = task_of(kind).criterion(batch.labels.numpy(), ("a", "b", "c"))
    apart = contrast(
        pool(found.hidden_states[-1], batch.inputs["attention_mask"], "first"), batch.labels, 0.2
    )
    total = 0.3 * task.losses(found.logits, batch.labels).sum() + 0.7 * apart.sum()
    objective = SupCon(weight=0.7, temperature=0.2, pooling="first")
    objective.check(task_of(kind))
    expected = naive(model, total)
    same(descend(objective, model, batch, kind), expected)
    for other in ({"weight": 0.6}, {"temperature": 0.4}, {"pooling": "last"}):
        changed = SupCon(**{"weight": 0.7, "temperature": 0.2, "pooling": "first", **other})
        assert descend(changed, model, batch, kind)[0] != pytest.approx(expected[0], rel=1e-4)
    same(descend(SupCon(weight=0.0), model, batch, kind), descend(plain, model, batch, kind))


def test_where_only_the_head_trains_it_is_refused(cache):
    loaded = tiny("bert").load(HEAD, Paths(cache=str(cache)))
    with pytest.raises(ConfigError, match="hidden states can't move apart"):
        SupCon().prepare(SimpleNamespace(model=apply(linear_probe, loaded)))
    loaded = tiny("bert").load(HEAD, Paths(cache=str(cache)))
    SupCon().prepare(SimpleNamespace(model=apply(lora, loaded)))
