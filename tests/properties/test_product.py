"""PEFT methods × architectures × objectives, through the engine's own updates.

`make test` takes every method with every objective, on architectures in turn; `make properties` the whole product.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from tests.model.architectures import HEAD, TRUTHS, tiny
from tests.properties.test_objectives import made_of, stepper_of
from tests.properties.test_peft import ARCHITECTURES, METHODS, OWN, REFUSED, method_of

from whet.objective.plain import plain
from whet.paths import Paths
from whet.peft.base import apply, trained_names

OBJECTIVES = ("plain", "fgm", "freelb", "rdrop")
PRODUCT = [
    (method, architecture, objective)
    for method in METHODS
    for architecture in ARCHITECTURES
    for objective in OBJECTIVES
    if (method, architecture) not in REFUSED
]


def is_quick(method, architecture, objective):
    """Every method meets every objective, on another architecture each time."""
    places = [METHODS.index(method), OBJECTIVES.index(objective)]
    turn = [name for name in ARCHITECTURES if (method, name) not in REFUSED]
    return turn[sum(places) % len(turn)] == architecture


CASES = [
    pytest.param(*case, marks=() if is_quick(*case) else pytest.mark.slow, id="-".join(case))
    for case in PRODUCT
]


def test_the_product_is_whole():
    refused = sum(architecture in ARCHITECTURES for _, architecture in REFUSED)
    assert len(PRODUCT) == (len(METHODS) * len(ARCHITECTURES) - refused) * len(OBJECTIVES) > 400
    quick = [case for case in PRODUCT if is_quick(*case)]
    assert len({(method, objective) for method, _, objective in quick}) == len(METHODS) * len(OBJECTIVES)
    assert {architecture for _, architecture, _ in quick} == set(ARCHITECTURES)


@functools.cache
def pretrained(architecture, cache):
    torch.manual_seed(1)
    return tiny(architecture, dropout=0.1).load(HEAD, Paths(cache=cache))


def trained(method, architecture, objective, cache):
    """(weights before, weights after, names that train) of four updates with the same random numbers."""
    loaded = copy.copy(pretrained(architecture, cache))
    loaded.model = copy.deepcopy(loaded.model)
    torch.manual_seed(2)
    model = apply(method_of(method), loaded)
    names = trained_names(model)
    made = stepper_of(
        plain if objective == "plain" else made_of(objective, model, loaded.tokenizer),
        model,
        loaded.tokenizer,
    )
    for group in made.optimizer.param_groups:
        group["base_lr"] = group["lr"] = 5e-3 if method in OWN else 2e-2
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    torch.manual_seed(3)
    for update in list(made.plan)[:4]:
        made.update(update)
    return before, {name: tensor.detach().clone() for name, tensor in model.named_parameters()}, names


@functools.cache
def plainly(method, architecture, cache):
    return trained(method, architecture, "plain", cache)[1]


@pytest.mark.parametrize(("method", "architecture", "objective"), CASES)
def test_method_architecture_and_objective(method, architecture, objective, cache):
    """What trains moves, what doesn't stays to the bit, and the objective makes a difference."""
    before, after, names = trained(method, architecture, objective, str(cache))
    for name, tensor in after.items():
        assert torch.isfinite(tensor).all()
        assert name in names or torch.equal(tensor, before[name]), name
    moved = [name for name in names if not torch.equal(after[name], before[name])]
    assert len(moved) > 0.5 * len(names), sorted(set(names) - set(moved))
    assert set(TRUTHS[architecture].head) <= set(moved)
    if objective != "plain":
        other = plainly(method, architecture, str(cache))
        assert max((after[name] - other[name]).abs().max().item() for name in names) > 1e-6
