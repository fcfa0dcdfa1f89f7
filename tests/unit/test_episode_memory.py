"""Whole episodes against brute force: which come back, and when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_lightning.memory import EpisodeMemory, Memory, episodes
from rl_lightning.types import ConfigurationError, ShapeError
from tests.unit.test_memory import saved_and_loaded, transition


def learned(batch):
    """The actions of a batch, 100 * env + step each."""
    assert batch["reward"].shape[1] == 1 and batch["obs"].shape[1:] == (1, 2)
    return batch["action"].flatten().tolist()


def batches_of(memory, ends, valid=None):
    """The batch that each step makes due, or None. `ends`: at which steps the episode of each env is over."""
    found = []
    for step in range(1 + max(map(max, ends))):
        terminated = [step in own for own in ends]
        row = None if valid is None else [step not in own for own in valid]
        memory.add(transition(step, len(ends), terminated=terminated, valid=row))
        due = list(memory.batches())
        assert len(due) <= 1
        found.append(learned(due[0]) if due else None)
    return found


def test_it_is_a_memory():
    assert isinstance(EpisodeMemory(2, 3), Memory)


def test_one_env_leaves_nothing_out():
    assert batches_of(EpisodeMemory(2, 1), [[1, 2, 5, 6]]) == [None, None, [0, 1, 2], None, None, None, [3, 4, 5, 6]]


def test_those_that_begin_first_count_though_others_end_first():
    """Env 1 has done with two episodes before the first of env 0 is over; its second begins too late to count."""
    found = batches_of(EpisodeMemory(2, 2), [[3], [0, 2]])
    assert found == [None, None, None, [0, 1, 2, 3, 100]]


def test_an_episode_that_another_policy_began_is_left_out():
    """Env 1 runs on over the batch at step 1, to step 3; after it both begin anew."""
    found = batches_of(EpisodeMemory(1, 2), [[1, 4, 6], [3, 5, 6]])
    assert found == [None, [0, 1], None, None, [2, 3, 4], None, [5, 6]]


def test_fewer_episodes_than_envs():
    assert batches_of(EpisodeMemory(1, 3), [[2], [0], [1]]) == [None, None, [0, 1, 2]]


def test_rows_that_are_no_experience_belong_to_no_episode():
    """The env resets itself in step 2, and its next episode begins in step 3."""
    found = batches_of(EpisodeMemory(2, 1), [[1, 4]], valid=[[2]])
    assert found == [None, None, None, None, [0, 1, 3, 4]]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
def test_against_a_list_of_all_episodes(num_envs, num_episodes, seed):
    rng = np.random.default_rng(seed)
    memory = EpisodeMemory(num_episodes, num_envs)
    running: list[list[int] | None] = [[] for _ in range(num_envs)]  # None: it does not count
    begun: list[tuple[int, list[int]]] = []
    over: set[int] = set()
    for step in range(60):
        ended, valid = rng.random((2, num_envs)) < [[0.2], [0.9]]
        memory.add(transition(step, num_envs, truncated=ended & valid, valid=valid))
        for env in np.flatnonzero(valid):
            actions = running[env]
            if actions == [] and len(begun) < num_episodes:
                begun.append((id(actions), actions))
            if actions is not None:
                actions.append(100 * env + step)
            if ended[env]:
                over.add(id(actions))
                running[env] = []
        due = list(memory.batches())
        is_due = len(begun) == num_episodes and all(name in over for name, _ in begun)
        assert len(due) == is_due
        if is_due:
            assert learned(due[0]) == [action for _, actions in begun for action in actions]
            begun, over, running = [], set(), [None if actions else actions for actions in running]
        assert len(memory) == sum(len(actions) for _, actions in begun)


def test_room_grows_and_has_an_end(monkeypatch):
    monkeypatch.setattr(episodes, "FIRST_ROWS", 2)
    assert batches_of(EpisodeMemory(1, 1), [[8]])[-1] == list(range(9))
    monkeypatch.setattr(episodes, "MAX_ROWS", 4)
    with pytest.raises(ConfigurationError, match="1 episodes are not over after 4 steps.*max_episode_len"):
        batches_of(EpisodeMemory(1, 1), [[8]])


def test_parts_of_observations_stay_parts():
    memory = EpisodeMemory(1, 2)
    memory.add(transition(0, 2, terminated=True, nested=True))
    (batch,) = memory.batches()
    assert batch["obs"]["a.b"].shape == (1, 1, 2) and batch["next_obs"]["image"].shape == (1, 1, 2, 2)


def test_cut_episodes_end_as_truncated():
    memory = EpisodeMemory(2, 2)
    memory.cut_episodes()
    memory.add(transition(0, 2, terminated=[False, True]))
    memory.add(transition(9, 2, valid=[False, False]))
    memory.cut_episodes()
    (batch,) = memory.batches()
    assert learned(batch) == [0, 100]
    assert batch["truncated"].flatten().tolist() == [True, False]
    assert batch["terminated"].flatten().tolist() == [False, True]
    memory.add(transition(1, 2, terminated=True))
    assert learned(*memory.batches()) == [1, 101]


def test_the_state_goes_on_in_another_memory():
    memory, other = EpisodeMemory(2, 2), EpisodeMemory(2, 2)
    for step in range(3):
        memory.add(transition(step, 2, terminated=[step == 1, False]))
        assert not list(memory.batches())
    other.load_state_dict(saved_and_loaded(memory))
    for each in (memory, other):
        each.add(transition(3, 2, terminated=[False, True]))
    first, second = (learned(*each.batches()) for each in (memory, other))
    assert first == second == [0, 1, 100, 101, 102, 103]
    EpisodeMemory(1, 1).load_state_dict(saved_and_loaded(EpisodeMemory(1, 1)))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigurationError, match="num_episodes=0"):
        EpisodeMemory(0, 1)
    with pytest.raises(ShapeError, match="num_envs=2"):
        EpisodeMemory(1, 2).add(transition(0, 3))
    memory = EpisodeMemory(2, 2)
    memory.add(transition(0, 2))
    for other in (EpisodeMemory(2, 3), EpisodeMemory(1, 2)):
        with pytest.raises(ConfigurationError, match="the memory saved has 2 episodes of 2 envs"):
            other.load_state_dict(memory.state_dict())
