"""Every agent solves small problems in a few hundred steps, driven by a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_lightning.agents import A2C, DDPG, DQN, PPO, REINFORCE, SAC, TD3, TRPO
from rl_lightning.types import Transition
from tests.unit.test_agents import optimizer_step

NUM_ENVS = 8


class Identity:
    """B envs that show a number and want it back: reward 1 where the action is right (or minus the distance to it)."""

    def __init__(self, action_space):
        self.action_space = action_space
        self.rng = np.random.default_rng(0)

    def draw(self):
        if isinstance(self.action_space, spaces.Discrete):
            return self.rng.integers(self.action_space.n, size=(NUM_ENVS, 1)).astype(np.float32)
        if isinstance(self.action_space, spaces.MultiDiscrete):
            return self.rng.integers(self.action_space.nvec, size=(NUM_ENVS, 2)).astype(np.float32)
        if isinstance(self.action_space, spaces.MultiBinary):
            return self.rng.integers(2, size=(NUM_ENVS, self.action_space.n)).astype(np.float32)
        return self.rng.uniform(-1, 1, size=(NUM_ENVS, 1)).astype(np.float32)

    def reward(self, obs, action):
        distance = np.abs(obs - action.reshape(obs.shape).astype(np.float32))
        if isinstance(self.action_space, spaces.Box):
            return -distance.mean(axis=1)
        return (distance == 0).mean(axis=1, dtype=np.float32)


def mean_reward_after(agent, action_space, num_steps):
    """Train for `num_steps` steps of 8 envs, then act for the best 25 times."""
    torch.manual_seed(0)
    env = Identity(action_space)
    obs = env.draw()
    agent.build(spaces.Box(-10.0, 10.0, obs.shape[1:], np.float32), action_space)
    memory, step = agent.make_memory(NUM_ENVS), optimizer_step(agent)
    memory.rng = np.random.default_rng(0)
    ends = np.ones(NUM_ENVS, dtype=np.bool_)
    for t in range(num_steps):
        for name, (start, stop, steps) in agent.schedules().items():
            agent.set_value(name, start + (stop - start) * min(t * NUM_ENVS / steps, 1))
        with torch.inference_mode():
            action, extras = agent.act(torch.from_numpy(obs), explore=True)
        reward, next_obs = env.reward(obs, action.numpy()), env.draw()
        extras = {name: extra.numpy() for name, extra in extras.items()}
        memory.add(Transition(obs, action.numpy(), reward, next_obs, ends, ~ends, extras))
        for batch in memory.batches():
            agent.update(batch, step)
        obs = next_obs
    rewards = []
    for _ in range(25):
        obs = env.draw()
        action, _ = agent.act(torch.from_numpy(obs), explore=False)
        rewards.append(env.reward(obs, action.numpy()).mean())
    return float(np.mean(rewards))


PROBLEMS = {
    "discrete": (spaces.Discrete(3), 0.95),
    "multi-discrete": (spaces.MultiDiscrete([2, 3]), 0.9),
    "multi-binary": (spaces.MultiBinary(3), 0.9),
    "box": (spaces.Box(-1.0, 1.0, (1,), np.float32), -0.25),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_ppo_learns_to_repeat(problem):
    action_space, wanted = PROBLEMS[problem]
    agent = PPO(lr=3e-3, num_steps=16, num_epochs=8, num_minibatches=2, hidden_sizes=(32,))
    assert mean_reward_after(agent, action_space, 400) >= wanted


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a2c_learns_to_repeat(problem):
    action_space, wanted = PROBLEMS[problem]
    agent = A2C(lr=3e-3, num_steps=4, hidden_sizes=(32,), normalize_advantage=True)
    assert mean_reward_after(agent, action_space, 1600) >= wanted


@pytest.mark.parametrize("problem", PROBLEMS)
def test_trpo_learns_to_repeat(problem):
    action_space, wanted = PROBLEMS[problem]
    agent = TRPO(lr=3e-3, num_steps=16, max_kl=0.1, damping=0.01, num_epochs=2, num_minibatches=2, hidden_sizes=(32,))
    assert mean_reward_after(agent, action_space, 800) >= wanted


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_reinforce_learns_to_repeat(problem, baseline):
    action_space, wanted = PROBLEMS[problem]
    agent = REINFORCE(lr=3e-3, num_episodes=32, baseline=baseline, hidden_sizes=(32,))
    assert mean_reward_after(agent, action_space, 1600) >= wanted


RAINBOW = {"double": True, "dueling": True, "prioritized": True, "noisy": True, "distribution": "categorical"}
FLAGS = {
    "plain": {},
    "double": {"double": True},
    "dueling": {"dueling": True},
    "n-step": {"num_steps": 3},
    "prioritized": {"prioritized": True},
    "noisy": {"noisy": True},
    "categorical": {"distribution": "categorical", "value_range": (0.0, 1.0), "num_atoms": 11},
    "quantile": {"distribution": "quantile", "num_atoms": 11},
    "implicit": {"distribution": "implicit", "num_atoms": 8},
    "rainbow": {**RAINBOW, "value_range": (0.0, 1.0), "num_atoms": 11, "num_steps": 3},
}


@pytest.mark.parametrize("name", FLAGS)
def test_dqn_learns_to_repeat(name):
    pace = {"learning_starts": 64, "update_every": 8, "updates_per_step": 0.125, "target_update_every": 50}
    agent = DQN(lr=3e-3, epsilon_steps=1000, hidden_sizes=(32,), **pace, **FLAGS[name])
    assert mean_reward_after(agent, spaces.Discrete(3), 500) >= 0.95


REPLAY = {"lr": 3e-3, "discount": 0.9, "learning_starts": 200, "updates_per_step": 0.125, "hidden_sizes": (32,)}


@pytest.mark.parametrize("problem", ["discrete", "box"])
def test_sac_learns_to_repeat(problem):
    action_space, wanted = PROBLEMS[problem]
    assert mean_reward_after(SAC(**REPLAY, entropy_weight=0.1, batch_size=64), action_space, 500) >= wanted


@pytest.mark.parametrize("make", [TD3, DDPG])
def test_deterministic_policies_learn_to_repeat(make):
    action_space, wanted = PROBLEMS["box"]
    assert mean_reward_after(make(**REPLAY, batch_size=64), action_space, 500) >= wanted


@pytest.mark.parametrize("name", ["plain", "prioritized", "categorical", "quantile", "implicit", "rainbow"])
def test_dqn_sees_past_the_first_reward(name):
    """Corridor 0..4: left pays 0.1 and ends, right pays 1 at the far end. Only by bootstrapping is right the better."""
    torch.manual_seed(0)
    pace = {"learning_starts": 100, "update_every": 2, "updates_per_step": 0.5, "target_update_every": 20}
    flags = FLAGS[name] | {"num_steps": 1}  # returns of several steps would be of the random actions among them
    agent = DQN(lr=3e-3, discount=0.9, epsilon_steps=1500, batch_size=32, hidden_sizes=(32,), **pace, **flags)
    agent.build(spaces.Discrete(5), spaces.Discrete(2))
    memory, step, state = agent.make_memory(1), optimizer_step(agent), 0
    memory.rng = np.random.default_rng(0)
    for t in range(1500):
        agent.set_value("epsilon", max(1 - t / 1500, 0.2))
        with torch.inference_mode():
            action = agent.act(torch.tensor([state]), explore=True)[0].numpy()
        follows = state + 1 if action[0] else state
        ends = action[0] == 0 or follows == 4
        reward = 0.1 if action[0] == 0 else float(follows == 4)
        arrays = [np.array([x]) for x in (state, action[0], np.float32(reward), follows, ends, False)]
        memory.add(Transition(*arrays, extras={}))
        for batch in memory.batches():
            agent.update(batch, step)
        state = 0 if ends else follows
    values = agent.returns.mean(agent.network(torch.arange(4)))
    assert values.argmax(dim=1).tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(values[:, 1], torch.tensor([0.729, 0.81, 0.9, 1.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(values[:, 0], torch.full((4,), 0.1), atol=0.1, rtol=0)
