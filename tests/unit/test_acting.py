"""Acting on the host gives what acting through tensors gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_lightning import A2C, DQN, PPO, RLModule
from rl_lightning.agents.acting import make_actor
from rl_lightning.envs import EnvRecipe

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
CASES = {
    "ppo": (PPO, spaces.Discrete(4)),
    "a2c": (A2C, spaces.Discrete(4)),
    "gaussian": (PPO, spaces.Box(-0.5, 0.5, (2,), np.float32)),
    "shapeless": (PPO, spaces.Box(-0.5, 0.5, (), np.float32)),
    "dqn": (lambda: DQN(epsilon=0.5), spaces.Discrete(4)),
}
ELSEWHERE = {
    "several choices": (PPO(), BOX, spaces.MultiDiscrete([2, 3])),
    "bits": (PPO(), BOX, spaces.MultiBinary(2)),
    "choices observed": (PPO(), spaces.Discrete(3), spaces.Discrete(2)),
    "image": (PPO(), spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(2)),
    "parts": (PPO(), spaces.Dict(a=BOX), spaces.Discrete(2)),
    "dueling": (DQN(dueling=True), BOX, spaces.Discrete(2)),
    "noisy": (DQN(noisy=True), BOX, spaces.Discrete(2)),
    "distribution": (DQN(distribution="quantile"), BOX, spaces.Discrete(2)),
    "another activation": (PPO(activation="silu"), BOX, spaces.Discrete(2)),
    "large": (PPO(hidden_sizes=(2048, 2048)), BOX, spaces.Discrete(2)),
}


def built(agent, observation_space, action_space):
    RLModule(agent).build(observation_space, action_space)
    return agent


def actor(agent, *, explore):
    pool = EnvRecipe("CartPole-v1").make()  # what it acts in does not matter to our own agents
    return make_actor(agent, pool, explore=explore, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("num_envs", [1, 8])
@pytest.mark.parametrize("name", sorted(set(CASES) - {"dqn"}))
def test_the_same_draws(name, num_envs):
    make, action_space = CASES[name]
    agent = built(make(), BOX, action_space)
    obs = np.random.default_rng(0).normal(size=(num_envs, 3)).astype(np.float32)
    for explore in (True, False):
        torch.manual_seed(0)
        ours = [agent.act_on_host(obs, explore=explore) for _ in range(200)]
        torch.manual_seed(0)
        with torch.inference_mode():
            theirs = [agent.act(torch.from_numpy(obs), explore=explore) for _ in range(200)]
        for (action, extras), (expected, expected_extras) in zip(ours, theirs, strict=True):
            assert action.dtype == expected.numpy().dtype and extras.keys() == expected_extras.keys()
            np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-6)
            for key in extras:
                np.testing.assert_allclose(extras[key], expected_extras[key], rtol=1e-5, atol=1e-6)


def test_exploration_of_dqn_follows_the_same_law():
    agent = built(DQN(epsilon=0.5), BOX, spaces.Discrete(4))
    obs = np.zeros((5_000, 3), np.float32)
    greedy = agent.act_on_host(obs[:1], explore=False)[0][0]
    torch.manual_seed(0)
    actions = np.concatenate([agent.act_on_host(obs[:8], explore=True)[0] for _ in range(1_000)])
    share = np.bincount(actions, minlength=4) / len(actions)
    expected = np.full(4, 0.125)
    expected[greedy] += 0.5
    np.testing.assert_allclose(share, expected, atol=0.02)
    with torch.no_grad():
        assert agent.act(torch.zeros(1, 3), explore=False)[0].item() == greedy


@pytest.mark.parametrize("name", ELSEWHERE)
def test_whatever_it_is_not_made_for_goes_through_tensors(name):
    agent, observation_space, action_space = ELSEWHERE[name]
    agent = built(agent, observation_space, action_space)
    sample = observation_space.sample()
    obs = {"a": sample["a"][None]} if isinstance(sample, dict) else np.asarray(sample)[None]
    assert agent.act_on_host(obs, explore=True) is None
    action, _ = actor(agent, explore=True)(obs)
    assert action.shape[0] == 1


def test_who_overrides_act_is_asked_for_that():
    class Fixed(PPO):
        def act(self, obs, *, explore):
            return torch.full((len(obs),), 3), {}

    obs = np.zeros((2, 3), np.float32)
    assert actor(built(Fixed(), BOX, spaces.Discrete(4)), explore=True)(obs)[0].tolist() == [3, 3]
    agent = built(PPO(), BOX, spaces.Discrete(4))
    agent.act = lambda obs, explore: (torch.full((len(obs),), 2), {})
    assert actor(agent, explore=True)(obs)[0].tolist() == [2, 2]

    class OnHost(Fixed):
        def act_on_host(self, obs, *, explore):
            return np.full(len(obs), 1), {}

    assert actor(built(OnHost(), BOX, spaces.Discrete(4)), explore=True)(obs)[0].tolist() == [1, 1]


def test_hooks_on_the_encoder_and_the_layers_are_called():
    agent, obs, calls = built(PPO(), BOX, spaces.Discrete(4)), np.zeros((2, 3), np.float32), []
    act = actor(agent, explore=True)
    act(obs)
    for layer in (agent.network.encoder, agent.network.policy_layers[0], agent.network.policy_layers[-1]):
        handle = layer.register_forward_hook(lambda *_: calls.append(1))
        act(obs)
        handle.remove()
    assert calls == [1, 1, 1]
