"""Stepping envs: one, or several through gymnasium's vector envs in every autoreset mode."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given
from hypothesis import strategies as st

from rl_lightning.envs import EnvPool, SinglePool, VectorPool
from rl_lightning.types import ConfigurationError, EnvError, NonFiniteError
from tests.envs import (
    LOW_HIGH,
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

GO = np.array([1])
MODES = list(AutoresetMode)


def vector(*factories: Any, mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any) -> SyncVectorEnv:
    return SyncVectorEnv(list(factories), autoreset_mode=mode, **kwargs)


def scripted(lengths: Any, kind: type[Scripted] = Scripted, **kwargs: Any) -> Any:
    return functools.partial(kind, lengths, **kwargs)


def started(env: gym.Env, **kwargs: Any) -> SinglePool:
    pool = SinglePool(env, **kwargs)
    pool.reset(0)
    return pool


# ---- one env ---------------------------------------------------------------------------------------------------------


def test_one_env_gives_batches_of_one():
    pool = SinglePool(Scripted((3,), reward=0.5))
    obs = pool.reset(seed=5)
    step = pool.step(GO)
    assert (obs.tolist(), step.next_obs.tolist()) == ([[0.0, 0.0]], [[0.0, 1.0]])
    assert (step.reward.tolist(), step.terminated.tolist(), step.truncated.tolist()) == ([0.5], [False], [False])
    assert [a.dtype for a in (obs, step.reward, step.terminated, step.truncated)] == [
        np.float32,
        np.float32,
        bool,
        bool,
    ]
    assert pool.begin_episodes() is step.next_obs and step.valid is None
    assert pool.env.seeds == [5] and pool.num_envs == 1 and pool.num_steps == 1


@pytest.mark.parametrize("truncates", [False, True])
def test_an_ended_episode_stays_ended_until_the_next_begins(truncates):
    """Episode 0 has two steps: its last observation is [0, 2], the next episode's first [1, 0]."""
    pool = started(Scripted((2,), truncates=truncates))
    step = go(pool, 2)[-1]
    assert step.next_obs.tolist() == [[0.0, 2.0]] and pool.env.episode == 0
    assert (bool(step.terminated[0]), bool(step.truncated[0])) == (not truncates, truncates)
    first = pool.begin_episodes()
    assert first.tolist() == [[1.0, 0.0]]
    assert pool.begin_episodes() is first and pool.env.episode == 1


def test_an_episode_can_begin_with_a_seed():
    pool = started(Scripted((1,)))
    go(pool)
    pool.begin_episodes([7])
    pool.begin_episodes([8])
    assert pool.env.seeds == [0, 7]


def test_one_env_may_be_given_its_seed_in_a_list():
    pool = SinglePool(Scripted((1,)))
    pool.reset([5]), pool.reset([None])
    go(pool)
    pool.begin_episodes([None])
    assert pool.env.seeds == [5, None, None]


@pytest.mark.parametrize("ended", [False, True])
def test_one_env_is_reset_once_whatever_ended_its_episode(ended):
    pool = started(Scripted((1 if ended else 9,)))
    go(pool)
    pool.end_episodes(np.array([True])), pool.end_episodes(np.array([False]))
    assert pool.env.seeds == [0]
    pool.begin_episodes(), pool.begin_episodes()
    assert pool.env.seeds == [0, None]


def test_max_episode_len_truncates():
    pool = started(Scripted((100,)), max_episode_len=2)
    flags = [step.truncated[0] for step in go(pool, 4)]
    assert flags == [False, True, False, True]


def test_an_episode_that_ends_by_itself_at_the_limit_is_both():
    """Only `terminated` decides whether anything follows."""
    step = go(started(Scripted((2,)), max_episode_len=2), 2)[-1]
    assert step.terminated[0] and step.truncated[0]


def test_a_reset_starts_the_limit_anew():
    pool = started(Scripted((100,)), max_episode_len=2)
    pool.step(GO)
    pool.reset()
    assert not pool.step(GO).truncated[0]


def test_needs_reset_truncates():
    pool = started(NeedsReset(every=2))
    steps = go(pool, 4)
    assert [bool(step.truncated[0]) for step in steps] == [False, True, False, True]
    assert not any(step.terminated[0] for step in steps)


def test_no_later_step_writes_into_what_was_returned():
    pool = SinglePool(ReusesMemory((2,)))
    first = pool.reset()
    steps = go(pool, 2)
    second = pool.begin_episodes()
    steps += go(pool)
    assert (first.tolist(), second.tolist()) == ([[0.0, 0.0]], [[1.0, 0.0]])
    assert [step.next_obs.tolist() for step in steps] == [[[0.0, 1.0]], [[0.0, 2.0]], [[1.0, 1.0]]]


def test_a_nested_observation_is_laid_flat():
    pool = SinglePool(Nested((1,)))
    assert list(pool.reset()) == ["clock", "pair.0", "pair.1"]
    step = pool.step(GO)
    assert {path: array.tolist() for path, array in step.next_obs.items()} == {
        "clock": [1.0], "pair.0": [[0.0, 1.0]], "pair.1": [0],
    }  # fmt: skip
    first = pool.begin_episodes()
    assert first["pair.1"].tolist() == [1] and first["pair.1"].dtype == np.int64


def test_float64_observations_become_float32():
    pool = SinglePool(GivesObservation(np.zeros(2), observation_space=spaces.Box(-1.0, 1.0, (2,), np.float64)))
    assert pool.reset().dtype == np.float32 and pool.step(GO).next_obs.dtype == np.float32


def test_observations_are_cast_to_the_spaces_dtype():
    pool = SinglePool(GivesObservation(np.ones(2, np.float64)))
    assert pool.reset().dtype == np.float32
    assert SinglePool(GivesObservation(3, observation_space=spaces.Discrete(5))).reset().tolist() == [3]


@pytest.mark.parametrize(("mask", "episode"), [([True], 1.0), ([False], 0.0)])
def test_an_episode_can_be_ended_from_outside(mask, episode):
    pool = started(Scripted((100,)))
    pool.step(GO)
    pool.end_episodes(np.array(mask))
    assert pool.begin_episodes([7])[0, 0] == episode
    assert (7 in pool.env.seeds) == mask[0]


def test_what_was_never_reset_begins_all_the_same():
    assert SinglePool(Scripted()).begin_episodes().tolist() == [[0.0, 0.0]]
    assert VectorPool(vector(scripted((1,)))).begin_episodes().tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("owns", "closed"), [(True, 1), (False, 0)])
def test_a_lent_env_is_not_closed(owns, closed):
    env = Scripted()
    pool = SinglePool(env, owns_env=owns)
    pool.close(), pool.close()
    lent = vector(scripted((3,)))
    VectorPool(lent, owns_env=owns).close()
    assert env.closed == closed and lent.closed == owns


# ---- what an env may not do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "what"),
    [
        (np.zeros(3, np.float32), r"observation of shape \(3,\), dtype float32 does not fit Box.*Reshape"),
        (np.zeros((1, 2), np.float32), r"shape \(1, 2\)"),
        (np.array(["a", "b"]), "dtype <U1 does not fit"),
        (np.zeros(2, complex), "dtype complex128"),
        (None, "dtype object"),
        ([[1.0], [1.0, 2.0]], "is no array"),
    ],
)
def test_a_first_observation_that_does_not_fit_is_named(first, what):
    with pytest.raises(EnvError, match=what):
        SinglePool(GivesObservation(first)).reset()


def test_a_float_observation_does_not_fit_an_image_space():
    image = spaces.Box(0, 255, (2, 2), np.uint8)
    with pytest.raises(EnvError, match="dtype float64 does not fit"):
        SinglePool(GivesObservation(np.zeros((2, 2)), observation_space=image)).reset()


def test_a_later_observation_of_another_shape_is_named():
    pool = started(GivesObservation(np.zeros(2, np.float32), np.zeros(3, np.float32)))
    with pytest.raises(EnvError, match=r"shape \(3,\)"):
        pool.step(GO)


def test_an_observation_that_is_not_nested_as_its_space_is_named():
    space = spaces.Dict({"a": LOW_HIGH, "b": LOW_HIGH})
    for obs in ({"a": np.zeros(2)}, np.zeros(2)):
        with pytest.raises(EnvError, match="is not nested as Dict"):
            SinglePool(GivesObservation(obs, observation_space=space)).reset()
    with pytest.raises(EnvError, match=r"observation\['b'\] of shape \(3,\)"):
        SinglePool(GivesObservation({"a": np.zeros(2), "b": np.zeros(3)}, observation_space=space)).reset()


@pytest.mark.parametrize(("field", "name"), [("observation", r"observation\[1\]"), ("reward", "reward")])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named_with_its_step(field, name, value):
    pool = started(NotFiniteAt(3, field=field, value=value, length=2))
    pool.step(GO), pool.step(GO)
    with pytest.raises(NonFiniteError, match=f"env 0 gave {name} = {value} at step 3 of this pool.*wrapper"):
        pool.step(GO)


def test_what_is_not_finite_is_found_in_large_and_in_nested_observations():
    image = np.zeros((20, 20), np.float32)
    bad = image.copy()
    bad[3, 4] = np.nan
    pool = started(GivesObservation(image, bad, spaces.Box(0.0, 1.0, (20, 20))))
    with pytest.raises(NonFiniteError, match=r"observation\[3, 4\] = nan"):
        pool.step(GO)
    nested = GivesObservation(
        {"a": 0, "b": bad}, observation_space=spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (20, 20)))
    )
    with pytest.raises(NonFiniteError, match=r"observation\['b'\]\[3, 4\] = nan at step 0"):
        SinglePool(nested).reset()


def test_a_reward_beyond_float32_is_refused():
    with pytest.raises(NonFiniteError, match=r"reward = 1e\+300"):
        started(Scripted(reward=1e300)).step(GO)


@pytest.mark.parametrize("reward", [None, "much", np.zeros(2)])
def test_a_reward_that_is_no_number_is_refused(reward):
    with pytest.raises(EnvError, match="is not a number"):
        started(Scripted(reward=reward)).step(GO)


@pytest.mark.parametrize("kind", [OldReset, OldSeed])
def test_the_old_reset_is_named(kind):
    with pytest.raises(EnvError, match="old gym API.*shimmy"):
        SinglePool(kind()).reset(0)


def test_the_old_step_is_named():
    with pytest.raises(EnvError, match=r"a tuple of 4 \(ndarray, float, bool, dict\).*old gym API.*shimmy"):
        started(OldStep()).step(GO)


@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_envs_own_exception_comes_through(where):
    pool = SinglePool(Broken(where))
    with pytest.raises(ValueError, match="^sensor unplugged$"):
        pool.reset()
        pool.step(GO)


def test_what_is_no_env_is_refused():
    with pytest.raises(ConfigurationError, match="builtins.int is no env"):
        SinglePool(3)


def test_an_observation_space_without_arrays_is_refused():
    with pytest.raises(ConfigurationError, match="has space Text.*not supported"):
        SinglePool(Scripted(observation_space=spaces.Text(5)))


# ---- actions ---------------------------------------------------------------------------------------------------------

BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


def taken(space: gym.Space, action: Any) -> Any:
    """What the env is given where the agent says `action`."""
    env = Scripted(action_space=space)
    started(env).step(action)
    return env.actions[0]


def test_integers_count_from_the_spaces_start():
    action = taken(spaces.Discrete(3, start=5), np.array([2]))
    assert (action, type(action)) == (7, np.int64)  # as `space.sample()` gives one
    many = taken(spaces.MultiDiscrete([3, 4], start=[1, -2]), np.array([[2, 3]]))
    assert many.tolist() == [3, 1] and many.dtype == np.int64


def test_actions_get_the_spaces_dtype_and_shape():
    assert taken(BOX, np.array([[0.5, 0.5]], np.float64)).dtype == np.float32
    assert taken(spaces.Box(-1.0, 1.0, (), np.float64), np.array([0.5], np.float32)).dtype == np.float64
    assert taken(spaces.MultiBinary(2), np.array([[True, False]])).tolist() == [1, 0]
    assert taken(spaces.MultiBinary(2), np.array([[1, 0]])).dtype == np.int8
    assert taken(spaces.Box(0, 255, (1,), np.uint8), np.array([[200]])).tolist() == [200]


def test_an_env_cannot_write_into_the_agents_action():
    action = np.array([[0.5, 0.5]], np.float32)
    taken(BOX, action)[:] = 9.0
    assert action.tolist() == [[0.5, 0.5]]


def test_a_rounding_error_is_moved_onto_the_bound():
    """1.0000001 and float32's 0.1, which is more than float64's."""
    assert taken(BOX, np.array([[0.0, 1.0000001]], np.float32)).tolist() == [0.0, 1.0]
    tenth = taken(spaces.Box(-0.1, 0.1, (1,), np.float64), np.array([[0.1]], np.float32))
    assert tenth.tolist() == [0.1]


@pytest.mark.parametrize(
    ("space", "action", "what"),
    [
        (spaces.Discrete(2), [2], r"env 0 was given action 2, outside Discrete\(2\).*0 to 1"),
        (spaces.Discrete(3, start=5), [5], "Agents count from 0.*0 to 2"),
        (spaces.Discrete(2), [-1], "action -1"),
        (spaces.Discrete(2), [0.5], "dtype float64 do not fit"),
        (spaces.Discrete(2), [[0, 1]], r"shape \(1, 2\)"),
        (spaces.MultiDiscrete([2, 3]), [[0, 3]], r"action \[0, 3\].*0 to \[1, 2\]"),
        (spaces.MultiDiscrete([2, 3]), [[-1, 0]], r"action \[-1, 0\]"),
        (spaces.MultiBinary(2), [[0, 2]], r"action \[0, 2\]"),
        (BOX, [[2.1, 0.0]], r"env 0 was given action \[2.1, 0.0\], outside Box.*ClipAction"),
        (BOX, [[float("nan"), 0.0]], "nan"),
        (BOX, [[0.0, float("-inf")]], "-inf"),
        (BOX, [[0.0]], r"shape \(1, 1\)"),
        (spaces.Box(-np.inf, np.inf, (1,)), [[float("inf")]], "inf"),
        (spaces.Box(0, 255, (1,), np.uint8), [[256]], "256"),
        (spaces.Box(0, 255, (1,), np.uint8), [[0.5]], "dtype float64 do not fit"),
    ],
)
def test_an_action_outside_its_space_is_named(space, action, what):
    env = Scripted(action_space=space)
    with pytest.raises(EnvError, match=what):
        started(env).step(np.array(action))
    assert env.actions == []


def test_a_bad_action_is_named_with_its_env():
    pool = VectorPool(vector(*[scripted((9,))] * 3))
    pool.reset()
    with pytest.raises(EnvError, match="env 2 was given action 5"):
        pool.step(np.array([0, 1, 5]))


def test_a_nested_action_space_is_refused():
    with pytest.raises(ConfigurationError, match="action space Dict.*TransformAction"):
        SinglePool(Scripted(action_space=spaces.Dict(a=BOX)))


# ---- several envs ----------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """One env's part of a step."""

    obs: Any
    action: int
    reward: float
    next_obs: Any
    terminated: bool
    truncated: bool


def plain(obs: Any, env: int) -> Any:
    return {path: array[env].tolist() for path, array in obs.items()} if isinstance(obs, dict) else obs[env].tolist()


def transitions(pool: EnvPool, actions: np.ndarray) -> list[list[Seen]]:
    """Each env's valid transitions, while `actions` [T, B] last."""
    seen: list[list[Seen]] = [[] for _ in range(pool.num_envs)]
    pool.reset(0)
    for action in actions:
        obs = pool.begin_episodes()
        step = pool.step(action)
        for env, mine in enumerate(seen):
            if step.valid is None or step.valid[env]:
                parts = plain(obs, env), int(action[env]), float(step.reward[env]), plain(step.next_obs, env)
                mine.append(Seen(*parts, bool(step.terminated[env]), bool(step.truncated[env])))
            else:
                assert (step.reward[env], step.terminated[env], step.truncated[env]) == (0.0, False, False)
    return seen


def alone(factory: Any, mine: list[Seen]) -> list[Seen]:
    """The transitions of one env that is stepped by itself with the same actions."""
    return transitions(SinglePool(factory()), np.array([[seen.action] for seen in mine]))[0] if mine else []


EPISODES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Scripted, Nested])
@given(lengths=EPISODES, truncates=st.booleans(), seed=st.integers(0, 99), copies=st.booleans())
def test_each_env_lives_as_if_it_were_alone(mode, kind, lengths, truncates, seed, copies):
    factories = [scripted(own, kind, rewards=range(1, 8), truncates=truncates) for own in lengths]
    actions = np.random.default_rng(seed).integers(0, 2, size=(12, len(lengths)))
    pool = VectorPool(vector(*factories, mode=mode, copy=copies))
    for factory, mine in zip(factories, transitions(pool, actions), strict=True):
        assert mine == alone(factory, mine)
        assert len(mine) == 12


PROCESSES = [(mode, shared) for mode in MODES for shared in (True, False) if shared or mode != MODES[0]]
"""Without shared memory, gymnasium's processes with NEXT_STEP are refused."""


@pytest.mark.parametrize(("mode", "shared"), PROCESSES)
def test_each_env_lives_as_if_it_were_alone_in_its_own_process(mode, shared):
    factories = [scripted([2, 1], Nested, rewards=(1, 2, 3)), scripted([3], Nested, rewards=(4, 5))]
    kwargs = {"context": "forkserver", "autoreset_mode": mode, "copy": False, "shared_memory": shared}
    pool = VectorPool(AsyncVectorEnv(factories, **kwargs))
    try:
        for factory, mine in zip(factories, transitions(pool, np.ones((7, 2), int)), strict=True):
            assert mine == alone(factory, mine)
            assert len(mine) == 7
    finally:
        pool.close()


@pytest.mark.parametrize("mode", MODES)
@given(lengths=EPISODES, seed=st.integers(0, 99))
def test_each_env_lives_as_if_it_were_alone_inside_a_wrapper(mode, lengths, seed):
    """A vector wrapper keeps its NEXT_STEP autoreset, and rows that only reset are not valid."""
    factories = [scripted(own, rewards=range(1, 8)) for own in lengths]
    actions = np.random.default_rng(seed).integers(0, 2, size=(12, len(lengths)))
    pool = VectorPool(RecordEpisodeStatistics(vector(*factories, mode=mode)))
    assert pool.spends_steps_on_resets == (mode == AutoresetMode.NEXT_STEP)
    for factory, mine in zip(factories, transitions(pool, actions), strict=True):
        assert mine == alone(factory, mine)
        assert len(mine) == 12 or mode == AutoresetMode.NEXT_STEP


def test_next_step_rows_that_only_reset_are_not_valid():
    """Lengths 1 and 2: env 0 ends at step 1 and resets at step 2, env 1 ends at step 2 and resets at step 3."""
    pool = VectorPool(RecordEpisodeStatistics(vector(scripted((1,)), scripted((2,)), mode=AutoresetMode.NEXT_STEP)))
    steps = go(pool, 3)
    assert [None if step.valid is None else step.valid.tolist() for step in steps] == [
        None, [False, True], [True, False],
    ]  # fmt: skip
    assert steps[0].next_obs.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert steps[1].next_obs.tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_a_wrapped_vector_env_that_is_told_to_reset_spends_no_step_on_it():
    """Env 0 ends at step 1 and is seeded, env 1 ends at step 2 and resets itself at step 3."""
    pool = VectorPool(RecordEpisodeStatistics(vector(scripted((1, 9)), scripted((2,)), mode=AutoresetMode.NEXT_STEP)))
    go(pool)
    assert pool.begin_episodes([7, 8]).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    steps = go(pool, 2)
    assert steps[0].valid is None and steps[1].valid.tolist() == [True, False]
    assert steps[0].next_obs.tolist() == [[1.0, 1.0], [0.0, 2.0]]
    assert steps[1].next_obs.tolist() == [[1.0, 2.0], [1.0, 0.0]]
    assert [env.seeds for env in pool.env.unwrapped.envs] == [[None, 7], [None, None]]


def test_rows_that_only_reset_do_not_count_towards_max_episode_len():
    """Env 0 (lengths 1, 9) under a limit of 3 spends step 2 on its reset and is cut off at step 5, episode 1's third.

    What is cut off is told to reset: no step is spent on that.
    """
    inner = vector(scripted((1, 9)), scripted((9,)), mode=AutoresetMode.NEXT_STEP)
    pool = VectorPool(RecordEpisodeStatistics(inner), max_episode_len=3)
    steps = go(pool, 6)
    assert [None if step.valid is None else step.valid.tolist() for step in steps] == [None, [False, True], *[None] * 4]
    assert [step.terminated.tolist() for step in steps] == [[True, False], *[[False] * 2] * 4, [True, False]]
    assert [step.truncated.tolist() for step in steps] == [
        [False, False], [False, False], [False, True], [False, False], [True, False], [False, True],
    ]  # fmt: skip
    assert [step.next_obs.tolist() for step in steps[3:]] == [
        [[1.0, 2.0], [1.0, 1.0]], [[1.0, 3.0], [1.0, 2.0]], [[2.0, 1.0], [1.0, 3.0]],
    ]  # fmt: skip


def test_a_third_partys_next_step_rows_are_not_valid_whatever_they_say():
    """Two envs that count to three: step 4 only resets, and says otherwise."""
    pool = VectorPool(OwnNextStep())
    assert pool.spends_steps_on_resets and not pool.can_reset_some and not pool.can_seed_each
    steps = go(pool, 5)
    assert [step.next_obs[:, 0].tolist() for step in steps] == [[1.0] * 2, [2.0] * 2, [3.0] * 2, [0.0] * 2, [1.0] * 2]
    assert [step.terminated.tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2, *[[False] * 2] * 2]
    assert [None if step.valid is None else step.valid.tolist() for step in steps] == [*[None] * 3, [False] * 2, None]
    assert steps[3].reward.tolist() == [0.0] * 2 and not steps[3].truncated.any()


def test_processes_that_forget_a_reset_are_refused():
    """Without shared memory, gymnasium's AsyncVectorEnv resets again in the step after a reset that was asked for."""
    env = AsyncVectorEnv([scripted((1,))], shared_memory=False, context="forkserver")
    try:
        with pytest.raises(ConfigurationError, match="forgets that it was reset.*shared_memory=True"):
            VectorPool(env)
    finally:
        env.close()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_copied_where_no_episode_ended(mode):
    pool = VectorPool(vector(scripted((5,)), mode=mode))
    pool.reset()
    step = pool.step(GO)
    assert pool.begin_episodes() is step.next_obs and step.valid is None


@pytest.mark.parametrize("mode", MODES)
def test_what_has_begun_does_not_begin_again(mode):
    pool = VectorPool(vector(scripted((1,)), scripted((9,)), mode=mode))
    assert pool.reset() is pool.begin_episodes([7, 8])
    go(pool)
    first = pool.begin_episodes()
    assert pool.begin_episodes() is first and pool.begin_episodes([7, 8]) is first
    assert first.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert [env.seeds for env in pool.env.envs] == [[None, None], [None]]


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_no_later_vector_step_writes_into_what_was_returned(mode, copies):
    pool = VectorPool(vector(scripted((2,)), scripted((9,)), mode=mode, copy=copies))
    kept = [pool.reset()]
    for _ in range(4):
        kept.append(pool.begin_episodes())
        step = pool.step(np.array([0, 0]))
        kept += [step.next_obs, step.reward, step.terminated, step.truncated]
    before = [array.copy() for array in kept]
    go(pool, 4)
    pool.reset()
    assert all((now == then).all() for now, then in zip(kept, before, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ended", [False, True])
def test_episodes_can_be_ended_from_outside(mode, ended):
    """Env 1 is forced into episode 1, in which it is already if SAME_STEP autoreset has just ended episode 0."""
    pool = VectorPool(vector(scripted((9,)), scripted((1 if ended else 9,)), mode=mode))
    go(pool)
    pool.end_episodes(np.array([False, True]))
    assert pool.begin_episodes().tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert pool.begin_episodes().tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert [len(env.seeds) for env in pool.env.envs] == [1, 2]
    step = pool.step(np.array([0, 0]))
    assert step.next_obs.tolist() == [[0.0, 2.0], [1.0, 1.0]]
    assert step.valid is None


@pytest.mark.parametrize("mode", MODES)
def test_whatever_ended_episodes_each_env_is_reset_once(mode):
    """Env 0 ends by itself, env 1 is ended, env 2 too but by another call, env 3 goes on."""
    pool = VectorPool(vector(scripted((1,)), *[scripted((9,))] * 3, mode=mode))
    go(pool)
    for ended in ([True, True, False, False], [False] * 4, [False, False, True, False]):
        pool.end_episodes(np.array(ended))
    assert [env.episode for env in pool.env.envs] == [int(mode == AutoresetMode.SAME_STEP), 0, 0, 0]
    assert pool.begin_episodes().tolist() == [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert [len(env.seeds) for env in pool.env.envs] == [2, 2, 2, 1]
    assert go(pool)[0].next_obs.tolist() == [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 2.0]]


@pytest.mark.parametrize("mode", MODES)
def test_all_episodes_can_be_ended_at_once(mode):
    pool = VectorPool(vector(scripted((9,)), scripted((9,)), mode=mode))
    go(pool)
    pool.end_episodes(np.array([True, True]))
    assert pool.begin_episodes([7, None]).tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert [env.seeds for env in pool.env.envs] == [[None, 7], [None, None]]


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_ended_from_outside_starts_the_limit_anew(mode):
    pool = VectorPool(vector(scripted((9,)), scripted((9,)), mode=mode), max_episode_len=3)
    go(pool, 2)
    pool.end_episodes(np.array([True, False]))
    assert [step.truncated.tolist() for step in go(pool, 3)] == [[False, True], [False] * 2, [True, False]]


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_ended_from_outside_inside_a_wrapper_spends_no_step(mode):
    """Nor is what ended by itself reset twice: with NEXT_STEP it still spends its step."""
    inner = vector(scripted((1, 9)), scripted((9,)), mode=mode)
    pool = VectorPool(RecordEpisodeStatistics(inner))
    go(pool)
    pool.end_episodes(np.array([True, True]))
    spends = mode == AutoresetMode.NEXT_STEP
    assert pool.begin_episodes().tolist() == [[0.0, 1.0] if spends else [1.0, 0.0], [1.0, 0.0]]
    steps = go(pool, 2)
    assert steps[1].next_obs.tolist() == [[1.0, 1.0 if spends else 2.0], [1.0, 2.0]]
    assert (steps[0].valid.tolist() if spends else steps[0].valid) == ([False, True] if spends else None)
    assert [len(env.seeds) for env in inner.envs] == [2, 2]


@pytest.mark.parametrize(("mode", "shared"), PROCESSES)
def test_episodes_in_their_own_processes_are_ended_and_seeded(mode, shared):
    """Env 0 ends by itself, env 1 is ended. SAME_STEP has reset env 0 before it is reset with its seed."""
    kwargs = {"context": "forkserver", "autoreset_mode": mode, "shared_memory": shared}
    pool = VectorPool(AsyncVectorEnv([scripted((1, 9, 9)), scripted((9,))], **kwargs))
    same_step = mode == AutoresetMode.SAME_STEP
    try:
        pool.reset(3)
        go(pool)
        pool.end_episodes(np.array([False, True]))
        assert pool.begin_episodes([7, None]).tolist() == [[1.0 + same_step, 0.0], [1.0, 0.0]]
        assert pool.env.get_attr("seeds") == ([3, None, 7] if same_step else [3, 7], [4, None])
        assert go(pool)[0].next_obs.tolist() == [[1.0 + same_step, 1.0], [1.0, 1.0]]
    finally:
        pool.close()


@pytest.mark.parametrize("mode", MODES)
def test_no_env_is_reset_before_its_next_episode_begins(mode):
    """SAME_STEP is what the user chose, and resets in the step itself."""
    pool = VectorPool(vector(scripted((1,)), scripted((9,)), mode=mode))
    go(pool)
    assert [len(env.seeds) for env in pool.env.envs] == [1 + (mode == AutoresetMode.SAME_STEP), 1]
    pool.begin_episodes()
    assert [len(env.seeds) for env in pool.env.envs] == [2, 1]
    assert [env.episode for env in pool.env.envs] == [1, 0]


@pytest.mark.parametrize("mode", MODES)
def test_each_episode_can_begin_with_its_own_seed(mode):
    pool = VectorPool(vector(scripted((1,)), scripted((2,)), mode=mode))
    pool.reset([3, 4])
    go(pool)
    pool.begin_episodes([11, 99])  # env 1 is in the middle of its episode, and left alone
    pool.step(np.array([0, 0]))
    pool.begin_episodes([22, 33])
    by_itself = [None] if mode == AutoresetMode.SAME_STEP else []
    assert [env.seeds for env in pool.env.envs] == [[3, *by_itself, 11, *by_itself, 22], [4, *by_itself, 33]]


@pytest.mark.parametrize("mode", MODES)
def test_max_episode_len_truncates_in_every_mode(mode):
    """Lengths 2 and 9 under a limit of 3: env 0 ends by itself, env 1 is cut off at its third step."""
    pool = VectorPool(vector(scripted((2,)), scripted((9,)), mode=mode), max_episode_len=3)
    steps = go(pool, 4)
    assert [step.terminated.tolist() for step in steps] == [[False] * 2, [True, False], [False] * 2, [True, False]]
    assert [step.truncated.tolist() for step in steps] == [[False] * 2, [False] * 2, [False, True], [False] * 2]
    assert steps[2].next_obs.tolist() == [[1.0, 1.0], [0.0, 3.0]]
    assert steps[3].next_obs.tolist() == [[1.0, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize("mode", MODES)
def test_episodes_that_end_by_themselves_at_the_limit_are_both_in_every_mode(mode):
    """Lengths 2 and 9 under a limit of 2, twice: env 0 terminates where env 1 is only cut off."""
    pool = VectorPool(vector(scripted((2,)), scripted((9,)), mode=mode), max_episode_len=2)
    steps = go(pool, 4)
    assert [step.terminated.tolist() for step in steps] == [[False] * 2, [True, False]] * 2
    assert [step.truncated.tolist() for step in steps] == [[False] * 2, [True] * 2] * 2
    assert [step.next_obs.tolist() for step in steps] == [
        [[0.0, 1.0]] * 2, [[0.0, 2.0]] * 2, [[1.0, 1.0]] * 2, [[1.0, 2.0]] * 2,
    ]  # fmt: skip
    assert all(step.valid is None for step in steps)
    assert pool.begin_episodes().tolist() == [[2.0, 0.0]] * 2
    assert [len(env.seeds) for env in pool.env.envs] == [3, 3]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrap", [lambda env: env, RecordEpisodeStatistics], ids=["plain", "wrapped"])
def test_an_env_that_needs_a_reset_gets_one_in_every_mode(mode, wrap):
    """Env 0 asks for it at its second step, env 1 at its third; neither resets itself."""
    pool = VectorPool(wrap(vector(*[functools.partial(NeedsReset, every) for every in (2, 3)], mode=mode)))
    factories = [lambda: NeedsReset(2), lambda: NeedsReset(3)]
    for factory, mine in zip(factories, transitions(pool, np.ones((7, 2), int)), strict=True):
        assert mine == alone(factory, mine)
        assert len(mine) == 7 and not any(seen.terminated for seen in mine)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_max_episode_len_needs_the_wrapper_where_no_env_can_be_told_to_reset(mode):
    with pytest.raises(ConfigurationError, match="max_episode_len=3.*TimeLimit"):
        VectorPool(Own(mode), max_episode_len=3)


@pytest.mark.parametrize("given", [AutoresetMode.NEXT_STEP, "NEXT_STEP", "NextStep"])
def test_the_autoreset_mode_may_be_an_enum_or_a_string(given):
    env = Own(AutoresetMode.NEXT_STEP)
    env.metadata["autoreset_mode"] = given
    assert go(VectorPool(env), 4)[-1].valid.tolist() == [False, False]


@pytest.mark.parametrize("given", [None, "sometimes"])
def test_a_vector_env_must_say_its_autoreset_mode(given):
    env = vector(scripted((1,)))
    env.metadata["autoreset_mode"] = given
    with pytest.raises(EnvError, match=f"= {given!r}. Set it to gymnasium.vector.AutoresetMode"):
        VectorPool(env)


class Own(VectorEnv):
    """A user's vector env of two envs that count to three, without gymnasium's help."""

    def __init__(self, mode: AutoresetMode, final_obs: bool = True) -> None:
        self.num_envs, self.metadata = 2, {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = spaces.Box(0.0, 9.0, (1,)), spaces.Discrete(2)
        self.t, self.final_obs = np.zeros((2, 1), np.float32), final_obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t[:] = 0.0
        return self.t, {}

    def step(self, actions: Any) -> Any:
        self.t += 1.0
        over, last = self.t[:, 0] == 3.0, self.t.copy()
        self.t[over] = 0.0
        return self.t, np.ones(2), over, np.zeros(2, bool), {"final_obs": last} if self.final_obs else {}


class OwnNextStep(Own):
    """The same with NEXT_STEP, and with nonsense in place of the reward and the flag of a step that only resets."""

    def __init__(self) -> None:
        super().__init__(AutoresetMode.NEXT_STEP)

    def step(self, actions: Any) -> Any:
        resets = self.t[:, 0] == 3.0
        self.t = np.where(resets[:, None], 0.0, self.t + 1.0).astype(np.float32)
        return self.t, np.where(resets, 7.0, 1.0), self.t[:, 0] == 3.0, resets.copy(), {}


def test_final_observations_may_come_as_one_array():
    pool = VectorPool(Own(AutoresetMode.SAME_STEP))
    kept = pool.reset()
    steps = go(pool, 3)
    assert steps[2].next_obs.tolist() == [[3.0], [3.0]] and pool.begin_episodes().tolist() == [[0.0], [0.0]]
    assert kept.tolist() == [[0.0], [0.0]] and steps[0].next_obs.tolist() == [[1.0], [1.0]]


def test_same_step_without_final_observations_is_refused():
    pool = VectorPool(Own(AutoresetMode.SAME_STEP, final_obs=False))
    pool.reset()
    pool.step(np.array([0, 0])), pool.step(np.array([0, 0]))
    with pytest.raises(EnvError, match="gave no infos.*final_obs"):
        pool.step(np.array([0, 0]))


def test_a_vector_env_that_only_resets_as_a_whole_says_so():
    pool = VectorPool(Own(AutoresetMode.SAME_STEP))
    pool.reset()
    go(pool)
    with pytest.raises(ConfigurationError, match="cannot reset some"):
        pool.end_episodes(np.array([True, False]))
    pool.end_episodes(np.array([True, True]))
    assert pool.begin_episodes().tolist() == [[0.0], [0.0]]
    with pytest.raises(ConfigurationError, match="no seeds for single envs"):
        pool.reset([1, 2])
    go(pool, 3)
    with pytest.raises(ConfigurationError, match="no seeds for single envs"):
        pool.begin_episodes([1, 2])


class Asks(Own):
    """All its envs, or the first alone, ask for a reset after their second step; there is no mask beside it."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__(AutoresetMode.SAME_STEP)
        self.alone = alone

    def step(self, actions: Any) -> Any:
        *rest, infos = super().step(actions)
        return *rest, {**infos, "needs_reset": (self.t[:, 0] == 2.0) & [True, not self.alone]}


def test_an_env_that_needs_a_reset_where_only_the_whole_can_be_reset():
    pool = VectorPool(Asks(alone=False))
    assert [step.truncated.tolist() for step in go(pool, 3)] == [[False] * 2, [True] * 2, [False] * 2]
    pool = VectorPool(Asks(alone=True))
    go(pool)
    with pytest.raises(ConfigurationError, match=r'info\["needs_reset"\]: .* cannot reset some'):
        go(pool)


def test_what_is_not_finite_is_named_with_its_env():
    pool = VectorPool(vector(scripted((9,)), functools.partial(NotFiniteAt, 2)))
    pool.reset()
    pool.step(np.array([0, 0]))
    with pytest.raises(NonFiniteError, match=r"env 1 gave observation\[1\] = nan at step 2"):
        pool.step(np.array([0, 0]))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_a_last_observation_that_is_not_finite_is_named_too(mode):
    pool = VectorPool(vector(functools.partial(NotFiniteAt, 1, length=1), mode=mode))
    pool.reset()
    with pytest.raises(NonFiniteError, match=r"env 0 gave observation\[1\] = nan at step 1"):
        pool.step(GO)


def test_a_reward_that_is_not_finite_is_named_with_its_env():
    pool = VectorPool(vector(scripted((9,)), functools.partial(NotFiniteAt, 1, field="reward")))
    pool.reset()
    with pytest.raises(NonFiniteError, match="env 1 gave reward = nan at step 1"):
        pool.step(np.array([0, 0]))


def test_an_exception_in_an_envs_own_process_comes_through(monkeypatch):
    monkeypatch.setattr(gym.logger, "min_level", 50)
    pool = VectorPool(AsyncVectorEnv([functools.partial(Broken, "step")], context="forkserver"))
    pool.reset()
    try:
        with pytest.raises(ValueError, match="sensor unplugged"):
            pool.step(GO)
    finally:
        pool.close()


# ---- several pools, and failures, on the same envs -------------------------------------------------------------------


class Whole(VectorEnv):
    """A user's vector env that resets only as a whole. Observation: [episode, step within it]."""

    def __init__(self, mode: AutoresetMode, lengths: tuple[int, ...]) -> None:
        self.num_envs, self.metadata, self.mode = len(lengths), {"autoreset_mode": mode}, mode
        self.single_observation_space, self.single_action_space = LOW_HIGH, spaces.Discrete(2)
        self.lengths, self.done = np.array(lengths), np.zeros(len(lengths), bool)
        self.obs = np.full((self.num_envs, 2), -1, np.float32)

    def begin(self, mask: Any) -> None:
        self.obs[mask, 0] += 1
        self.obs[mask, 1] = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.begin(slice(None))
        self.done[:] = False
        return self.obs.copy(), {}

    def step(self, actions: Any) -> Any:
        resets = self.done & (self.mode == AutoresetMode.NEXT_STEP)
        self.obs[~resets, 1] += 1
        self.begin(resets)
        done = self.done = (self.obs[:, 1] >= self.lengths) & ~resets
        last = self.obs.copy()
        if self.mode == AutoresetMode.SAME_STEP:
            self.begin(done)
        return self.obs.copy(), np.where(resets, 0.0, 1.0), done.copy(), np.zeros(len(done), bool), {"final_obs": last}


@pytest.mark.parametrize("wrap", [lambda env: env, RecordEpisodeStatistics], ids=["plain", "wrapped"])
@pytest.mark.parametrize("mode", MODES)
def test_after_somebody_else_has_used_the_envs_all_begin_anew(mode, wrap):
    env = wrap(vector(scripted((1, 9)), scripted((9,)), mode=mode))
    train, evaluation = VectorPool(env), VectorPool(env)
    go(train)
    evaluation.reset(0)
    go(evaluation, 3)
    train.abandon_episodes()
    assert train.begin_episodes().tolist() == [inner.observe().tolist() for inner in env.unwrapped.envs]
    assert all(inner.t == 0 for inner in env.unwrapped.envs)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_all_episodes_are_ended_where_only_the_whole_can_be_reset(mode):
    pool = VectorPool(Whole(mode, (1, 9)))
    go(pool)
    pool.end_episodes(np.array([True, True]))
    assert pool.begin_episodes().tolist() == pool.env.obs.tolist()
    assert go(pool)[0].next_obs[:, 1].tolist() == [1.0, 1.0]


def test_ending_nothing_is_always_possible():
    pool = VectorPool(Whole(AutoresetMode.SAME_STEP, (1, 9)))
    go(pool)
    pool.end_episodes(np.array([False, False]))


class FailsOnce(Scripted):
    fails = False

    def reset(self, **kwargs: Any) -> Any:
        if self.fails:
            self.fails = False
            raise ValueError("sensor unplugged")
        return super().reset(**kwargs)


@pytest.mark.parametrize("several", [False, True])
def test_an_episode_that_cannot_begin_is_still_over(several):
    env = FailsOnce((1,))
    pool = VectorPool(vector(lambda: env, mode=AutoresetMode.DISABLED)) if several else SinglePool(env)
    go(pool)
    env.fails = True
    with pytest.raises(ValueError, match="unplugged"):
        pool.begin_episodes()
    assert pool.begin_episodes().tolist() == [[1.0, 0.0]]


def test_seeds_that_are_refused_leave_the_episodes_over():
    pool = VectorPool(Whole(AutoresetMode.DISABLED, (1, 1)))
    go(pool)
    with pytest.raises(ConfigurationError, match="no seeds"):
        pool.begin_episodes([1, 2])
    assert pool.begin_episodes().tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_the_mask_stays_the_callers():
    pool = VectorPool(vector(scripted((9,)), scripted((9,))))
    go(pool)
    mask = np.array([False, True])
    pool.end_episodes(mask)
    mask[:] = False
    assert pool.begin_episodes().tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_an_env_that_has_reset_itself_is_reset_again_only_for_a_seed():
    pool = VectorPool(vector(scripted((1, 9)), scripted((1, 9))))
    go(pool)
    pool.begin_episodes([None, 5])
    assert [env.seeds for env in pool.env.envs] == [[None, None], [None, None, 5]]
