"""Rows of a replay memory in files, one for what is new each time: a fresh memory gets the same back, bit for bit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_lightning.memory import ReplayMemory
from rl_lightning.memory.row_files import RowReader, RowWriter
from rl_lightning.types import ConfigurationError
from tests.unit.test_frames import Stacks, identical


def make(num_rows=5, num_envs=1, **arguments):
    return ReplayMemory(num_rows * num_envs, num_envs=num_envs, batch_size=1, learning_starts=0, **arguments)


def written(memory, start, stop):
    file = io.BytesIO()
    memory.write_rows(RowWriter(file, start, stop))
    return start, stop, file.getvalue()


def restored(memory, state, files):
    """From files of which an older one may have rows that are there no longer."""
    first = max(state["num_written"] - memory.num_rows, 0)
    wanted = [(start, stop, data) for start, stop, data in files if stop > first]
    memory.restore(state, (RowReader(io.BytesIO(d), a, b, first=first, name="rows.npy") for a, b, d in wanted))
    return memory


def plain(state):
    """Tensors and plain data as what can be compared."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return (state.dtype, state.shape, state.numpy().tobytes()) if hasattr(state, "numpy") else state


@settings(max_examples=100)
@given(
    num_envs=st.integers(1, 3),
    num_rows=st.integers(1, 9),
    stack=st.integers(1, 4),
    share_of_ends=st.sampled_from([0.0, 0.1, 0.6]),
    share_of_noise=st.sampled_from([0.0, 0.1, 1.0]),
    share_valid=st.sampled_from([0.7, 1.0]),
    nested=st.booleans(),
    compact=st.booleans(),
    alpha=st.sampled_from([0.0, 0.6]),
    num_steps=st.sampled_from([1, 3]),
    seed=st.integers(0, 9999),
)
def test_files_of_what_is_new_give_the_same_memory(
    num_envs, num_rows, stack, share_of_ends, share_of_noise, share_valid, nested, compact, alpha, num_steps, seed
):
    """Around the ring's end, over episodes that are cut off after they were written, and on from a restored one."""
    rng = np.random.default_rng(seed)
    shares = {"share_of_ends": share_of_ends, "share_of_noise": share_of_noise}
    envs = Stacks(num_envs, stack, rng, nested=nested, **shares)
    arguments = {"num_rows": num_rows, "num_envs": num_envs, "compact": compact, "alpha": alpha, "num_steps": num_steps}
    memory, files, saved = make(**arguments), [], 0
    for _ in range(6):
        for _ in range(rng.integers(2 * num_rows)):
            memory.add(envs.step(rng.random(num_envs) < share_valid))
            if rng.random() < 0.2:
                memory.cut_episodes()
        num_written = memory.moment[0]
        if num_written:
            start = max(saved - 1, num_written - num_rows, 0)  # the row written last may have changed since
            files.append(written(memory, start, num_written))
        saved = num_written
        fresh = restored(make(**arguments), memory.snapshot(), files)
        assert plain(fresh.state_dict()) == plain(memory.state_dict())
        if len(memory):
            assert identical(fresh.sample(), memory.sample())
        if rng.random() < 0.3:
            memory = fresh


@pytest.mark.parametrize("compact", [False, True])
def test_files_that_do_not_fit_are_named_and_change_nothing(compact):
    memory, envs = make(compact=compact), Stacks(1, 2, np.random.default_rng(0), share_of_noise=0.5)
    for _ in range(4):
        memory.add(envs.step())
    state = memory.snapshot()
    start, stop, data = written(memory, 0, 4)
    other = make(compact=compact)
    other.add(envs.step())
    before = plain(other.state_dict())
    for wrong in ([(start, stop, data[:cut])] for cut in range(0, len(data), 7)):
        with pytest.raises(ConfigurationError, match=r"rows\.npy is (damaged|truncated)"):
            restored(other, state, wrong)
    with pytest.raises(ConfigurationError, match=r"rows\.npy does not fit: it has 4 rows"):
        restored(other, state, [(0, 10**15, data)])
    assert plain(other.state_dict()) == before


@pytest.mark.parametrize("field", [["|O", []], ["<U3", []], ["<f4", [10**12, 10**12]], ["os.system", []], "<f4"])
def test_a_row_of_anything_but_numbers_is_refused(field):
    memory = make(compact=False)
    memory.add(Stacks(1, 2, np.random.default_rng(0)).step())
    state = memory.snapshot()
    state["table"]["fields"]["action"] = field
    with pytest.raises(ConfigurationError, match="no row of a memory"):
        restored(make(), state, [])
