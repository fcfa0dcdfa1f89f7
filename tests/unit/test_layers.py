"""Layers give what `nn.Sequential` gives, whichever way they go."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from rl_lightning.nn import Layers, layers

MAKERS = {
    "tanh": lambda: [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)],
    "relu": lambda: [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU()],
    "two in a row": lambda: [nn.Linear(4, 8), nn.Linear(8, 3), nn.Tanh(), nn.ReLU()],
    "others later": lambda: [nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)],
    "others first": lambda: [nn.LayerNorm(4), nn.Linear(4, 3)],
    "activation first": lambda: [nn.Tanh(), nn.Linear(4, 3)],
    "no bias": lambda: [nn.Linear(4, 3, bias=False)],
    "none": lambda: [],
}
HOST = {"tanh", "relu", "two in a row", "others later"}


def is_on_host(network: Layers, x: torch.Tensor) -> bool:
    """Whether some of it ran in NumPy: then it never reaches `F.linear`."""
    with torch.no_grad(), torch.profiler.profile() as profile:
        network(x)
    return not any(event.key == "aten::linear" for event in profile.key_averages())


@pytest.mark.parametrize("rows", [0, 1, 8, 5_000])
@pytest.mark.parametrize("name", MAKERS)
def test_the_same_values_and_gradients_as_sequential(name, rows):
    network = Layers(*MAKERS[name]())
    reference = nn.Sequential(*network)
    x = torch.randn(rows, 4)
    with torch.no_grad():
        torch.testing.assert_close(network(x), reference(x))
    given, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn_like(reference(x))
    (network(given) * weights).sum().backward()
    ours = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    (reference(expected) * weights).sum().backward()
    torch.testing.assert_close(given.grad, expected.grad)
    torch.testing.assert_close(ours, [parameter.grad for parameter in network.parameters()])


@pytest.mark.parametrize("name", sorted(HOST))
def test_the_same_second_derivatives_as_sequential(name):
    """Of a penalty on the gradient of the input, and of a product with the gradient of the parameters."""
    network, x = Layers(*MAKERS[name]()), torch.randn(6, 4)
    found = []
    for each in (network, nn.Sequential(*network)):
        given = x.clone().requires_grad_()
        hidden = given.sin()  # the gradient of the input goes on
        inputs = [given, *network.parameters()]
        first = torch.autograd.grad(each(hidden).square().sum(), inputs, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        found.append([*first, *torch.autograd.grad(penalty, inputs)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_a_layer_may_be_passed_twice_and_differentiated_twice():
    network, x = Layers(nn.Linear(3, 3), nn.Tanh()), torch.randn(5, 3)
    found = []
    for each in (network, nn.Sequential(*network)):
        first = torch.autograd.grad(each(each(x)).sum(), [*network.parameters()], create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        found.append([*first, *torch.autograd.grad(penalty, [*network.parameters()])])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_small_batches_of_plain_layers_pass_on_the_host():
    for name in HOST - {"others later"}:
        assert is_on_host(Layers(*MAKERS[name]()), torch.randn(8, 4))
    assert not is_on_host(Layers(*MAKERS["tanh"]()), torch.randn(layers.MAX_PRODUCTS, 4))
    assert not is_on_host(Layers(*MAKERS["tanh"]()).double(), torch.randn(8, 4, dtype=torch.float64))


def test_parameters_may_change_move_and_be_replaced():
    network, x = Layers(*MAKERS["tanh"]()), torch.randn(3, 4)
    reference = nn.Sequential(*network)

    def agree():
        with torch.no_grad():
            torch.testing.assert_close(network(x), reference(x))

    agree()
    with torch.no_grad():
        network[0].weight.add_(1.0)
    agree()
    network[0].weight.data = torch.randn(8, 4)
    agree()
    network[2].bias = nn.Parameter(torch.randn(8))
    agree()
    network.load_state_dict(Layers(*MAKERS["tanh"]()).state_dict())
    agree()
    network.load_state_dict(Layers(*MAKERS["tanh"]()).state_dict(), assign=True)
    agree()
    network[4] = nn.Linear(8, 3)
    reference[4] = network[4]
    agree()


@pytest.mark.parametrize("remake", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_is_a_network_of_its_own(remake):
    network, x = Layers(*MAKERS["tanh"]()), torch.randn(3, 4)
    with torch.no_grad():
        before = network(x)
        twin = remake(network)
        twin[0].weight.zero_()
        assert torch.equal(network(x), before)
        assert not torch.equal(twin(x), before)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_a_layer_are_called(register):
    network, calls = Layers(*MAKERS["tanh"]()), []
    with torch.no_grad():
        network(torch.randn(3, 4))
        handle = getattr(network[2], register)(lambda *_: calls.append(1))
        network(torch.randn(3, 4))
        assert calls == [1]
        handle.remove()
        network(torch.randn(3, 4))
        assert calls == [1]


def test_backward_hooks_on_a_layer_are_called():
    network, calls = Layers(*MAKERS["tanh"]()), []
    network[2].register_full_backward_hook(lambda *_: calls.append(1))
    network(torch.randn(3, 4)).sum().backward()
    assert calls == [1]


def test_weight_normalisation_is_seen():
    network, x = Layers(*MAKERS["tanh"]()), torch.randn(3, 4)
    nn.utils.parametrizations.weight_norm(network[0])
    with torch.no_grad():
        network[0].parametrizations.weight.original0.mul_(2.0)
        torch.testing.assert_close(network(x), nn.Sequential(*network)(x))


def test_vmap_and_functional_call():
    network, x = Layers(*MAKERS["tanh"]()), torch.randn(5, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(network)(x), nn.Sequential(*network)(x))
    zeros = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    with torch.no_grad():
        assert not torch.func.functional_call(network, zeros, (x[0],)).any()


def test_a_change_between_forward_and_backward_is_an_error():
    network = Layers(*MAKERS["tanh"]())
    y = network(torch.randn(3, 4)).sum()
    with torch.no_grad():
        network[2].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
