"""Packed optimizers: torch's numbers, state and behaviour, in fewer kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rl_lightning.clipping import clip_and_step
from rl_lightning.optim import Adam, PackedOptimizer, RMSprop

PAIRS = {
    "adam": (
        lambda p: Adam(p, lr=1e-2, eps=1e-5, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-2, eps=1e-5, weight_decay=1e-3),
    ),
    "rmsprop": (
        lambda p: RMSprop(p, lr=1e-2, alpha=0.9, eps=1e-5),
        lambda p: torch.optim.RMSprop(p, lr=1e-2, alpha=0.9, eps=1e-5),
    ),
}


def twins(name: str):
    """The same network twice, with our optimizer and with torch's."""
    ours, theirs = PAIRS[name]
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    twin = copy.deepcopy(network)
    return (network, ours(network.parameters())), (twin, theirs(twin.parameters()))


def learn(network, optimizer, x, *, limit=0.1, quick=False):
    optimizer.zero_grad()
    network(x).square().mean().backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if quick:
        clip_and_step(optimizer, parameters, limit, None)
    else:
        if not (isinstance(optimizer, PackedOptimizer) and optimizer.clip_norm(limit)):
            nn.utils.clip_grad_norm_(parameters, limit)
        optimizer.step()


def assert_same(ours, theirs):
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_the_same_numbers_as_torch(name, quick):
    ours, theirs = twins(name)
    for _ in range(50):
        x = torch.randn(16, 4)
        learn(*ours, x, quick=quick)
        learn(*theirs, x)
    assert ours[1]._packs is not None
    assert_same(ours[0], theirs[0])


@pytest.mark.parametrize("name", PAIRS)
def test_state_goes_to_torch_and_back(name):
    ours, theirs = twins(name)
    x = torch.randn(16, 4)
    for _ in range(3):
        learn(*ours, x), learn(*theirs, x)
    saved, expected = copy.deepcopy((ours[1].state_dict(), theirs[1].state_dict()))
    assert saved["state"].keys() == expected["state"].keys()
    for mine, their in zip(saved["state"].values(), expected["state"].values(), strict=True):
        assert mine.keys() == their.keys()
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-6)
    (network, optimizer), (twin, other) = twins(name)
    network.load_state_dict(ours[0].state_dict()), twin.load_state_dict(ours[0].state_dict())
    optimizer.load_state_dict(expected), other.load_state_dict(saved)
    for _ in range(3):
        learn(network, optimizer, x), learn(twin, other, x), learn(*ours, x)
    assert_same(network, twin)
    assert_same(network, ours[0])


@pytest.mark.parametrize("name", PAIRS)
def test_a_copy_goes_its_own_way(name):
    (network, optimizer), _ = twins(name)
    x = torch.randn(16, 4)
    learn(network, optimizer, x)
    twin, twin_optimizer = copy.deepcopy((network, optimizer))
    before = copy.deepcopy(network.state_dict())
    for _ in range(2):
        learn(twin, twin_optimizer, x)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    for _ in range(2):
        learn(network, optimizer, x)
    assert_same(network, twin)


def test_parameters_that_move_are_followed():
    (network, optimizer), (twin, other) = twins("adam")
    for step in range(4):
        x = torch.randn(16, 4)
        if step == 2:
            for parameter in network.parameters():
                parameter.data = parameter.data.clone()
        learn(network, optimizer, x), learn(twin, other, x)
    assert_same(network, twin)


def test_a_parameter_without_gradient_is_left_alone():
    ours, theirs = twins("adam")
    x = torch.randn(16, 4)
    for network, optimizer in (ours, theirs):
        learn(network, optimizer, x)
        network[0].requires_grad_(False)
        for _ in range(3):
            learn(network, optimizer, x)
    assert_same(ours[0], theirs[0])


def test_several_groups_and_one_added_later():
    pairs = []
    for make in (Adam, torch.optim.Adam):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 2))
        groups = [{"params": network[0].parameters(), "lr": 1e-2}, {"params": network[2].parameters(), "lr": 1e-3}]
        optimizer = make(groups, lr=1.0)
        x = torch.randn(16, 4)
        for step in range(6):
            if step == 3:
                optimizer.add_param_group({"params": list(network[3].parameters()), "lr": 0.1})
            learn(network, optimizer, x)
        pairs.append(network)
    assert_same(*pairs)


def test_parameters_of_several_dtypes_are_stepped_by_torch():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    optimizer = Adam(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    assert not optimizer.clip_norm(1.0)
    optimizer.step()
    assert all(parameter.tolist() == pytest.approx([0.9, 0.9]) for parameter in parameters)


def test_accumulated_gradients():
    (network, optimizer), (twin, other) = twins("adam")
    for _ in range(3):
        for one, its in ((network, optimizer), (twin, other)):
            torch.manual_seed(1)
            its.zero_grad()
            for _ in range(3):
                one(torch.randn(16, 4)).square().mean().backward()
            its.step()
            one(torch.randn(16, 4)).square().mean().backward()  # onto gradients that are packed by now
            its.step()
    assert_same(network, twin)


def test_step_hooks_run():
    (network, optimizer), _ = twins("adam")
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    learn(network, optimizer, torch.randn(16, 4), quick=True)
    assert calls == ["after"]


def test_a_schedule_sees_the_steps():
    (network, optimizer), _ = twins("adam")
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
    learn(network, optimizer, torch.randn(16, 4), quick=True)
    schedule.step()  # warns, and so fails, where it sees no step before
    assert optimizer.param_groups[0]["lr"] > 1e-2 / 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_stay_so(value):
    (network, optimizer), _ = twins("adam")
    network(torch.randn(16, 4)).sum().backward()
    network[0].bias.grad[0] = value
    assert optimizer.clip_norm(1.0)
    assert not all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_step_between_forward_and_backward_is_an_error():
    (network, optimizer), _ = twins("adam")
    x = torch.randn(5_000, 4)
    learn(network, optimizer, x)
    loss = network(x).square().mean()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99), (0.5, 0.0)])
def test_the_formula_for_the_compiler_gives_the_same_numbers(betas):
    parameter, moments = torch.ones(5), [torch.zeros(5), torch.zeros(5)]
    other = torch.nn.Parameter(torch.ones(5))
    ours, torch_s = (make([other], lr=0.1, betas=betas) for make in (Adam, torch.optim.Adam))
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 5):
        other.grad = torch.randn(5, generator=generator)
        lr, count = torch.tensor(0.1), torch.tensor(float(step))
        ours.formula(ours.param_groups[0], parameter, other.grad, moments, count, lr)
        torch_s.step()
        torch.testing.assert_close(parameter, other.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_memory_that_lies_side_by_side_is_kept(name):
    """So it can be shared: another optimizer over the same memory steps the same numbers and the same state."""
    (network, optimizer), _ = twins(name)
    optimizer.pack()
    other = copy.deepcopy(network)
    for parameter, shared in zip(other.parameters(), network.parameters(), strict=True):
        parameter.data = shared.data
    second = PAIRS[name][0](other.parameters())
    for parameter, shared in zip(other.parameters(), network.parameters(), strict=True):
        second.state[parameter] = dict(optimizer.state[shared])
    learn(other, second, torch.randn(16, 4))
    for parameter, shared in zip(other.parameters(), network.parameters(), strict=True):
        assert parameter.data_ptr() == shared.data_ptr()
        assert optimizer.state[shared]["step"].item() == 1
        for moment in optimizer.MOMENTS:
            assert optimizer.state[shared][moment].count_nonzero() > 0
