"""Envs in worker processes: as if they were here, until one of them fails."""

from __future__ import annotations

import functools
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from gymnasium import spaces

from rl_lightning import evaluate
from rl_lightning.agents import DQN
from rl_lightning.agents.foreign import as_agent
from rl_lightning.envs import EnvRecipe, LockstepPool, SubprocessPool
from rl_lightning.memory import RolloutMemory
from rl_lightning.testing import FaultyEnv
from rl_lightning.types import ConfigurationError, EnvError, NonFiniteError, Transition, WorkerError
from rl_lightning.workers import Supervisor
from tests.envs import (
    Broken,
    GivesObservation,
    NeedsReset,
    Nested,
    Noisy,
    NotFiniteAt,
    OldReset,
    OldSeed,
    OldStep,
    ReusesMemory,
    Scripted,
    go,
)

GO = np.zeros(1, int)


@pytest.fixture
def make() -> Iterator[Callable[..., SubprocessPool]]:
    """`make(factory, num_envs)`: a pool, with forked workers because they start quickly; closed at the end."""
    made: list[SubprocessPool] = []

    def make(factory: Callable[[], Any], num_envs: int = 1, **kwargs: Any) -> SubprocessPool:
        like = factory() if "like" not in kwargs else kwargs.pop("like")
        kwargs = {"start_method": "fork", **kwargs}
        spaces_ = {"observation_space": like.observation_space, "action_space": like.action_space}
        made.append(SubprocessPool(factory, num_envs, **spaces_, **kwargs))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def lockstep(factory: Callable[[], Any], num_envs: int, max_episode_len: int | None = None) -> LockstepPool:
    pool = EnvRecipe(factory, max(num_envs, 2), max_episode_len=max_episode_len).make()
    assert isinstance(pool, LockstepPool)
    return pool


def flat(obs: Any) -> list[Any]:
    return [array.tolist() for array in obs.values()] if isinstance(obs, dict) else obs.tolist()


def life(pool: Any, num_steps: int, seed: Any = 3) -> list[Any]:
    """Everything that a pool gives in so many steps; twice an episode is ended from outside, once with a seed."""
    rng = np.random.default_rng(0)
    seen = [flat(pool.reset(seed))]
    for t in range(num_steps):
        seeds = None
        if t in (5, 11):
            pool.end_episodes(np.arange(pool.num_envs) == 1)
            seeds = [None, 77, *[None] * (pool.num_envs - 2)] if t == 5 else None
        seen.append(flat(pool.begin_episodes(seeds)))
        action = np.stack([rng.integers(2) for _ in range(pool.num_envs)])
        if isinstance(pool.action_space, spaces.Box):
            action = rng.uniform(-1, 1, (pool.num_envs, *pool.action_space.shape)).astype(np.float32)
        step = pool.step(action)
        assert step.reward.dtype == np.float32 and step.terminated.dtype == step.truncated.dtype == np.bool_
        seen.append([flat(step.next_obs), step.reward.tolist(), step.terminated.tolist(), step.truncated.tolist()])
        assert step.valid is None
    return seen


# ---- as if they were here --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [None, 2])
@pytest.mark.parametrize(
    ("factory", "max_episode_len"),
    [
        ("CartPole-v1", 13),
        ("Pendulum-v1", None),
        (functools.partial(Nested, (2, 3)), None),
        (functools.partial(Scripted, (9, 1), truncates=True), 4),
        (functools.partial(NeedsReset, 3), None),
        (functools.partial(ReusesMemory, (2,)), None),
        (functools.partial(Scripted, action_space=spaces.Discrete(2, start=5)), None),
        (functools.partial(Scripted, action_space=spaces.MultiBinary(())), None),
        (Noisy, None),
    ],
)
def test_the_same_seeds_give_the_same_lives_bit_for_bit(make, factory, max_episode_len, num_workers):
    recipe = EnvRecipe(factory)
    one = recipe.make().env
    ours = make(
        functools.partial(made_by, recipe), 3, like=one, max_episode_len=max_episode_len, num_workers=num_workers
    )
    theirs = lockstep(factory, 3, max_episode_len)
    assert life(ours, 25) == life(theirs, 25)
    assert life(ours, 5, [4, None, 5]) == life(theirs, 5, [4, None, 5]) or factory in ("CartPole-v1", "Pendulum-v1")
    assert ours.num_steps == theirs.num_steps == 30
    assert ours.num_workers == (num_workers or 3)


def made_by(recipe: EnvRecipe) -> Any:
    return recipe.make().env


def test_no_later_step_writes_into_what_was_returned(make):
    pool = make(functools.partial(ReusesMemory, (2,)), 2)
    kept = [pool.reset()]
    for step in go(pool, 3):
        kept += [step.next_obs, step.reward, step.terminated, step.truncated]
    before = [array.copy() for array in kept]
    go(pool, 4), pool.reset()
    assert all((now == then).all() for now, then in zip(kept, before, strict=True))


def test_an_env_cannot_write_into_a_later_action(make):
    class Greedy(Scripted):
        def step(self, action):
            result = super().step(action.copy())
            action[:] = 0.5
            return result

        def taken(self):
            return [action.tolist() for action in self.actions]

    pool = make(functools.partial(Greedy, action_space=spaces.Box(-1.0, 1.0, (1,))))
    pool.reset()
    pool.step(np.array([[0.25]], np.float32)), pool.step(np.array([[-0.25]], np.float32))
    assert pool.env.call("taken") == ([[0.25], [-0.25]],)


def test_who_rests_is_not_stepped(make):
    """Env 2 alone in its worker, env 1 beside env 0."""
    pool = make(functools.partial(Scripted, (2,)), 3, num_workers=2)
    pool.reset()
    go(pool)
    pool.rest(np.array([False, True, False])), pool.rest(np.array([False, False, True]))
    steps = go(pool, 2)
    assert [step.valid.tolist() for step in steps] == [[True, False, False]] * 2
    assert [step.next_obs.tolist() for step in steps] == [[[0, 2], [0, 1], [0, 1]], [[1, 1], [0, 1], [0, 1]]]
    assert [step.reward.tolist() for step in steps] == [[1, 0, 0]] * 2
    assert [step.terminated.tolist() for step in steps] == [[True, False, False], [False] * 3]
    assert pool.env.call("steps") == (3, 1, 1)
    pool.reset()
    assert go(pool)[0].valid is None


def test_envs_can_be_called_and_closed_through_the_vector_env(make):
    class Own(Scripted):
        level = 1

        def scaled(self, by, *, plus=0):
            return self.level * by + plus

        def render(self):
            return f"level {self.level}"

    env = make(Own, 2).env
    assert env.num_envs == 2 and env.single_action_space == spaces.Discrete(2)
    assert env.observation_space.shape == (2, 2) and env.unwrapped is env
    env.set_attr("level", [3, 4])
    assert env.call("scaled", 10, plus=5) == (35, 45) and env.get_attr("level") == (3, 4)
    env.set_attr("level", 7)
    assert env.render() == ("level 7", "level 7")
    env.close()
    env.close()


def test_what_is_wrong_with_an_env_is_said_as_if_it_were_here(make):
    with pytest.raises(EnvError, match="old gym API.*shimmy"):
        make(OldReset).reset(0)
    with pytest.raises(EnvError, match="old gym API"):
        make(OldSeed).reset(0)
    pool = make(OldStep)
    pool.reset()
    for _ in range(2):  # the worker is gone: the same again
        with pytest.raises(EnvError, match="a tuple of 4"):
            pool.step(GO)
    with pytest.raises(EnvError, match=r"shape \(3,\).*does not fit"):
        make(functools.partial(GivesObservation, np.zeros(3, np.float32))).reset()
    with pytest.raises(NonFiniteError, match=r"env 0 gave observation\[1\] = nan at step 2"):
        go(make(functools.partial(NotFiniteAt, 2), 2), 2)
    for reward, error in [(None, "not a number"), ("1.5", "not a number"), (np.zeros(2), "not a number")]:
        with pytest.raises(EnvError, match=error):
            go(make(functools.partial(Scripted, reward=reward)))
    with pytest.raises(NonFiniteError, match=r"env 0 gave reward = 1e\+300 at step 1"):
        go(make(functools.partial(Scripted, reward=1e300)))
    with pytest.raises(EnvError, match="env 1 was given action 5"):
        make(Scripted, 2).step(np.array([0, 5]))


def test_a_time_limit_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match="timeout_s=0.0: it must be a number of seconds above 0"):
        EnvRecipe(Scripted, 2, "async", worker_timeout_s=0.0).make()


def test_what_is_sent_to_an_env_may_be_large(make):
    """More than the socket holds: no part of it is taken for the wish for a step."""
    pool = make(functools.partial(Scripted, (9,)))
    pool.reset()
    pool.env.set_attr("picture", [np.ones(1_000_000)])
    assert pool.env.get_attr("picture")[0].sum() == 1_000_000 and pool.env.get_attr("t") == (0,)


# ---- failing ---------------------------------------------------------------------------------------------------------


def test_an_exception_in_an_env_is_an_error_with_its_traceback(make):
    pool = make(functools.partial(Broken, "step"), 2)
    pool.reset()
    with pytest.raises(WorkerError, match=r"(?s)worker \d .* failed at env step 0:.*ValueError: sensor unplugged"):
        pool.step(np.zeros(2, int))
    with pytest.raises(WorkerError, match="failed in reset"):
        make(functools.partial(FaultyEnv, Scripted(), "raise in reset", at_step=0)).reset()
    with pytest.raises(WorkerError, match="failed in the constructor"):
        make(functools.partial(FaultyEnv, Scripted(), "raise in constructor"), like=Scripted())


def test_what_keeps_an_env_from_being_made_is_said_as_if_it_were_here(make):
    def factory():
        raise ConfigurationError("no such sensor")

    with pytest.raises(ConfigurationError, match="^no such sensor$"):
        make(factory, like=Scripted())


@pytest.mark.parametrize(("kind", "code"), [("exit", 17), ("kill", -9), ("hang", None)])
def test_a_worker_that_ends_or_hangs_is_an_error(make, kind, code):
    pool = make(lambda: FaultyEnv(Scripted(), kind, at_step=3), 2, timeout_s=0.5)
    pool.reset()
    go(pool, 2)
    with pytest.raises(WorkerError) as caught:
        go(pool)
    assert caught.value.exit_code == code and "at env step 2" in str(caught.value)


def test_closing_leaves_nothing_even_in_the_middle_of_a_step(make, monkeypatch):
    monkeypatch.setattr(Supervisor, "stop", functools.partialmethod(Supervisor.stop, 0.2))
    before = psutil.Process().children()
    pool = make(lambda: FaultyEnv(Scripted(), "hang", at_step=1), 2)
    pool.reset()
    assert len(psutil.Process().children()) == len(before) + 2
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(TimeoutError), alarm():
        pool.step(np.zeros(2, int))
    with pytest.warns(RuntimeWarning, match="did not stop within 0.2 s"):
        pool.close()
    assert psutil.Process().children() == before
    with pytest.raises(RuntimeError, match="closed"):
        pool.reset()


class alarm:
    """Inside it, SIGALRM raises, as Ctrl-C would."""

    def __enter__(self) -> None:
        def interrupt(*args: Any) -> None:
            raise TimeoutError

        self.before = signal.signal(signal.SIGALRM, interrupt)

    def __exit__(self, *args: Any) -> None:
        signal.signal(signal.SIGALRM, self.before)


def test_after_an_interruption_all_begin_anew(make):
    class Slow(Scripted):
        def step(self, action):
            time.sleep(0.5 if self.steps == 1 else 0.0)
            return super().step(action)

    pool = make(functools.partial(Slow, (9,)), 2)
    pool.reset()
    go(pool)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(TimeoutError), alarm():
        pool.step(np.zeros(2, int))
    assert pool.begin_episodes().tolist() == [[1.0, 0.0]] * 2
    assert go(pool)[0].next_obs.tolist() == [[1.0, 1.0]] * 2


# ---- replacing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raise in step", "exit", "kill", "hang"])
def test_a_lost_env_is_replaced_and_its_episode_cut_off(make, tmp_path, fault):
    """One is lost in its third step: that row is dropped, and its next episode is the new env's first, seeded anew."""
    pool = make(lost_once(tmp_path, fault), 2, restart_workers=1, timeout_s=0.5)
    pool.reset(5)
    go(pool, 2)
    with pytest.warns(RuntimeWarning, match=r"(?s)worker \d.*made anew \(restart 1 of 1\).*cut off.*dropped"):
        (step,) = go(pool)
    both = [lost := int(np.flatnonzero(~step.valid)[0]), other := 1 - lost]
    assert step.valid[other] and pool.num_restarts == 1
    assert step.reward[both].tolist() == [0.0, 2.0] and step.next_obs[both].tolist() == [[0.0, 2.0], [0.0, 3.0]]
    assert (step.terminated[both].tolist(), step.truncated[both].tolist()) == ([False, False], [True, False])
    assert pool.begin_episodes()[both].tolist() == [[0.0, 0.0], [0.0, 3.0]]
    (step,) = go(pool)
    assert step.valid is None and step.next_obs[both].tolist() == [[0.0, 1.0], [0.0, 4.0]]
    seeds = pool.env.get_attr("seeds")
    assert seeds[other] == [5 + other] and len(seeds[lost]) == 1 and seeds[lost][0] not in (None, 5, 6)


def lost_once(directory: Any, fault: str, *, at_step: int = 3, **kwargs: Any) -> Callable[[], FaultyEnv]:
    """Makes envs of which one is lost, whichever comes first."""
    return lambda: FaultyEnv(Scripted((9,), reward=2.0), fault, at_step=at_step, once_in=directory, **kwargs)


def test_one_more_than_may_be_replaced_is_an_error(make):
    pool = make(lambda: FaultyEnv(Scripted(), "exit"), restart_workers=2)
    pool.reset()
    with pytest.warns(RuntimeWarning, match="restart"):
        steps = go(pool, 2)
    assert [step.valid.tolist() for step in steps] == [[False]] * 2
    for _ in range(2):
        with pytest.raises(WorkerError, match="exit code 17"):
            go(pool)


def test_an_env_that_is_wrong_is_not_replaced(make):
    pool = make(OldStep, restart_workers=5)
    pool.reset()
    with pytest.raises(EnvError, match="old gym API"):
        pool.step(GO)


def test_an_env_that_is_lost_as_it_is_made_or_reset_is_replaced(make, tmp_path):
    (tmp_path / "made").mkdir()
    with pytest.warns(RuntimeWarning, match="failed in the constructor"):
        pool = make(lost_once(tmp_path / "made", "raise in constructor"), 2, like=Scripted(), restart_workers=1)
    assert pool.reset([4, 5]).tolist() == [[0.0, 0.0]] * 2 and pool.env.get_attr("seeds") == ([4], [5])
    pool = make(lost_once(tmp_path, "raise in reset", at_step=0), 2, restart_workers=1)
    with pytest.warns(RuntimeWarning, match="failed in reset"):
        pool.reset([4, 5])
    assert pool.env.get_attr("seeds") == ([4], [5]) and go(pool)[0].valid is None


def test_an_env_that_is_lost_with_another_is_cut_off_in_the_next_step(make, tmp_path):
    """Both are in one worker; the episode of the first ends in step 2, and its reset is fatal for both."""

    def factory():
        return FaultyEnv(Scripted((2,) if next(numbers) == 0 else (9,)), "raise in reset", at_step=2, once_in=tmp_path)

    numbers = itertools.count()
    pool = make(factory, 2, like=Scripted(), num_workers=1, restart_workers=1)
    pool.reset()
    go(pool, 2)
    with pytest.warns(RuntimeWarning, match="failed in reset after step 2"):
        assert pool.begin_episodes().tolist() == [[0.0, 0.0]] * 2
    steps = go(pool, 2)
    assert steps[0].valid.tolist() == [True, False] and steps[1].valid is None
    assert steps[0].truncated.tolist() == [False, True] and steps[0].next_obs.tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert steps[1].next_obs.tolist() == [[0.0, 2.0], [1.0, 1.0]]


def test_an_env_that_is_lost_in_a_call_says_so_and_begins_anew(make):
    class Fragile(Scripted):
        def fall(self):
            raise ValueError("broken")

    pool = make(functools.partial(Fragile, (9,)), 2, restart_workers=2)
    pool.reset()
    go(pool)
    with pytest.warns(RuntimeWarning, match="broken"), pytest.raises(WorkerError, match="broken"):
        pool.env.call("fall")
    assert pool.begin_episodes().tolist() == [[0.0, 0.0]] * 2
    assert go(pool)[0].valid.tolist() == [False] * 2 and go(pool)[0].valid is None


def test_no_return_reaches_across_what_was_lost():
    """Two steps of two envs; env 0 is lost in the second."""
    memory = RolloutMemory(2, 2, whole=True)
    for lost in (False, True):
        row = np.array([lost, False])
        zeros, flags = np.zeros((2, 1), np.float32), np.zeros(2, np.bool_)
        memory.add(Transition(zeros, np.zeros(2, int), np.ones(2, np.float32), zeros, flags, row, {}, ~row))
    (batch,) = memory.batches()
    assert batch["truncated"].tolist() == [[True, False], [True, False]]
    assert batch["valid"].tolist() == [[True, True], [False, True]]


def test_an_episode_of_an_evaluation_that_is_lost_begins_anew(make, tmp_path):
    agent = DQN()
    agent.build(Scripted().observation_space, Scripted().action_space)
    pool = make(lost_once(tmp_path, "exit"), 2, restart_workers=1)
    with pytest.warns(RuntimeWarning, match="restart"):
        result = evaluate(agent, pool, num_episodes=3, record=True)
    assert (result.returns, result.lengths) == ([18.0] * 3, [9] * 3)


def test_an_agent_from_elsewhere_would_learn_from_what_was_lost(make):
    class Elsewhere:
        def batch_act(self, obs): ...
        def batch_observe(self, obs, reward, done, reset): ...

    with pytest.raises(ConfigurationError, match="restart_workers=1: a lost env takes a step with it"):
        as_agent(Elsewhere()).actor(make(Scripted, 2, restart_workers=1))
