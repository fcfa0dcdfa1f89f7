"""Pure maths: hand-computed numbers first, then what must hold for any numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rl_lightning.functional import (
    categorical_projection,
    conjugate_gradient,
    explained_variance,
    gae,
    hard_update,
    normalize,
    polyak_update,
    quantile_huber,
    sum_to_end,
    v_trace,
)
from rl_lightning.types import ShapeError


def column(*values: float) -> Tensor:
    """[T, 1], one env."""
    return torch.tensor(values)[:, None]


def test_two_steps_by_hand():
    """Reward 1 twice, zero values, discount 0.5: first 1 + 0.5 * 1 = 1.5, then 1."""
    one, zero = torch.ones(2, 1), torch.zeros(2, 1)
    last = torch.tensor([[False], [True]])
    assert gae(one, zero, zero, last, last, discount=0.5, trace_decay=1.0).tolist() == [[1.5], [1.0]]


def test_trace_decay_weighs_the_td_errors():
    """V = 1, 2, 3 and 4 after; rewards 0, discount 1: each delta is 1, summed with weights 1, 1/2, 1/4."""
    value, next_value, never = column(1, 2, 3), column(2, 3, 4), torch.zeros(3, 1, dtype=torch.bool)
    advantage = gae(torch.zeros(3, 1), value, next_value, never, never, discount=1.0, trace_decay=0.5)
    assert advantage.flatten().tolist() == [1.75, 1.5, 1.0]


@pytest.mark.parametrize(("is_terminated", "expected"), [(True, 1.0 - 2.0), (False, 1.0 + 0.5 * 10.0 - 2.0)])
def test_only_truncation_bootstraps(is_terminated, expected):
    """The episode ends in row 0 with reward 1, V(s) = 2 and V(s') = 10; discount 0.5."""
    done = torch.tensor([[True], [False]])
    terminated = done & torch.tensor(is_terminated)
    reward, value, next_value = column(1, 7), column(2, 7), column(10, 7)
    advantage = gae(reward, value, next_value, terminated, done, discount=0.5, trace_decay=0.95)
    assert advantage[0].item() == expected


def test_a_terminated_state_may_have_any_value():
    done = torch.ones(1, 1, dtype=torch.bool)
    advantage = gae(column(1.0), column(0.0), column(float("inf")), done, done, discount=0.9, trace_decay=0.9)
    assert advantage.item() == 1.0


def test_gae_names_the_shapes_that_differ():
    zero, never = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"value \(3,\).*done \(3, 2\)"):
        gae(zero, torch.zeros(3), zero, never, never, discount=0.9, trace_decay=0.9)


@st.composite
def rollouts(draw):
    num_steps, num_envs = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    reward, value, next_value = torch.randn(3, num_steps, num_envs, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, num_steps, num_envs, generator=generator) < 0.2
    return reward, value, next_value, terminated, terminated | truncated


@given(rollouts(), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_sum_written_out(rollout, discount, trace_decay):
    """A_t = sum_k (discount * trace_decay)^k delta_{t+k}, up to and with the episode's last step."""
    reward, value, next_value, terminated, done = rollout
    advantage = gae(*rollout, discount=discount, trace_decay=trace_decay)
    for t in range(reward.shape[0]):
        for b in range(reward.shape[1]):
            expected = 0.0
            for k in range(reward.shape[0] - t):
                follows = 0.0 if terminated[t + k, b] else next_value[t + k, b].item()
                delta = reward[t + k, b].item() + discount * follows - value[t + k, b].item()
                expected += (discount * trace_decay) ** k * delta
                if done[t + k, b]:
                    break
            assert advantage[t, b].item() == pytest.approx(expected, abs=1e-9)


@given(rollouts(), st.floats(0, 1))
def test_envs_do_not_see_each_other(rollout, trace_decay):
    together = gae(*rollout, discount=0.9, trace_decay=trace_decay)
    for b in range(together.shape[1]):
        alone = gae(*(field[:, b : b + 1] for field in rollout), discount=0.9, trace_decay=trace_decay)
        assert torch.equal(alone, together[:, b : b + 1])


def test_normalize():
    """1, 2, 3, 4: mean 2.5 and population variance 1.25."""
    x = normalize(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(x, torch.tensor([-1.5, -0.5, 0.5, 1.5]) / 1.25**0.5)
    assert normalize(torch.tensor([3.0])).tolist() == [0.0]


def test_explained_variance():
    target = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(target, target) == 1
    assert explained_variance(target + 5, target) == 1  # a constant error leaves the variance explained
    assert explained_variance(torch.zeros(4), target) == 0
    assert explained_variance(-target, target) == -3  # the error is twice the target: 1 - 4
    assert explained_variance(target, torch.ones(4)) == 0


def linear(weight: float) -> nn.Linear:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, -weight)
    return layer


def test_polyak_moves_a_fraction_of_the_way():
    target, online = linear(0.0), linear(10.0)
    polyak_update(target, online, tau=0.1)
    assert (target.weight.item(), target.bias.item()) == (1.0, -1.0)
    polyak_update(target, online, tau=0.5)
    assert (target.weight.item(), online.weight.item()) == (5.5, 10.0)


def test_hard_update_copies_parameters_and_buffers():
    target, online = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    online(torch.randn(8, 2))
    nn.init.constant_(online.weight, 3.0)
    hard_update(target, online)
    for ours, theirs in zip(target.state_dict().values(), online.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_networks_of_different_depth_are_refused():
    with pytest.raises(ValueError, match="the target has 2 parameters, .* 4"):
        polyak_update(nn.Sequential(linear(0.0)), nn.Sequential(linear(0.0), linear(0.0)), tau=0.5)


# --- distributions of the return ---


def test_probability_is_shared_with_the_atoms_next_to_it():
    """Atoms 0, 2, 4: 0.5 lies a quarter of the way from 0 to 2; 7 counts as 4, -3 as 0, and 2 is one itself."""
    atoms, probability = torch.tensor([0.0, 2.0, 4.0]), torch.tensor([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2]])
    moved = torch.tensor([[0.5, 7.0, 2.0], [-3.0, 4.0, 3.0]])
    projected = categorical_projection(probability, moved, atoms)
    torch.testing.assert_close(projected, torch.tensor([[0.3, 0.3, 0.4], [0.4, 0.1, 0.5]]))


numbers = st.floats(-20, 20, width=32)


@given(st.integers(2, 9), st.data())
def test_projection_keeps_the_sum_and_follows_the_paper(num_atoms, data):
    low = data.draw(st.floats(-9, 9, width=32))
    atoms = torch.linspace(low, low + data.draw(st.floats(0.5, 9, width=32)), num_atoms)
    rows = st.lists(numbers, min_size=num_atoms, max_size=num_atoms)
    moved = torch.tensor([data.draw(rows), data.draw(rows)])
    probability = torch.tensor([data.draw(rows), data.draw(rows)]).softmax(dim=1)
    projected = categorical_projection(probability, moved, atoms)
    distance = (moved.clamp(atoms[0], atoms[-1])[:, None, :] - atoms[:, None]).abs() / (atoms[1] - atoms[0])
    expected = ((1 - distance).clamp(0, 1) * probability[:, None, :]).sum(dim=2)
    torch.testing.assert_close(projected, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(projected.sum(dim=1), torch.ones(2))


def test_quantile_errors_by_hand():
    """Quantile 0 of fraction 1/4 is 0.5 and 3 too low: 1/4 * (0.125 + 2.5) / 2. Quantile 1 of fraction 3/4 is 0.5 too
    high and 2 too low: (1/4 * 0.125 + 3/4 * 1.5) / 2."""
    quantile, fraction, target = torch.tensor([[0.0, 1.0]]), torch.tensor([0.25, 0.75]), torch.tensor([[0.5, 3.0]])
    expected = torch.tensor([0.328125 + 0.578125])
    torch.testing.assert_close(quantile_huber(quantile, fraction, target), expected)
    torch.testing.assert_close(quantile_huber(quantile, fraction[None], target), expected)


def test_the_threshold_of_quantile_errors():
    """Error 3, fraction 1: beyond 2 it is 2 * (3 - 1), and all is divided by 2."""
    zero, one = torch.zeros(1, 1), torch.ones(1)
    torch.testing.assert_close(quantile_huber(zero, one, torch.tensor([[3.0]]), threshold=2.0), torch.tensor([2.0]))


def test_quantiles_that_minimise_the_error_are_those_of_the_target():
    """Of the numbers 0 to 99 a tenth lies below 10, nine tenths below 90; a small threshold counts only the side."""
    quantile, target = torch.full((1, 2), 50.0, requires_grad=True), torch.arange(100.0)[None]
    optimizer = torch.optim.SGD([quantile], lr=2.0)
    for _ in range(2000):
        optimizer.zero_grad()
        quantile_huber(quantile, torch.tensor([0.1, 0.9]), target, threshold=0.01).backward()
        optimizer.step()
    torch.testing.assert_close(quantile.detach(), torch.tensor([[9.5, 89.5]]), atol=1.0, rtol=0)


# --- conjugate gradient ---


def test_two_products_solve_two_equations():
    """4 x + y = 1, x + 3 y = 2: x = 1/11, y = 7/11."""
    matrix, right = torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])
    x = conjugate_gradient(matrix.mv, right, num_steps=2)
    torch.testing.assert_close(x, torch.tensor([1 / 11, 7 / 11]))
    assert right.tolist() == [1.0, 2.0]


def test_the_first_step_goes_along_the_right_side():
    """To where the residual has nothing left of it: length 5 / (r A r) = 5 / 20."""
    matrix, right = torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(conjugate_gradient(matrix.mv, right, num_steps=1), right * 0.25)


def test_nothing_is_done_where_nothing_is_left_to_do():
    def product(vector):
        raise AssertionError("no product is needed")

    assert conjugate_gradient(product, torch.zeros(3), num_steps=5).tolist() == [0.0] * 3


@given(st.integers(1, 8), st.integers(0, 2**31))
def test_it_solves_what_is_well_conditioned(size, seed):
    generator = torch.Generator().manual_seed(seed)
    root, right = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((size, size), (size,)))
    matrix = root @ root.T + torch.eye(size, dtype=torch.float64)
    x = conjugate_gradient(matrix.mv, right, num_steps=5 * size, tolerance=1e-20)
    torch.testing.assert_close(matrix @ x, right, atol=1e-6, rtol=0)


def test_v_trace_by_hand():
    """Two steps, discount 0.5, values 1 and 2, 4 after the last; rewards 1 and 3; ratios 2 (clipped to 1) and 0.5.

    deltas: 1 * (1 + 0.5 * 2 - 1) = 1 and 0.5 * (3 + 0.5 * 4 - 2) = 1.5; v_1 = 2 + 1.5 = 3.5,
    v_0 = 1 + 1 + 0.5 * 1 * 1.5 = 2.75; A_1 = 0.5 * (3 + 0.5 * 4 - 2) = 1.5, A_0 = 1 + 0.5 * 3.5 - 1 = 1.75.
    """
    column = lambda *numbers: torch.tensor(numbers)[:, None]  # noqa: E731
    no = torch.zeros(2, 1, dtype=torch.bool)
    log_ratio = column(2.0, 0.5).log()
    args = column(1.0, 3.0), column(1.0, 2.0), column(2.0, 4.0)
    target, advantage = v_trace(*args, no, no, log_ratio, discount=0.5)
    assert target.flatten().tolist() == pytest.approx([2.75, 3.5])
    assert advantage.flatten().tolist() == pytest.approx([1.75, 1.5])


@pytest.mark.parametrize(("terminated", "expected"), [(True, 1.0), (False, 6.0)])
def test_v_trace_bootstraps_over_truncation_alone_and_never_crosses_an_end(terminated, expected):
    """Reward 1, V(s') = 10, discount 0.5; what follows in the next row is another episode's."""
    column = lambda *numbers: torch.tensor(numbers)[:, None]  # noqa: E731
    done = torch.tensor([[True], [False]])
    args = column(1.0, 100.0), column(0.0, 0.0), column(10.0, 0.0)
    target, advantage = v_trace(*args, done & terminated, done, torch.zeros(2, 1), discount=0.5)
    assert target[0].item() == expected and advantage[0].item() == expected


def test_v_trace_on_policy_is_gae_with_lambda_one():
    torch.manual_seed(0)
    reward, value, after = torch.randn(3, 6, 2)
    terminated, truncated = torch.rand(2, 6, 2) < 0.2
    done = terminated | truncated
    value_of_next = torch.where(done, after, value.roll(-1, 0))
    target, advantage = v_trace(
        reward, value, value_of_next, terminated, done, torch.zeros(6, 2), discount=0.9, trace_decay=1.0
    )
    expected = gae(reward, value, value_of_next, terminated, done, discount=0.9, trace_decay=1.0)
    torch.testing.assert_close(target - value, expected)
    torch.testing.assert_close(advantage, expected)


def test_sums_to_the_end_by_hand():
    """Rewards 1, 2, 4, 8, discount 0.5, an episode ends with the second: 1 + 1, 2; 4 + 4, 8."""
    reward = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    done = torch.tensor([[False], [True], [False], [False]])
    total, num_rewards, last = sum_to_end(reward, done, discount=0.5)
    assert total.flatten().tolist() == [2.0, 2.0, 8.0, 8.0]
    assert num_rewards.flatten().tolist() == [2, 1, 2, 1]
    assert last.flatten().tolist() == [1, 1, 3, 3]
