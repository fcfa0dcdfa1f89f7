"""Several envs in lockstep: as so many single envs, and held to the same contract."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st

from rl_lightning import PPO, RLModule, evaluate
from rl_lightning.envs import LockstepPool, SinglePool, VectorPool
from rl_lightning.types import EnvError, NonFiniteError
from tests.envs import (
    Broken,
    GivesObservation,
    NeedsReset,
    Nested,
    NotFiniteAt,
    OldReset,
    OldSeed,
    OldStep,
    ReusesMemory,
    Scripted,
    go,
)


def vector(*factories: Any) -> SyncVectorEnv:
    return SyncVectorEnv(list(factories), copy=False, autoreset_mode=AutoresetMode.DISABLED)


def lockstep(*factories: Any, **kwargs: Any) -> LockstepPool:
    return LockstepPool(vector(*factories), **kwargs)


@given(
    lengths=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3),
    truncates=st.booleans(),
    kind=st.sampled_from([Scripted, Nested]),
    max_episode_len=st.sampled_from([None, 1, 3]),
)
def test_it_is_so_many_single_envs(lengths, truncates, kind, max_episode_len):
    factories = [functools.partial(kind, own, truncates=truncates) for own in lengths]
    pool = lockstep(*factories, max_episode_len=max_episode_len)
    singles = [SinglePool(make(), max_episode_len=max_episode_len) for make in factories]

    def same(together, apart):
        for i, one in enumerate(apart):
            if isinstance(together, dict):
                assert all(np.array_equal(together[path][i], one[path][0]) for path in together)
            else:
                assert np.array_equal(together[i], one[0])

    same(pool.reset(3), [single.reset(3 + i) for i, single in enumerate(singles)])
    for _ in range(6):
        same(pool.begin_episodes(), [single.begin_episodes() for single in singles])
        step, apart = go(pool)[0], [go(single)[0] for single in singles]
        for field in ("next_obs", "reward", "terminated", "truncated"):
            same(getattr(step, field), [getattr(one, field) for one in apart])
        assert step.valid is None and step.reward.dtype == np.float32 and step.truncated.dtype == np.bool_
    assert [env.seeds[0] for env in pool.env.envs] == [3 + i for i in range(len(lengths))]


def test_steps_are_those_of_gymnasium_s_vector_env():
    """CartPole, the same seeds and actions."""
    makers = [lambda: gym.make("CartPole-v1")] * 3
    ours, theirs = lockstep(*makers), VectorPool(vector(*makers))
    assert np.array_equal(ours.reset(0), theirs.reset(0))
    rng = np.random.default_rng(0)
    for _ in range(100):
        assert np.array_equal(ours.begin_episodes(), theirs.begin_episodes())
        action = rng.integers(2, size=3)
        one, other = ours.step(action), theirs.step(action)
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("next_obs", "reward"))
        assert np.array_equal(one.terminated, other.terminated) and np.array_equal(one.truncated, other.truncated)


def test_arrays_belong_to_the_caller_and_envs_may_reuse_memory():
    pool = lockstep(ReusesMemory, ReusesMemory)
    first = pool.reset(0)
    steps = go(pool, 4)
    assert first.tolist() == [[0.0, 0.0]] * 2
    assert [step.next_obs[0].tolist() for step in steps] == [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [1.0, 1.0]]


def test_seeds_of_single_episodes_and_episodes_that_others_end():
    pool = lockstep(functools.partial(Scripted, (1,)), functools.partial(Scripted, (9,)))
    pool.reset([5, None])
    pool.step(np.array([0, 0]))
    pool.begin_episodes([7, 8])
    assert [env.seeds for env in pool.env.envs] == [[5, 7], [None]]
    pool.end_episodes(np.array([False, False]))
    assert pool.begin_episodes()[:, 0].tolist() == [1.0, 0.0]
    pool.end_episodes(np.array([False, True]))
    assert pool.begin_episodes()[:, 0].tolist() == [1.0, 1.0]
    pool.abandon_episodes()
    assert pool.begin_episodes()[:, 0].tolist() == [2.0, 2.0]


def test_needs_reset_and_infos():
    pool = lockstep(functools.partial(NeedsReset, 2), functools.partial(Scripted, (9,)))
    pool.reset(0)
    steps = go(pool, 2)
    assert steps[1].truncated.tolist() == [True, False] and not steps[1].terminated.any()
    assert steps[1].infos == [{"needs_reset": True}, {}]


@pytest.mark.parametrize(
    "space", [spaces.Box(-1.0, 1.0, (2,)), spaces.MultiDiscrete([2, 3]), spaces.Discrete(3, start=5)]
)
def test_actions_reach_their_envs(space):
    pool = lockstep(*[functools.partial(Scripted, (9,), action_space=space)] * 2)
    pool.reset(0)
    action = {"Box": np.array([[0.5, 0.0], [-1.0, 1.0]], np.float32), "MultiDiscrete": np.array([[0, 2], [1, 1]])}.get(
        type(space).__name__, np.array([0, 2])
    )
    pool.step(action)
    start = getattr(space, "start", 0)
    for i, env in enumerate(pool.env.envs):
        assert np.array_equal(env.actions[0], action[i] + start) and space.contains(env.actions[0])


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (functools.partial(NotFiniteAt, 1), NonFiniteError, r"env 1 gave observation\[1\] = nan at step 1"),
        (functools.partial(NotFiniteAt, 1, field="reward"), NonFiniteError, "env 1 gave reward = nan at step 1"),
        (functools.partial(NotFiniteAt, 1, field="reward", value=1e39), NonFiniteError, "env 1 gave reward = 1e"),
        (functools.partial(NotFiniteAt, 1, field="reward", value="much"), EnvError, "'much'.* not numbers"),
        (functools.partial(Broken, "step"), ValueError, "sensor unplugged"),
        (functools.partial(Broken, "reset"), ValueError, "sensor unplugged"),
        (functools.partial(GivesObservation, np.zeros(2, np.float32), np.zeros(3)), EnvError, r"shape \(3,\)"),
        (functools.partial(GivesObservation, np.zeros(2, np.float32), np.float32(1.0)), EnvError, r"shape \(\)"),
        (OldReset, EnvError, "old gym API"),
        (OldSeed, EnvError, "old gym API"),
        (OldStep, EnvError, "old gym API"),
    ],
)
def test_an_env_that_breaks_its_contract_is_named(bad, error, message):
    with pytest.raises(error, match=message):
        pool = lockstep(Scripted, bad)
        pool.reset(0)
        pool.step(np.array([0, 0]))


def test_it_closes_its_envs_once():
    pool = lockstep(Scripted, Scripted)
    pool.close(), pool.close()
    assert [env.closed for env in pool.env.envs] == [1, 1]


def test_an_env_that_rests_is_neither_stepped_nor_reset_until_all_are():
    pool = lockstep(functools.partial(Scripted, (2,)), functools.partial(Scripted, (2,)))
    pool.reset(0)
    go(pool)
    pool.rest(np.array([False, True]))
    steps = go(pool, 3)
    assert [step.next_obs.tolist() for step in steps] == [
        [[0.0, 2.0], [0.0, 1.0]],
        [[1.0, 1.0], [0.0, 1.0]],
        [[1.0, 2.0], [0.0, 1.0]],
    ]
    assert all(step.valid.tolist() == [True, False] and step.reward.tolist() == [1.0, 0.0] for step in steps)
    assert not any(step.terminated[1] or step.truncated[1] for step in steps)
    assert pool.env.envs[1].steps == 1
    pool.reset(1)
    assert go(pool)[0].valid is None and pool.env.envs[1].steps == 2


@pytest.mark.parametrize("num_episodes", [1, 2, 3, 5, 8])
def test_an_evaluation_steps_no_env_whose_episodes_will_not_count(num_episodes):
    """Episodes of 1, 3 and 5 steps in three envs: all that is stepped is what counts, or runs beside it."""
    pool = lockstep(*[functools.partial(Scripted, (length,)) for length in (1, 3, 5)])
    agent = RLModule(PPO())
    agent.build(pool.observation_space, pool.action_space)
    result = evaluate(agent.agent, pool, num_episodes=num_episodes, seed=0)
    rested = [env.steps for env in pool.env.envs]
    plain = VectorPool(vector(*[functools.partial(Scripted, (length,)) for length in (1, 3, 5)]))
    same = evaluate(agent.agent, plain, num_episodes=num_episodes, seed=0)
    assert (result.returns, result.lengths) == (same.returns, same.lengths)
    assert sum(result.lengths) <= sum(rested) <= sum(env.steps for env in plain.env.envs)


def test_envs_that_belong_to_somebody_else_stay_open():
    pool = lockstep(Scripted, Scripted)
    pool.is_lent = True
    pool.close()
    assert [env.closed for env in pool.env.envs] == [0, 0]
