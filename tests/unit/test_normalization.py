"""Running statistics against all rows at once; each transition counts once, and what was acted on is learned from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rl_lightning.agents import A2C, DDPG, PPO, SAC, TD3, TRPO
from rl_lightning.nn import Normalization, RunningMoments
from rl_lightning.types import ConfigurationError, Transition
from tests.unit import test_agents_learn
from tests.unit.test_agents import BOX, TWO, built
from tests.unit.test_agents_learn import Identity, mean_reward_after

PAIR = spaces.Box(-np.inf, np.inf, (2,), np.float32)


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6), offset=st.sampled_from([0.0, 300.0]))
def test_moments_are_those_of_all_rows_together(sizes, offset):
    rows = torch.from_numpy(np.random.default_rng(0).normal(offset, 3.0, size=(sum(sizes), 2)).astype(np.float32))
    moments = RunningMoments((2,))
    for part in rows.split(sizes):
        moments.update(part)
    assert moments.count == len(rows)
    if len(rows):
        torch.testing.assert_close(moments.mean, rows.mean(dim=0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments.variance, rows.var(dim=0, correction=0), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(moments.scale, (moments.variance + 1e-8) ** -0.5)
    else:
        assert moments.mean.tolist() == [0.0, 0.0] and moments.scale.tolist() == pytest.approx([1.0, 1.0])


def test_observations_by_hand():
    """0 and 4: mean 2, deviation 2. A number that never changes is 0, and what is far away is clipped."""
    normalization = Normalization(PAIR, obs=True, reward=False)
    assert normalization.obs(torch.tensor([[3.0, -99.0]])).tolist() == [[3.0, -10.0]]
    normalization.update(torch.tensor([[0.0, 5.0], [4.0, 5.0]]))
    assert normalization.obs(torch.tensor([[6.0, 5.0], [2.0, 5.1]])).tolist() == [[2.0, 0.0], [0.0, 10.0]]


def test_the_host_gives_the_same_bits():
    rows = torch.randn(1_000, 3, generator=torch.manual_seed(0)) * 7 + 40
    normalization = Normalization(BOX, obs=True, reward=False)
    normalization.update(rows[:500])
    assert torch.equal(torch.from_numpy(normalization.obs_on_host(rows.numpy())), normalization.obs(rows))


def test_only_floats_are_normalised():
    parts = {"image": spaces.Box(0, 255, (3, 4, 4), np.uint8), "a.b": PAIR, "choice": spaces.Discrete(3)}
    normalization = Normalization(spaces.Dict(parts), obs=True, reward=False)
    obs = {"image": torch.ones(2, 3, 4, 4, dtype=torch.uint8), "a.b": torch.ones(2, 2), "choice": torch.tensor([1, 2])}
    normalization.update(obs)
    for normalized in (
        normalization.obs(obs),
        normalization.obs_on_host({name: part.numpy() for name, part in obs.items()}),
    ):
        assert normalized["a.b"].tolist() == [[0.0, 0.0], [0.0, 0.0]]
        assert all((normalized[name] == obs[name].numpy()).all() for name in ("image", "choice"))
    with pytest.raises(ConfigurationError, match=r"normalize_obs=True: .* no Box of floats"):
        Normalization(spaces.Dict({"image": parts["image"]}), obs=True, reward=False)


def test_nothing_is_done_and_nothing_saved_unless_it_is_asked_for():
    normalization = Normalization(PAIR, obs=False, reward=False)
    obs = torch.ones(2, 2)
    assert normalization.obs(obs) is obs and not normalization.state_dict()
    rollout = {"obs": obs, "reward": torch.ones(2)}
    assert normalization.rollout(rollout) == rollout


def make_rollout(obs, reward, terminated, truncated=None, valid=None):
    terminated = torch.tensor(terminated)
    rollout = {
        "obs": torch.tensor(obs),
        "next_obs": torch.tensor(obs) + 1,
        "reward": torch.tensor(reward),
        "terminated": terminated,
        "truncated": torch.zeros_like(terminated) if truncated is None else torch.tensor(truncated),
    }
    return rollout if valid is None else {**rollout, "valid": torch.tensor(valid)}


def test_a_rollout_is_normalised_as_it_was_acted_on_and_then_counts():
    normalization = Normalization(PAIR, obs=True, reward=False)
    normalization.update(torch.tensor([[0.0, 0.0], [4.0, 4.0]]))
    obs = [[[2.0, 4.0]], [[100.0, 100.0]]]
    rollout = normalization.rollout(make_rollout(obs, [[1.0], [5.0]], [[False], [False]], valid=[[True], [False]]))
    assert rollout["obs"][0].tolist() == [[0.0, 1.0]] and rollout["next_obs"][0].tolist() == [[0.5, 1.5]]
    assert rollout["reward"].tolist() == [[1.0], [5.0]]
    moments = normalization.obs_moments[0]
    assert moments.count == 3 and moments.mean.tolist() == pytest.approx([2.0, 8 / 3])


def test_rewards_by_hand():
    """Discount 0.5. Returns so far 2, 1 + 1 = 2 | new episode 4: their deviation is sqrt(8 / 9)."""
    normalization = Normalization(PAIR, obs=False, reward=True, discount=0.5)
    obs, reward = [[[0.0, 0.0]]] * 3, [[2.0], [1.0], [4.0]]
    scaled = normalization.rollout(make_rollout(obs, reward, [[False], [True], [False]]))["reward"]
    assert scaled.flatten().tolist() == pytest.approx([value / (8 / 9) ** 0.5 for value in (2.0, 1.0, 4.0)])


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_returns_go_on_from_rollout_to_rollout_but_not_over_the_end_of_an_episode(end):
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(12, 3)).astype(np.float32)
    over, valid = rng.random((12, 3)) < 0.2, rng.random((12, 3)) < 0.8
    never, obs = np.zeros_like(over), np.zeros((12, 3, 2), np.float32)
    ends = (over, never) if end == "terminated" else (never, over)
    normalization = Normalization(PAIR, obs=False, reward=True, discount=0.9)
    for part in (slice(0, 5), slice(5, 12)):
        fields = (obs, reward, *ends, valid)
        normalization.rollout(make_rollout(*(field[part].tolist() for field in fields)))
    returns, running = [], np.zeros(3)
    for t in range(12):
        running = 0.9 * running + reward[t] * valid[t]
        returns += running[valid[t]].tolist()
        running[over[t]] = 0.0
    assert normalization.return_moments.count == len(returns)
    assert normalization.return_moments.variance.item() == pytest.approx(np.var(returns), rel=1e-4)


def test_rewards_are_clipped():
    normalization = Normalization(PAIR, obs=False, reward=True)
    reward = [[0.0]] * 999 + [[100.0]]
    scaled = normalization.rollout(make_rollout([[[0.0, 0.0]]] * 1000, reward, [[True]] * 1000))["reward"]
    assert scaled.max() == 10.0


# --- agents ---


def rollout_of(agent, num_steps=8, num_envs=2):
    """Fill the agent's memory; returns what it learns from, and the log-probability of each action as it was taken."""
    rng = np.random.default_rng(1)
    memory, log_probs = agent.make_memory(num_envs), []
    for _ in range(num_steps):
        obs, next_obs = rng.normal(20, 5, size=(2, num_envs, 3)).astype(np.float32)
        with torch.inference_mode():
            action, extras = agent.act(torch.from_numpy(obs), explore=True)
            policy = agent.network.policy(agent.normalization.obs(torch.from_numpy(obs)))
            log_probs.append(policy.log_prob(action))
        never, reward = np.zeros(num_envs, bool), np.ones(num_envs, np.float32)
        memory.add(Transition(obs, action.numpy(), reward, next_obs, never, never, extras))
    return list(memory.batches()), torch.stack(log_probs)


def test_ppo_learns_from_the_very_probabilities_that_it_acted_with():
    agent = built(PPO(num_steps=8, num_epochs=1, num_minibatches=1, normalize_obs=True, normalize_reward=True))
    for rollout in range(1, 4):
        (batch,), log_prob = rollout_of(agent)
        assert torch.equal(batch["log_prob"], log_prob.flatten())
        assert agent.normalization.obs_moments[0].count == 16 * rollout
    assert batch["obs"].abs().max() < 5  # the first rollout was of numbers about 20


def test_a2c_learns_from_what_it_acted_on():
    agent = built(A2C(num_steps=8, normalize_obs=True))
    rollout_of(agent)
    (batch,), log_prob = rollout_of(agent)
    assert torch.equal(
        agent.network.policy(batch["obs"].flatten(0, 1)).log_prob(batch["action"].flatten()), log_prob.flatten()
    )


@pytest.mark.parametrize("make", [PPO, A2C, TRPO])
@pytest.mark.parametrize("action_space", [TWO, spaces.Box(-1.0, 1.0, (2,), np.float32)])
def test_acting_on_the_host_gives_the_same_actions(make, action_space):
    agent = built(make(normalize_obs=True, hidden_sizes=(16,)), action_space=action_space)
    obs = torch.randn(64, 3, generator=torch.manual_seed(0)) * 5 + 20
    agent.normalization.update(obs)
    agent.normalization.update(obs + 3)
    torch.manual_seed(1)
    by_torch = agent.act(obs, explore=False)[0]
    torch.testing.assert_close(torch.from_numpy(agent.act_on_host(obs.numpy(), explore=False)[0]), by_torch)


@pytest.mark.parametrize("make", [PPO, A2C, TRPO])
def test_neither_acting_nor_evaluation_changes_the_statistics(make):
    agent = built(make(normalize_obs=True, normalize_reward=True))
    before = {name: value.clone() for name, value in agent.normalization.state_dict().items()}
    with agent.evaluation_mode():
        agent.act(torch.ones(2, 3), explore=False)
    agent.act(torch.ones(2, 3), explore=True)
    agent.act_on_host(np.ones((2, 3), np.float32), explore=True)
    assert all(torch.equal(value, before[name]) for name, value in agent.normalization.state_dict().items())


class Unscaled(Identity):
    """The numbers that it shows are far from 0, and its rewards are large."""

    def draw(self):
        return super().draw() + 1000.0

    def reward(self, obs, action):
        return 500 * super().reward(obs - 1000.0, action)


@pytest.mark.parametrize(
    "agent",
    [
        lambda **flags: PPO(lr=3e-3, num_steps=16, num_epochs=8, num_minibatches=2, hidden_sizes=(32,), **flags),
        lambda **flags: A2C(lr=3e-3, num_steps=4, hidden_sizes=(32,), normalize_advantage=True, **flags),
    ],
    ids=["ppo", "a2c"],
)
def test_what_is_far_from_0_is_learned_with_normalisation_alone(agent, monkeypatch):
    monkeypatch.setattr(test_agents_learn, "Identity", Unscaled)
    flags = {"normalize_obs": True, "normalize_reward": True}
    assert mean_reward_after(agent(**flags), spaces.Discrete(3), 1000) >= 0.95 * 500
    assert mean_reward_after(agent(), spaces.Discrete(3), 1000) < 0.6 * 500


# --- agents that learn from replay ---

UNIT = spaces.Box(-1.0, 1.0, (2,), np.float32)
REPLAYING = pytest.mark.parametrize(
    ("make", "action_space"),
    [(SAC, UNIT), (SAC, TWO), (TD3, UNIT), (DDPG, UNIT)],
    ids=["sac", "sac, discrete", "td3", "ddpg"],
)


def copy_of_statistics(agent):
    return {name: value.clone() for name, value in agent.normalization.state_dict().items()}


@REPLAYING
def test_with_replay_it_is_exploring_that_counts(make, action_space):
    """On the host as off it: each observation once, after it was acted on."""
    agents = [built(make(normalize_obs=True, hidden_sizes=(16,)), action_space=action_space) for _ in range(2)]
    obs = torch.randn(40, 3, generator=torch.manual_seed(0)) * 5 + 20
    for rows in obs.split(8):
        agents[0].act(rows, explore=True)
        assert agents[1].act_on_host(rows.numpy(), explore=True) is not None
    first, second = (agent.normalization.obs_moments[0] for agent in agents)
    assert first.count == second.count == 40
    torch.testing.assert_close(first.mean, obs.mean(dim=0))
    for name, value in agents[0].normalization.state_dict().items():
        assert torch.equal(value, agents[1].normalization.state_dict()[name])
    before = copy_of_statistics(agents[0])
    with agents[0].evaluation_mode():
        agents[0].act(obs, explore=False)
        agents[0].act_on_host(obs.numpy(), explore=False)
    assert all(torch.equal(value, before[name]) for name, value in agents[0].normalization.state_dict().items())


@REPLAYING
def test_with_replay_it_learns_from_what_is_normalised_by_the_statistics_of_now(make, action_space):
    """The same losses as without, from a batch that was normalised by hand; and learning changes no statistics."""
    torch.manual_seed(0)
    agent = built(make(normalize_obs=True, hidden_sizes=(16,)), action_space=action_space)
    plain = built(make(hidden_sizes=(16,)), action_space=action_space)
    plain.load_state_dict(agent.state_dict(), strict=False)
    agent.normalization.update(torch.tensor([[10.0, 0.0, 5.0], [30.0, 4.0, 5.0]]))
    before = copy_of_statistics(agent)
    action = torch.tensor([0, 1]) if action_space is TWO else torch.tensor([[0.5, -0.5], [0.0, 1.0]])
    ends = torch.tensor([False, True])
    batch = {"action": action, "reward": torch.ones(2), "terminated": ends, "truncated": torch.zeros(2, dtype=bool)}
    raw = {"obs": torch.tensor([[20.0, 2.0, 5.0]] * 2), "next_obs": torch.tensor([[40.0, 6.0, 5.0]] * 2)}
    by_hand = {"obs": torch.zeros(2, 3), "next_obs": torch.tensor([[2.0, 2.0, 0.0]] * 2)}
    losses = []
    for each, fields in ((agent, raw), (plain, by_hand)):
        losses.append({})
        torch.manual_seed(1)
        each.update({**batch, **fields}, losses[-1].__setitem__)
    assert losses[0].keys() == losses[1].keys()
    torch.testing.assert_close(losses[0], losses[1])
    assert all(torch.equal(value, before[name]) for name, value in agent.normalization.state_dict().items())
    assert raw["obs"][0, 0] == 20.0


class FarAway(Identity):
    """The numbers that it shows are far from 0."""

    def draw(self):
        return super().draw() + 1000.0

    def reward(self, obs, action):
        return super().reward(obs - 1000.0, action)


@pytest.mark.parametrize("make", [SAC, TD3, DDPG])
def test_with_replay_what_is_far_from_0_is_learned_with_normalisation_alone(make, monkeypatch):
    monkeypatch.setattr(test_agents_learn, "Identity", FarAway)
    settings = {**test_agents_learn.REPLAY, "batch_size": 64, **({"entropy_weight": 0.1} if make is SAC else {})}
    box = spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert mean_reward_after(make(**settings, normalize_obs=True), box, 500) >= -0.25
    assert mean_reward_after(make(**settings), box, 500) < -0.4
