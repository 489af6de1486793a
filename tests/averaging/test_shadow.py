"""A second set of values for what trains, and only that."""

import torch
from torch import nn

from whet.averaging.shadow import Shadow


def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    return model


def test_it_follows_only_what_trains():
    model = made()
    shadow = Shadow(model, "averaging")
    assert set(shadow.values) == {"0.bias", "1.weight", "1.bias"}
    before = {name: tensor.clone() for name, tensor in shadow.values.items()}
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(1.0)
    shadow.move(0.25)
    for name, old in before.items():
        torch.testing.assert_close(shadow.values[name], old + 0.25)
    shadow.move(1.0)
    assert all(torch.equal(shadow.values[name], tensor) for name, tensor in shadow.weights().items())


def test_worn_for_a_while_even_through_an_error():
    model = made()
    shadow = Shadow(model, "averaging")
    with torch.no_grad():
        model[1].bias.add_(1.0)
    own, other, parameter = model[1].bias.detach().clone(), shadow.values["1.bias"].clone(), model[1].bias
    try:
        with shadow.worn():
            assert torch.equal(model[1].bias, other) and model[1].bias is parameter
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(model[1].bias, own) and torch.equal(shadow.values["1.bias"], other)


def test_a_gradient_belongs_to_the_models_own_values():
    model = made()
    shadow = Shadow(model, "averaging")
    shadow.values["1.weight"].zero_()
    inputs = torch.ones(1, 3)
    with shadow.worn(), torch.no_grad():
        model(inputs)
    model(inputs).sum().backward()
    hidden = model[0](inputs)
    torch.testing.assert_close(model[1].weight.grad, hidden.detach().expand(2, 4))


def test_values_are_given_and_taken():
    model, other = made(), made()
    with torch.no_grad():
        other[1].weight.fill_(2.0)
    shadow = Shadow(model, "averaging")
    shadow.load(Shadow(other, "averaging").values)
    assert torch.equal(shadow.values["1.weight"], other[1].weight)
    shadow.give(shadow.values)
    assert torch.equal(model[1].weight, other[1].weight)
