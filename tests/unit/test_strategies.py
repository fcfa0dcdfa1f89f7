"""Gathering: what is known of training episodes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rl_lightning.strategies.strategy import Episodes

STEP = st.tuples(st.floats(-100, 100, width=32), st.booleans(), st.booleans())


def row(value, kind, times):
    return np.full(times, value, kind)


@given(st.lists(STEP, max_size=30))
def test_one_env_is_counted_like_each_of_several(steps):
    """Steps of reward, end and validity; what is not valid has no reward and ends nothing."""
    one, three = Episodes(1), Episodes(3)
    for reward, done, valid in steps:
        for episodes, times in ((one, 1), (three, 3)):
            mask = None if valid else row(False, bool, times)
            episodes.add(row(reward * valid, np.float32, times), row(done and valid, bool, times), mask)
    assert three.num_finished == 3 * one.num_finished == 3 * sum(done and valid for _, done, valid in steps)
    assert list(three.recent_returns)[::3] == list(one.recent_returns)
    assert list(three.recent_lengths)[::3] == list(one.recent_lengths)
    assert sum(one.recent_lengths) <= sum(valid for *_, valid in steps)


def test_returns_by_hand():
    episodes = Episodes(2)
    for done in ([False, True], [False, True], [True, False]):
        episodes.add(np.array([1.0, 0.5], np.float32), np.array(done), None)
    assert (list(episodes.recent_returns), list(episodes.recent_lengths)) == ([0.5, 0.5, 3.0], [1, 1, 3])
    assert episodes.num_finished == 3


def test_as_many_as_can_end_at_once_are_kept():
    episodes = Episodes(150)
    episodes.add(np.ones(150, np.float32), np.ones(150, bool), None)
    assert len(episodes.recent_returns) == 150
