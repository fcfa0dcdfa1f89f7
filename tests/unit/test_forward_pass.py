"""Losses whose derivatives are written by hand: the same value and gradients as autograd finds, on every way."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from rl_lightning.agents import A2C, PPO
from rl_lightning.functional import normalize
from rl_lightning.nn import ActorCritic, Gaussian, forward_pass
from rl_lightning.nn.forward_pass import forward_pass as pass_forward

OBS = spaces.Box(-1.0, 1.0, (3,), np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "one number": spaces.Box(-1.0, 1.0, (), np.float32),
    "matrix": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(2),
}
ON_HOST = {"discrete", "box", "one number", "matrix"}
T, B = 6, 4


@pytest.fixture(params=["host", "torch"])
def way(request, monkeypatch):
    """Where small networks pass; on "torch" none does in NumPy."""
    if request.param == "torch":
        monkeypatch.setattr(forward_pass, "MAX_PRODUCTS", -1)
    return request.param


def built(agent, actions):
    torch.manual_seed(3)
    agent.build(OBS, actions)
    for parameter in agent.network.parameters():
        nn.init.normal_(parameter, std=0.4)  # policies that differ from state to state, and log_std from 0
    return agent


def rows(actions, *shape):
    """Observations and actions [*shape, ...]."""
    actions.seed(1)
    chosen = np.array([actions.sample() for _ in range(int(np.prod(shape)))])
    obs = torch.randn(*shape, *OBS.shape, generator=torch.Generator().manual_seed(1))
    return obs, torch.from_numpy(chosen).view(*shape, *actions.shape)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def gradients(agent, loss):
    return torch.autograd.grad(loss, [*agent.network.parameters()], retain_graph=True)


def learned(agent, batch):
    """The loss of one learning step, its gradients and its metrics."""
    losses = []
    metrics = agent.update(batch, lambda name, loss: losses.append((loss.item(), gradients(agent, loss))))
    return *losses[0], {name: value.item() for name, value in metrics.items()}


def agree(agent, batch, loss, metrics):
    """One learning step has this loss, its gradients and these metrics."""
    expected = gradients(agent, loss)
    given, found, said = learned(agent, batch)
    assert given == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert said.keys() >= metrics.keys()
    for name, value in metrics.items():
        assert said[name] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("arguments", [{}, {"clip_range_value": 0.3}, {"normalize_advantage": False}], ids=str)
@pytest.mark.parametrize("kind", ACTIONS)
def test_ppo_descends_the_gradient_of_the_clipped_objective(kind, arguments, way):
    agent = built(PPO(hidden_sizes=(8,), clip_range=0.1, entropy_weight=0.03, **arguments), ACTIONS[kind])
    obs, action = rows(ACTIONS[kind], 32)
    policy, value = agent.network(obs)
    old = policy.log_prob(action).detach() + 0.2 * random(32)
    given, target = random(32), value.detach() + random(32)
    batch = {"obs": obs, "action": action, "log_prob": old, "advantage": given, "return": target}

    advantage = normalize(given) if agent.normalize_advantage else given
    ratio = (policy.log_prob(action) - old).exp()
    clipped = ratio.clamp(0.9, 1.1)
    policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    error = (value - target).square()
    if agent.clip_range_value is not None:
        before = target - given
        error = torch.maximum(error, (before + (value - before).clamp(-0.3, 0.3) - target).square())
    entropy, value_loss = policy.entropy().mean(), error.mean()
    metrics = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "clip_fraction": (ratio != clipped).float().mean(),
        "approx_kl": (ratio - 1 - ratio.log()).mean(),
    }
    assert 0.1 < metrics["clip_fraction"] < 0.9
    agree(agent, batch, policy_loss + agent.value_weight * value_loss - 0.03 * entropy, metrics)


@pytest.mark.parametrize("leaves_out", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"normalize_advantage": True}, {"v_trace": True}], ids=str)
@pytest.mark.parametrize("kind", ACTIONS)
def test_a2c_descends_the_gradient_of_the_policy_s_return(kind, arguments, leaves_out, way):
    agent = built(A2C(hidden_sizes=(8,), entropy_weight=0.03, trace_decay=0.9, **arguments), ACTIONS[kind])
    obs, action = rows(ACTIONS[kind], T, B)
    batch = {
        "obs": obs,
        "action": action,
        "reward": random(T, B),
        "next_obs": random(T, B, 3),
        "terminated": random(T, B) > 1.0,
        "truncated": random(T, B) < -1.0,
        "log_prob": random(T, B) - 1.0,
    }
    if leaves_out:
        batch["valid"] = random(B, T).T > -1.0
        assert 0 < int(batch["valid"].sum()) < T * B
    kept = batch.get("valid", torch.ones(T, B, dtype=torch.bool)).flatten()

    policy, value = agent.network(obs.flatten(0, 1))
    log_prob, entropy = policy.log_prob(action.flatten(0, 1)), policy.entropy()
    now = (each.detach().view(T, B) for each in (value, log_prob))
    target, advantage = (each.flatten()[kept] for each in agent.targets(batch, *now))
    if agent.normalize_advantage:
        advantage = normalize(advantage)
    policy_loss = -(log_prob[kept] * advantage).mean()
    value_loss, entropy = F.mse_loss(value[kept], target), entropy[kept].mean()
    rest = (target - value[kept].detach()).var(correction=0)
    metrics = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "explained_variance": 1 - rest / target.var(correction=0),
    }
    agree(agent, batch, policy_loss + agent.value_weight * value_loss - 0.03 * entropy, metrics)


def is_on_host(network, obs, action):
    return pass_forward(network, obs, action).xp is np


@pytest.mark.parametrize("kind", ACTIONS)
def test_small_networks_pass_in_numpy(kind):
    agent = built(PPO(), ACTIONS[kind])
    assert is_on_host(agent.network, *rows(ACTIONS[kind], 256)) == (kind in ON_HOST)
    for dtype in (torch.float64, torch.bfloat16):
        obs, action = rows(ACTIONS[kind], 8)
        assert not is_on_host(agent.network.to(dtype), obs.to(dtype), action)
    assert not is_on_host(built(PPO(hidden_sizes=(400, 400)), ACTIONS[kind]).network, *rows(ACTIONS[kind], 64))


@pytest.mark.parametrize(("num_rows", "in_numpy"), [(64, True), (65, False)])
def test_products_that_numpy_would_take_threads_for_are_torch_s(num_rows, in_numpy):
    agent = built(PPO(), ACTIONS["box"])
    with torch.profiler.profile() as profile:
        found = pass_forward(agent.network, *rows(ACTIONS["box"], num_rows))
        found.loss(0.0, log_prob=found.log_prob, entropy=1.0, value=found.value).backward()
    assert found.xp is np
    products = {event.key for event in profile.key_averages()} & {"aten::mm", "aten::addmm", "aten::matmul", "aten::mv"}
    assert (not products) == in_numpy


WATCHED = ["", "encoder", "policy_layers", "value_layers", "policy_layers.0", "policy_layers.5"]


@pytest.mark.parametrize("where", WATCHED)
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_who_watches_a_layer_is_told(where, register):
    agent, seen = built(PPO(), ACTIONS["discrete"]), []
    module = agent.network.get_submodule(where)
    getattr(module, register)(lambda module, *given: seen.append(module))
    obs, action = rows(ACTIONS["discrete"], 16)
    learned(
        agent, {"obs": obs, "action": action, "log_prob": random(16), "advantage": random(16), "return": random(16)}
    )
    assert seen == [module]


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_who_watches_a_layer_s_gradient_is_told():
    agent, seen = built(PPO(), ACTIONS["discrete"]), []
    agent.network.value_layers[2].register_full_backward_hook(lambda module, *given: seen.append(module))
    obs, action = rows(ACTIONS["discrete"], 16)
    learned(
        agent, {"obs": obs, "action": action, "log_prob": random(16), "advantage": random(16), "return": random(16)}
    )
    assert seen == [agent.network.value_layers[2]]


@pytest.mark.parametrize("num_rows", [8, 256])
def test_mixed_precision_is_torch_s(num_rows):
    agent = built(PPO(), ACTIONS["discrete"])
    obs, action = rows(ACTIONS["discrete"], num_rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = pass_forward(agent.network, obs, action)
        found.loss(torch.tensor(0.0), log_prob=found.log_prob, entropy=1.0, value=found.value).backward()
    assert found.xp is torch
    assert all(parameter.grad.dtype == torch.float32 for parameter in agent.network.parameters())


def test_a_network_of_one_s_own_is_asked():
    class Own(ActorCritic):
        def forward(self, obs):
            policy, value = super().forward(obs)
            return policy, value + 1.0

    obs, action = rows(ACTIONS["discrete"], 8)
    network = Own(OBS, ACTIONS["discrete"], hidden_sizes=(8,), activation="tanh")
    found = pass_forward(network, obs, action)
    assert found.xp is torch
    torch.testing.assert_close(found.value, network.value(obs).detach() + 1.0)


def test_parameters_that_changed_in_between_are_noticed(way):
    agent = built(PPO(), ACTIONS["box"])
    found = pass_forward(agent.network, *rows(ACTIONS["box"], 8))
    loss = found.loss(torch.tensor(0.0), log_prob=found.log_prob, entropy=1.0, value=found.value)
    with torch.no_grad():
        agent.network.value_layers[0].weight.add_(1.0)
        agent.network.value_layers[2].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_derivative_is_refused(way):
    agent = built(PPO(), ACTIONS["box"])
    found = pass_forward(agent.network, *rows(ACTIONS["box"], 8))
    loss = found.loss(torch.tensor(0.0), log_prob=found.log_prob, entropy=1.0, value=found.value)
    weight = agent.network.value_layers[0].weight
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(loss, weight, create_graph=True)


def test_frozen_parameters_get_no_gradient(way):
    agent = built(PPO(), ACTIONS["discrete"])
    agent.network.policy_layers[0].requires_grad_(False)
    found = pass_forward(agent.network, *rows(ACTIONS["discrete"], 8))
    found.loss(torch.tensor(0.0), log_prob=found.log_prob, entropy=1.0, value=found.value).backward()
    without = [name for name, parameter in agent.network.named_parameters() if parameter.grad is None]
    assert without == ["policy_layers.0.weight", "policy_layers.0.bias"]


def test_unlikely_actions_stay_finite():
    """Logits that differ by more than float32 has room for in an exponential."""
    agent = built(PPO(hidden_sizes=()), ACTIONS["discrete"])
    with torch.no_grad():
        agent.network.policy_layers[0].weight.zero_()
        agent.network.policy_layers[0].bias.copy_(torch.tensor([0.0, 200.0, -200.0]))
    found = pass_forward(agent.network, torch.zeros(3, 3), torch.arange(3))
    assert found.xp is np
    assert found.log_prob.tolist() == [-200.0, 0.0, -400.0] and found.entropy.tolist() == [0.0, 0.0, 0.0]
    found.loss(0.0, log_prob=np.ones(3, np.float32), entropy=1.0, value=found.value).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in agent.network.parameters())


def test_gaussian_on_host_is_gaussian():
    agent = built(PPO(), ACTIONS["matrix"])
    obs, action = rows(ACTIONS["matrix"], 16)
    found, policy = pass_forward(agent.network, obs, action), agent.network.policy(obs)
    assert isinstance(policy, Gaussian) and found.xp is np
    torch.testing.assert_close(torch.from_numpy(found.log_prob), policy.log_prob(action).detach())
    torch.testing.assert_close(torch.from_numpy(found.entropy), policy.entropy().detach())
    assert gym.spaces.utils.flatdim(ACTIONS["matrix"]) == 4
