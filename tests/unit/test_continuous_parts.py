"""The parts of continuous control: bounds, squashed distributions, critics side by side, exploration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from rl_lightning.nn import (
    ActionBounds,
    Critics,
    OrnsteinUhlenbeckNoise,
    Policy,
    SquashedGaussian,
    SquashedGaussianHead,
    UniformWarmUp,
    make_noise,
)
from rl_lightning.types import ConfigurationError

SPACE = spaces.Box(np.float32([[-2.0, 0.0], [1.0, -8.0]]), np.float32([[2.0, 1.0], [3.0, 8.0]]))
OBS = spaces.Box(-1.0, 1.0, (3,), np.float32)


def test_bounds_map_the_ends_and_the_middle_and_back():
    bounds = ActionBounds(SPACE)
    action = torch.tensor([[-1.0] * 4, [0.0] * 4, [1.0] * 4])
    in_env = bounds.to_env(action)
    np.testing.assert_array_equal(in_env[0], SPACE.low)
    np.testing.assert_array_equal(in_env[1], (SPACE.low + SPACE.high) / 2)
    np.testing.assert_array_equal(in_env[2], SPACE.high)
    torch.testing.assert_close(bounds.from_env(in_env), action)
    np.testing.assert_array_equal(bounds.to_env_on_host(action.numpy()), in_env)


def test_an_action_of_no_dimensions():
    bounds = ActionBounds(spaces.Box(np.float32(-3.0), np.float32(3.0), ()))
    assert bounds.size == 1
    in_env = bounds.to_env(torch.tensor([[0.5], [1.0]]))
    assert in_env.tolist() == [1.5, 3.0] and bounds.from_env(in_env).tolist() == [[0.5], [1.0]]


def test_the_squashed_density_is_that_of_the_transformed_normal():
    torch.manual_seed(0)
    mean, log_std = torch.randn(2, 500, 3, dtype=torch.float64)
    action, log_prob = SquashedGaussian(mean, log_std).sample_with_log_prob()
    reference = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    inside = action.abs().amax(dim=1) < 0.9999  # further out its inverse loses all digits
    torch.testing.assert_close(log_prob[inside], reference.log_prob(action).sum(dim=1)[inside], rtol=1e-6, atol=1e-6)
    assert 300 < inside.sum() < 500


def test_the_squashed_density_is_finite_where_tanh_is_1():
    action, log_prob = SquashedGaussian(torch.full((1, 1), 50.0), torch.full((1, 1), -20.0)).sample_with_log_prob()
    assert action.item() == 1.0 and 90 < log_prob.item() < 130


def test_samples_follow_the_given_numbers():
    torch.manual_seed(0)
    policy = SquashedGaussianHead()(torch.tensor([[0.3, -0.7]]).expand(50_000, 2))
    before = policy.sample().double().atanh()
    assert before.mean().item() == pytest.approx(0.3, abs=0.01)
    assert before.std().log().item() == pytest.approx(-0.7, abs=0.02)
    assert policy.mode()[0].item() == pytest.approx(np.tanh(0.3))


def test_a_deviation_has_limits():
    head = SquashedGaussianHead()
    assert head(torch.tensor([[0.0, 99.0]])).log_std.item() == 2.0
    assert head(torch.tensor([[0.0, -99.0]])).log_std.item() == -20.0


@pytest.mark.parametrize("explore", [False, True])
def test_the_host_acts_as_the_head_does(explore):
    policy = Policy(OBS, 4, head=SquashedGaussianHead(), hidden_sizes=(16,))
    obs = torch.randn(5, 3)
    torch.manual_seed(1)
    distribution = policy(obs)
    expected = distribution.sample() if explore else distribution.mode()
    torch.manual_seed(1)
    action = policy.layers[-1].act_on_host(policy.on_host(obs.numpy()), explore=explore)
    np.testing.assert_allclose(action, expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_tanh_policy_is_whole_on_the_host():
    policy = Policy(OBS, 2, head=torch.nn.Tanh(), hidden_sizes=(16,))
    obs = torch.randn(5, 3)
    np.testing.assert_allclose(policy.on_host(obs.numpy()), policy(obs).detach(), rtol=1e-5, atol=1e-6)


# --- critics ---


def test_each_critic_is_a_network_of_its_own():
    critics, obs, action = (
        Critics(OBS, action_size=2, num_critics=2, hidden_sizes=(8, 4)),
        torch.randn(5, 3),
        torch.randn(5, 2),
    )
    values = critics(obs, action)
    assert values.shape == (2, 5)
    for m in range(2):
        x = torch.cat([obs, action], dim=1)
        for weight, bias in zip(critics.weights, critics.biases, strict=True):
            x = torch.nn.functional.linear(x, weight[m].T, bias[m, 0])
            x = x.relu() if x.shape[1] > 1 else x
        torch.testing.assert_close(values[m], x.squeeze(1))
    assert not torch.allclose(values[0], values[1])


def test_critics_begin_as_linear_layers_do():
    torch.manual_seed(0)
    critics = Critics(OBS, action_size=1, num_critics=3, hidden_sizes=(400,))
    for k, limit in ((0, 0.5), (1, 0.05)):  # 1 / sqrt(inputs)
        for tensor in (critics.weights[k], critics.biases[k]):
            assert tensor.abs().max() <= limit
        assert critics.weights[k].abs().max() > 0.95 * limit


def test_a_fixed_critic_passes_gradients_to_the_action_alone():
    critics = Critics(OBS, action_size=2, num_critics=2, hidden_sizes=(8,))
    obs, action = torch.randn(5, 3), torch.randn(5, 2, requires_grad=True)
    values = critics.fixed(obs, action, num_critics=1)
    torch.testing.assert_close(values, critics(obs, action)[:1])
    values.sum().backward()
    assert action.grad.any() and all(parameter.grad is None for parameter in critics.parameters())


def test_values_of_all_actions_at_once():
    critics = Critics(OBS, action_size=0, num_outputs=3, num_critics=2, hidden_sizes=(8,))
    assert critics(torch.randn(5, 3)).shape == (2, 5, 3)


# --- exploration ---


def test_the_warm_up_is_uniform_and_ends():
    torch.manual_seed(0)
    warm_up, given = UniformWarmUp(6_000), torch.full((3_000, 1), 7.0)
    first, second = warm_up(given), warm_up(given)
    assert -1 <= first.min() < -0.99 and 0.99 < second.max() <= 1 and abs(first.mean()) < 0.05
    assert torch.equal(warm_up(given), given)
    choices = UniformWarmUp(1, num_actions=3)(torch.full((3_000,), 5))
    assert choices.dtype == torch.int64 and choices.bincount().tolist() == pytest.approx([1_000] * 3, abs=100)


def test_what_is_left_of_the_warm_up_is_saved():
    warm_up, other = UniformWarmUp(5), UniformWarmUp(5)
    warm_up(torch.zeros(4, 1))
    other.load_state_dict(warm_up.state_dict())
    assert other.steps_left == 1


@pytest.mark.parametrize("name", ["gaussian", "ornstein_uhlenbeck"])
def test_noise_stays_within_the_bounds_and_leaves_what_it_is_given(name):
    torch.manual_seed(0)
    noise, given = make_noise(name), torch.full((1_000, 2), 0.9)
    action = noise(given, torch.tensor(0.5))
    assert action.max() == 1.0 and action.min() < 0.0 and torch.equal(given, torch.full((1_000, 2), 0.9))
    assert torch.equal(make_noise(name)(given, torch.tensor(0.0)), given)


def test_gaussian_noise_has_the_given_deviation():
    torch.manual_seed(0)
    action = make_noise("gaussian")(torch.zeros(50_000, 1), torch.tensor(0.1))
    assert action.std().item() == pytest.approx(0.1, abs=0.002)


def test_wandering_noise_remembers_for_each_env():
    """Stationary variance std^2 / (1 - (1 - theta)^2), correlation 1 - theta from step to step."""
    torch.manual_seed(0)
    noise, zero = OrnsteinUhlenbeckNoise(), torch.zeros(20_000, 1)
    for _ in range(50):
        before = noise(zero, torch.tensor(0.1))
    after = noise(zero, torch.tensor(0.1))
    assert after.std().item() == pytest.approx(0.1 / (1 - 0.85**2) ** 0.5, rel=0.03)
    assert torch.corrcoef(torch.cat([before, after], dim=1).T)[0, 1].item() == pytest.approx(0.85, abs=0.01)
    assert noise(torch.zeros(2, 1), torch.tensor(0.0)).tolist() == [[0.0], [0.0]]  # other envs: it begins anew


def test_an_unknown_noise_is_named():
    with pytest.raises(ConfigurationError, match="'pink'.*'gaussian' and 'ornstein_uhlenbeck'"):
        make_noise("pink")
