"""Clipping, to the last bit as torch clips."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from rl_lightning.clipping import add_gradients, clip_norm


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).to(dtype)
    layers(torch.randn(32, 4, dtype=dtype)).square().sum().backward()
    return layers


def both(make, limit):
    ours, theirs = make(), make()
    clip_norm(list(ours.parameters()), limit)
    clip_grad_norm_(theirs.parameters(), limit)
    return [(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]


@pytest.mark.parametrize("limit", [0.5, 3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_numbers_as_torch(dtype, limit):
    assert all(torch.equal(a, b) for a, b in both(lambda: network(dtype), limit))


def test_gradients_of_several_dtypes():
    def mixed():
        return nn.ModuleList([network(), network(torch.float64)])

    assert all(torch.equal(a, b) for a, b in both(mixed, 0.5))


def test_parameters_without_gradients():
    def partly():
        module = network()
        module[0].weight.grad = None
        return module

    assert all(a is b is None or torch.equal(a, b) for a, b in both(partly, 0.5))
    clip_norm(list(nn.Linear(2, 2).parameters()), 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value):
    module = network()
    module[0].bias.grad[0] = value
    clip_norm(list(module.parameters()), 0.5)
    assert module[0].weight.grad.isnan().all() or (module[0].weight.grad == 0).all()


def test_given_gradients_add_up_and_frozen_parameters_get_none():
    shared, frozen = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2), requires_grad=False)
    add_gradients([shared, frozen, shared], [torch.tensor([1.0, 2.0]), torch.ones(2), torch.tensor([0.5, 0.5])])
    assert shared.grad.tolist() == [1.5, 2.5] and frozen.grad is None
