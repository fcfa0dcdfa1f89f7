"""Evaluation: which episodes count, how they are summed up, and that training does not notice."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from torch import nn

from rl_lightning import PPO, RLModule
from rl_lightning.agents import Agent
from rl_lightning.envs import EnvRecipe, SinglePool, VectorPool
from rl_lightning.evaluation import STATISTICS, EvaluationResult, evaluate
from rl_lightning.types import ConfigurationError, NonFiniteError
from tests.envs import Nested, Noisy, NotFiniteAt, Scripted


class Zero(Agent):
    """Action 0 for every env; remembers what it was shown, and under which circumstances."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.frozen = nn.Dropout(), nn.Dropout()
        self.train()
        self.frozen.eval()
        self.seen: list[Any] = []

    def act(self, obs: Any, *, explore: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert not explore and not self.training and torch.is_inference_mode_enabled()
        self.seen.append(obs)
        first = next(iter(obs.values())) if isinstance(obs, dict) else obs
        return torch.zeros(len(first), dtype=torch.long), {}

    build = update = configure_optimizers = make_memory = None  # evaluation asks for none of these


class Draws(Zero):
    """Draws from every global random generator while acting."""

    def act(self, obs: Any, *, explore: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.seen.append((torch.rand(1).item(), np.random.rand(), random.random()))
        return torch.zeros(len(obs), dtype=torch.long), {}


class Fails(Draws):
    def act(self, obs: Any, *, explore: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        super().act(obs, explore=explore)
        raise RuntimeError("out of memory")


def pool_of(*lengths: Any, mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any) -> VectorPool:
    factories = [functools.partial(Scripted, own, **kwargs) for own in lengths]
    return VectorPool(SyncVectorEnv(factories, autoreset_mode=mode))


# ---- which episodes count --------------------------------------------------------------------------------------------


def test_one_env_plays_so_many_episodes():
    env = Scripted((3, 1, 2), reward=0.5)
    result = evaluate(Zero(), SinglePool(env), num_episodes=3)
    assert (result.returns, result.lengths, env.steps) == ([1.5, 0.5, 1.0], [3, 1, 2], 6)


@pytest.mark.parametrize(("num_steps", "lengths"), [(2, [2]), (3, [3]), (5, [3]), (6, [3, 3]), (7, [3, 3])])
def test_one_env_plays_exactly_so_many_steps(num_steps, lengths):
    """Episodes of 3: the unfinished last one is dropped, unless it is the only one."""
    env = Scripted((3,))
    result = evaluate(Zero(), SinglePool(env), num_steps=num_steps)
    assert (result.lengths, result.returns, env.steps) == (lengths, [float(n) for n in lengths], num_steps)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(("num_episodes", "lengths"), [(1, [10]), (2, [10, 1]), (4, [10, 1, 1, 1])])
def test_the_earliest_started_episodes_count_not_the_first_to_finish(mode, num_episodes, lengths):
    """Env 0 plays episodes of 10, env 1 of 1: the first two to finish would both be of length 1."""
    assert evaluate(Zero(), pool_of((10,), (1,), mode=mode), num_episodes=num_episodes).lengths == lengths


def test_with_more_envs_than_episodes_the_others_do_not_count():
    result = evaluate(Zero(), pool_of((4,), (1,), (1,)), num_episodes=1)
    assert result.lengths == [4]


def test_episodes_that_start_together_are_numbered_by_env():
    """Both envs end at step 2: episode 2 is env 0's (of length 5), episode 3 is env 1's (of length 1)."""
    assert evaluate(Zero(), pool_of((2, 5), (2, 1)), num_episodes=4).lengths == [2, 2, 5, 1]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(
    ("num_steps", "lengths"), [(1, [1]), (2, [2]), (4, [2]), (5, [2, 3]), (6, [2, 3]), (7, [2, 3, 2]), (9, [2, 3, 2])]
)
def test_with_several_envs_the_earliest_episodes_that_fit_count(mode, num_steps, lengths):
    """Env 0 plays episodes of 2, env 1 of 3; in the order of starts 2, 3, 2, 3 (or 2, then 3): 2, 5, 7, 10 in all."""
    result = evaluate(Zero(), pool_of((2,), (3,), mode=mode), num_steps=num_steps)
    assert (result.lengths, result.returns) == (lengths, [float(n) for n in lengths])


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_max_episode_len_cuts_episodes_off(mode):
    """Env 0 is cut off at 3, env 1 ends by itself after 2."""
    episodes: list[Any] = []
    pool = pool_of((9,), (2,), mode=mode)
    result = evaluate(Zero(), pool, num_episodes=4, max_episode_len=3, on_episode=episodes.append)
    assert result.lengths == [3, 2, 2, 3] and result.returns == [3.0, 2.0, 2.0, 3.0]
    assert [(e.terminated, e.truncated) for e in episodes] == [
        (False, True),
        (True, False),
        (True, False),
        (False, True),
    ]


def test_max_episode_len_in_one_env_counts_a_cut_off_return():
    assert evaluate(Zero(), Scripted((9,), reward=2.0), num_episodes=2, max_episode_len=4).returns == [8.0, 8.0]


def test_max_episode_len_needs_envs_that_can_be_reset_one_by_one():
    pool = EnvRecipe("CartPole-v1", 2, "vector_entry_point").make()
    with pytest.raises(ConfigurationError, match="max_episode_len=5.*cannot reset some.*TimeLimit"):
        evaluate(Zero(), pool, num_episodes=1, max_episode_len=5)


@pytest.mark.parametrize("counts", [{}, {"num_episodes": 1, "num_steps": 1}])
def test_exactly_one_of_episodes_and_steps_is_needed(counts):
    with pytest.raises(ConfigurationError, match="exactly one"):
        evaluate(Zero(), Scripted(), **counts)


def built_ppo(**arguments: Any) -> RLModule:
    module = RLModule(PPO(hidden_sizes=(4,), **arguments))
    module.build(Scripted().observation_space, Scripted().action_space)
    return module


def test_a_module_is_evaluated_as_its_agent():
    module = built_ppo()
    assert evaluate(module, Scripted(), num_episodes=2).lengths == [3, 3]
    assert evaluate(module.agent, Scripted(), num_episodes=2).lengths == [3, 3]


def test_an_agent_that_was_not_built_is_named():
    with pytest.raises(ConfigurationError, match=r"PPO was not built, and has no network.*load_from_checkpoint"):
        evaluate(PPO(), Scripted(), num_episodes=1)


class Mistaken(Zero):
    def act(self, obs: Any, *, explore: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return obs.mean_of_all()


def test_an_agents_own_mistake_comes_through():
    with pytest.raises(AttributeError, match="mean_of_all"):
        evaluate(Mistaken(), Scripted(), num_episodes=1)


BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "fits"),
    [
        (BOX, spaces.Discrete(2), True),  # only its bounds differ
        (spaces.Box(-1.0, 1.0, (2,), np.float64), spaces.Discrete(2), True),
        (spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(2), False),
        (spaces.Box(0, 255, (2,), np.uint8), spaces.Discrete(2), False),
        (spaces.MultiDiscrete([3, 3]), spaces.Discrete(2), False),
        (spaces.Dict({"a": BOX}), spaces.Discrete(2), False),
        (BOX, spaces.Discrete(3), False),
    ],
)
def test_an_env_unlike_that_of_training_is_refused(observation_space, action_space, fits):
    env = Scripted(observation_space=observation_space, action_space=action_space)
    env.observe = lambda: np.zeros(2, observation_space.dtype)
    if fits:
        assert evaluate(built_ppo(), env, num_episodes=1).lengths == [3]
        return
    with pytest.raises(ConfigurationError, match="The agent was built for .*; the evaluation env .* has"):
        evaluate(built_ppo(), env, num_episodes=1)


def test_seeds_may_be_numpys():
    one, other = (evaluate(Zero(), Noisy, episode_seeds=seeds) for seeds in (np.arange(3), [0, 1, 2]))
    assert one.returns == other.returns


@pytest.mark.parametrize("counts", [{"num_episodes": 0}, {"num_steps": -1}])
def test_no_episodes_and_no_steps_are_refused(counts):
    with pytest.raises(ConfigurationError, match="at least 1"):
        evaluate(Zero(), Scripted(), **counts)


def test_an_env_in_the_middle_of_an_episode_is_reset_first():
    pool = pool_of((3,), (3,))
    pool.reset()
    pool.step(np.zeros(2, int))
    assert evaluate(Zero(), pool, num_steps=4).lengths == [3]
    assert evaluate(Zero(), pool, num_episodes=3).lengths == [3, 3, 3]


# ---- seeds and random generators -------------------------------------------------------------------------------------


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize("agent", [Draws(), Fails()], ids=["draws", "fails"])
def test_training_does_not_notice_an_evaluation(agent):
    before = states()
    try:
        evaluate(agent, Noisy(), num_episodes=2, seed=3)
    except RuntimeError:
        assert isinstance(agent, Fails)
    assert agent.seen and states() == before


def test_the_same_seed_gives_the_same_evaluation():
    agents, results = [Draws() for _ in range(3)], []
    for agent, seed in zip(agents, (3, 3, 4), strict=True):
        torch.rand(1), np.random.rand(), random.random()
        results.append(evaluate(agent, Noisy(), num_episodes=2, seed=seed))
    assert results[0] == results[1] and results[0].returns != results[2].returns
    assert agents[0].seen == agents[1].seen
    assert all(x != y for a, b in zip(agents[0].seen, agents[2].seen, strict=True) for x, y in zip(a, b, strict=True))


def test_a_fresh_seed_is_drawn_and_told():
    first, second = (evaluate(Zero(), Noisy(), num_episodes=2) for _ in range(2))
    assert first.returns != second.returns
    assert evaluate(Zero(), Noisy(), num_episodes=2, seed=first.seed) == first


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("num_envs", [1, 2, 5])
def test_each_episode_can_have_its_own_seed(mode, num_envs):
    """The return that a seed gives is worked out by stepping an env by hand."""
    seeds = [11, 22, 33, 11]
    expected = []
    for seed in seeds:
        env = Noisy()
        env.reset(seed=seed)
        expected.append(sum(env.step(0)[1] for _ in range(3)))
    pool = VectorPool(SyncVectorEnv([Noisy] * num_envs, autoreset_mode=mode)) if num_envs > 1 else SinglePool(Noisy())
    assert evaluate(Zero(), pool, episode_seeds=seeds).returns == expected
    assert expected[0] == expected[3] != expected[1]


def test_episode_seeds_need_envs_that_take_them():
    pool = EnvRecipe("CartPole-v1", 2, "vector_entry_point").make()
    with pytest.raises(ConfigurationError, match="episode_seeds.*no seeds for single envs"):
        evaluate(Zero(), pool, episode_seeds=[1, 2])


@pytest.mark.parametrize("counts", [{"num_episodes": 3}, {"num_steps": 9}])
def test_episode_seeds_are_as_many_as_the_episodes(counts):
    with pytest.raises(ConfigurationError, match="2 episode_seeds are so many episodes"):
        evaluate(Zero(), Scripted(), episode_seeds=[1, 2], **counts)


# ---- the agent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [Scripted(), NotFiniteAt(2)], ids=["fine", "fails"])
def test_each_part_of_the_agent_gets_its_mode_back(env):
    agent = Zero()
    try:
        evaluate(agent, env, num_episodes=1)
    except NonFiniteError:
        assert isinstance(env, NotFiniteAt)
    assert agent.seen and agent.training and agent.body.training and not agent.frozen.training


def test_an_agent_in_evaluation_mode_stays_there():
    agent = Zero().eval()
    evaluate(agent, Scripted(), num_episodes=1)
    assert not agent.training and not agent.body.training


def test_floats_have_the_agents_precision_and_integers_stay():
    agent = Zero()
    evaluate(agent, Nested((1,)), num_episodes=1, dtype=torch.bfloat16)
    assert {path: leaf.dtype for path, leaf in agent.seen[0].items()} == {
        "clock": torch.bfloat16, "pair.0": torch.bfloat16, "pair.1": torch.int64,
    }  # fmt: skip


def test_an_action_in_bfloat16_reaches_the_env():
    class Half(Zero):
        def act(self, obs: Any, *, explore: bool) -> Any:
            return torch.full((len(obs), 1), 0.5, dtype=torch.bfloat16), {}

    env = Scripted((1,), action_space=spaces.Box(-1.0, 1.0, (1,)))
    evaluate(Half(), env, num_episodes=1)
    assert env.actions[0].tolist() == [0.5]


def test_an_agent_with_a_memory_of_its_own_is_told_of_every_step_and_reset_at_the_end():
    """Lengths 1 and 9, three steps: env 0 resets each time, env 1 only because the evaluation ends."""
    told: list[Any] = []
    evaluate(Zero(), pool_of((1,), (9,)), num_steps=3, observe=lambda step, reset: told.append(reset.tolist()))
    assert told == [[True, False], [True, True]]


# ---- results ---------------------------------------------------------------------------------------------------------


def test_returns_add_up_in_float64():
    """In float32, 100,000,000 + 1 is 100,000,000."""
    assert evaluate(Zero(), Scripted((2,), rewards=(1e8, 1.0)), num_episodes=1).returns == [100_000_001.0]


def test_episodes_are_handed_over_in_the_order_of_their_starts():
    """Env 1's episodes 1 and 2 are over before env 0's episode 0, and wait for it."""
    episodes: list[Any] = []
    evaluate(Zero(), pool_of((4,), (1,)), num_episodes=3, on_episode=episodes.append)
    assert [(e.index, e.length, e.return_) for e in episodes] == [(0, 4, 4.0), (1, 1, 1.0), (2, 1, 1.0)]
    assert all(e.terminated and not e.truncated and e.obs is None for e in episodes)


def test_an_unfinished_episode_is_neither_terminated_nor_truncated():
    episodes: list[Any] = []
    evaluate(Zero(), Scripted((9,)), num_steps=2, on_episode=episodes.append, record=True)
    assert [(e.length, e.terminated, e.truncated, len(e.obs)) for e in episodes] == [(2, False, False, 3)]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_episodes_can_be_recorded(mode):
    """Env 1: episode 0 has 2 steps, episode 1 has 1; rewards 5, 6, 7."""
    episodes: list[Any] = []
    factories = [functools.partial(Nested, (9,)), functools.partial(Nested, (2, 1), rewards=(5, 6, 7))]
    pool = VectorPool(SyncVectorEnv(factories, autoreset_mode=mode))
    evaluate(Zero(), pool, num_episodes=3, on_episode=episodes.append, record=True)
    _, first, second = episodes
    assert first.obs["clock"].tolist() == [0.0, 1.0, 2.0] and second.obs["clock"].tolist() == [0.0, 1.0]
    assert second.obs["pair.0"].shape == (2, 2) and second.obs["pair.1"].tolist() == [1, 1]
    assert (first.reward.tolist(), second.reward.tolist()) == ([5.0, 6.0], [7.0])
    assert first.action.tolist() == [0, 0] and episodes[0].obs["clock"].tolist() == list(range(10))


def test_a_recorded_plain_observation_is_one_array():
    episodes: list[Any] = []
    evaluate(Zero(), Scripted((2,)), num_episodes=1, on_episode=episodes.append, record=True)
    assert episodes[0].obs.tolist() == [[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]]


def test_the_envs_own_statistics_are_cleared_before_and_read_after():
    class Counts(Scripted):
        falls = 7

        def clear_statistics(self) -> None:
            self.falls = 0

        def get_statistics(self) -> list[tuple[str, float]]:
            return [("falls", self.falls)]

        def step(self, action: Any) -> Any:
            self.falls += 1
            return super().step(action)

    for env in (Counts(), TimeLimit(Counts(), 9)):
        assert evaluate(Zero(), env, num_steps=3).env_statistics == {"falls": 3}


def test_envs_that_evaluation_made_are_closed_and_others_left_open():
    made: list[Scripted] = []

    def factory() -> Scripted:
        made.append(Scripted())
        return made[-1]

    env = Scripted()
    lent = SinglePool(Scripted())
    for envs in (factory, env, lent):
        evaluate(Zero(), envs, num_episodes=1)
    with pytest.raises(RuntimeError):
        evaluate(Fails(), factory, num_episodes=1)
    assert [one.closed for one in made] == [1, 1] and env.closed == lent.env.closed == 0


def test_an_id_can_be_evaluated():
    result = evaluate(Zero(), "CartPole-v1", num_episodes=2, seed=0)
    assert len(result.returns) == 2 and result.returns == [float(n) for n in result.lengths]


def test_statistics_by_hand():
    """1, 2, 6: mean 3, median 2, squared deviations 4 + 1 + 9 = 14, over 2 is 7."""
    statistics = EvaluationResult([1.0, 2.0, 6.0], [10, 20, 60], seed=0).statistics()
    assert statistics == {
        "episodes": 3, "mean": 3.0, "median": 2.0, "stdev": 7**0.5, "max": 6.0, "min": 1.0, "length_mean": 30.0,
        "length_median": 20.0, "length_stdev": 700**0.5, "length_max": 60.0, "length_min": 10.0,
    }  # fmt: skip


def test_one_episode_has_no_deviation():
    statistics = EvaluationResult([4.0], [7], seed=0).statistics()
    assert (statistics["stdev"], statistics["length_stdev"], statistics["median"]) == (0.0, 0.0, 4.0)


def test_metrics_are_named_for_the_log():
    metrics = EvaluationResult([1.0, 3.0], [4, 6], seed=0).metrics("test")
    assert list(metrics) == [f"test/{name}" for name in STATISTICS]
    assert metrics["test/mean"] == 2.0 and metrics["test/length_mean"] == 5.0


def test_the_confidence_interval_of_equal_returns_is_a_point():
    assert EvaluationResult([2.0] * 5, [1] * 5, seed=0).confidence_interval(num_resamples=10) == (2.0, 2.0)


def test_the_confidence_interval_is_about_two_standard_errors_wide():
    """100 returns of standard deviation 1: the mean's error is 0.1, so the bounds lie near -0.196 and 0.196."""
    returns = np.random.default_rng(0).normal(size=100)
    returns = (returns - returns.mean()) / returns.std()
    result = EvaluationResult(returns.tolist(), [1] * 100, seed=0)
    low, high = result.confidence_interval()
    assert low == pytest.approx(-0.196, abs=0.01) and high == pytest.approx(0.196, abs=0.01)
    narrow = result.confidence_interval(level=0.5)
    assert low < narrow[0] < 0.0 < narrow[1] < high
    assert result.confidence_interval() == (low, high)


def test_a_confidence_level_is_a_share():
    with pytest.raises(ConfigurationError, match="level=95"):
        EvaluationResult([1.0], [1], seed=0).confidence_interval(level=95)
    with pytest.raises(ConfigurationError, match="num_resamples=0"):
        EvaluationResult([1.0], [1], seed=0).confidence_interval(num_resamples=0)


def test_seeds_of_envs_fit_into_signed_32_bit_integers():
    for seed in range(50):
        env = Scripted((1,))
        evaluate(Zero(), SinglePool(env), num_episodes=1, seed=seed)
        assert 0 <= env.seeds[0] < 2**30
