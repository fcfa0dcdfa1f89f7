"""Observations stored once: what comes back is what a memory that stores everything twice gives, bit for bit."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_lightning.memory import ReplayMemory, room
from rl_lightning.types import ConfigurationError, Transition
from tests.unit.test_memory import saved_and_loaded


class Stacks:
    """B envs whose observations are stacks of frames of a few bytes, of few different values.

    Args:
        padding: how an episode's first stack is filled up: with its own frame, with zeros, or anyhow.
        share_of_noise: of observations that are something else altogether, and fit neither before nor after.
    """

    def __init__(self, num_envs, stack, rng, *, padding="first", share_of_ends=0.1, share_of_noise=0.0, nested=False):
        self.num_envs, self.stack, self.rng, self.padding = num_envs, stack, rng, padding
        self.share_of_ends, self.share_of_noise, self.nested = share_of_ends, share_of_noise, nested
        self.obs = np.stack([self._first() for _ in range(num_envs)])
        self.num_steps = 0

    def _frames(self, number):
        return self.rng.integers(3, size=(number, 2, 2), dtype=np.uint8)

    def _first(self):
        frames = self._frames(self.stack)
        if self.padding == "first":
            frames[:-1] = frames[-1]
        elif self.padding == "zeros":
            frames[:-1] = 0
        return frames

    def step(self, valid=None):
        fresh = np.stack([self._frames(1) for _ in range(self.num_envs)])
        next_obs = np.concatenate([self.obs[:, 1:], fresh], axis=1)
        for env in np.flatnonzero(self.rng.random(self.num_envs) < self.share_of_noise):
            next_obs[env] = self._frames(self.stack)
        ends = self.rng.random((2, self.num_envs)) < self.share_of_ends
        number = np.arange(self.num_envs) * 1000 + self.num_steps
        transition = Transition(
            obs=self._as_given(self.obs, number),
            action=number,
            reward=number.astype(np.float32),
            next_obs=self._as_given(next_obs, number + 1),
            terminated=ends[0],
            truncated=ends[1],
            extras={},
            valid=valid,
        )
        self.obs, self.num_steps = next_obs.copy(), self.num_steps + 1
        for env in np.flatnonzero(ends.any(axis=0)):
            self.obs[env] = self._first()
        return transition

    def _as_given(self, obs, number):
        """A copy; nested: beside a part that is small, and one that is never what it was before."""
        if not self.nested:
            return obs.copy()
        return {"a.image": obs.copy(), "vector": np.stack([number, -number], 1).astype(np.float32)}


def identical(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@settings(max_examples=150)
@given(
    num_envs=st.integers(1, 3),
    num_rows=st.integers(1, 9),
    stack=st.integers(1, 4),
    padding=st.sampled_from(["first", "zeros", "anyhow"]),
    share_of_ends=st.sampled_from([0.0, 0.1, 0.6]),
    share_of_noise=st.sampled_from([0.0, 0.1, 1.0]),
    share_valid=st.sampled_from([0.7, 1.0]),
    nested=st.booleans(),
    num_steps=st.sampled_from([1, 3]),
    seed=st.integers(0, 9999),
)
def test_the_same_batches_as_a_memory_that_stores_all_of_it(
    num_envs, num_rows, stack, padding, share_of_ends, share_of_noise, share_valid, nested, num_steps, seed
):
    """Around the ring's end, over episodes' ends, over rows that are no experience, and after a checkpoint."""
    rng = np.random.default_rng(seed)
    shares = {"share_of_ends": share_of_ends, "share_of_noise": share_of_noise}
    envs = Stacks(num_envs, stack, rng, padding=padding, nested=nested, **shares)
    make = {"num_envs": num_envs, "batch_size": num_rows * num_envs, "learning_starts": 0, "num_steps": num_steps}
    once, twice = (ReplayMemory(num_rows * num_envs, **make, compact=compact) for compact in (True, False))
    restore_at = rng.integers(30)
    for step in range(30):
        transition = envs.step(rng.random(num_envs) < share_valid)
        if step == restore_at:
            state = saved_and_loaded(once)
            once = ReplayMemory(num_rows * num_envs, **make, compact=True)
            once.load_state_dict(state)
        for memory in (once, twice):
            memory.add(transition)
            if step % 7 == 3:
                memory.cut_episodes()
            memory.rng = np.random.default_rng(step)
        if len(twice):
            assert identical(once.sample(), twice.sample())


def test_minus_zero_and_nan_are_kept_as_they_are():
    memory = ReplayMemory(3, num_envs=1, batch_size=3, learning_starts=0, compact=True)
    numbers = np.array([0.0, -0.0, np.nan, 1.0], np.float32).reshape(4, 1, 1)
    never = np.zeros(1, bool)
    for t in range(3):
        memory.add(Transition(numbers[t], np.array([t]), np.zeros(1, np.float32), numbers[t + 1], never, never, {}))
    memory.add(Transition(-numbers[3], np.array([3]), np.zeros(1, np.float32), numbers[0], never, never, {}))
    for _ in range(10):
        batch = memory.sample()
        for obs, next_obs, t in zip(batch["obs"], batch["next_obs"], batch["action"], strict=True):
            expected = numbers[t] if t < 3 else -numbers[3]
            assert obs.numpy().tobytes() == expected.tobytes()
            assert next_obs.numpy().tobytes() == numbers[(t + 1) % 4].tobytes()


def stored_bytes(memory):
    """Of all arrays that a memory has, those kept whole included."""
    frames = memory._table._frames
    apart = [array for part in frames.values() for kept in (part._whole, part._end) for array in kept.values()]
    rings = [array for part in frames.values() for array in (part._ring, part._newest, part._at, part._age)]
    return memory._table.rows.nbytes + memory._valid.nbytes + sum(array.nbytes for array in apart + rings)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_million_atari_transitions_fit_into_seven_and_a_half_gigabytes(num_envs):
    """2,000 of them in 15 MB, though an episode ends every 200 steps."""
    rng = np.random.default_rng(0)
    memory = ReplayMemory(2_000, num_envs=num_envs, batch_size=8, learning_starts=0)
    stack = np.repeat(rng.integers(256, size=(num_envs, 1, 84, 84), dtype=np.uint8), 4, axis=1)
    for t in range(2_200 // num_envs):
        frame = rng.integers(256, size=(num_envs, 1, 84, 84), dtype=np.uint8)
        after = np.concatenate([stack[:, 1:], frame], axis=1)
        over, never = np.full(num_envs, t % 200 == 199), np.zeros(num_envs, bool)
        action, reward = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.float32)
        memory.add(Transition(stack, action, reward, after, over, never, {}))
        stack = np.repeat(frame, 4, axis=1) if t % 200 == 199 else after
    assert stored_bytes(memory) < 15_000_000


def test_images_alone_are_stored_once_by_default():
    def parts(obs):
        memory = ReplayMemory(4, num_envs=1, batch_size=1, learning_starts=0)
        never = np.zeros(1, bool)
        memory.add(Transition(obs, np.zeros(1), np.zeros(1, np.float32), obs, never, never, {}))
        assert identical(
            memory.sample()["next_obs"],
            torch.from_numpy(obs)
            if not isinstance(obs, dict)
            else {path: torch.from_numpy(part) for path, part in obs.items()},
        )
        return set(memory._table._frames)

    image, vector = np.zeros((1, 3, 32, 32), np.uint8), np.zeros((1, 5_000), np.float32)
    assert parts(image) == {""}
    assert parts(vector) == parts(np.zeros((1, 3, 4, 4), np.uint8)) == set()
    assert parts({"image": image, "vector": vector}) == parts({"image": image}) == {"image"}


# --- where it lies ---


@pytest.mark.parametrize("compact", [False, True])
def test_files_hold_the_same_as_ram_and_are_gone_afterwards(tmp_path, compact):
    envs = Stacks(2, 3, np.random.default_rng(0))
    directory = tmp_path / "new" / "replay"
    make = {"num_envs": 2, "batch_size": 8, "learning_starts": 0, "num_steps": 2, "compact": compact}
    in_ram, in_files = ReplayMemory(10, **make), ReplayMemory(10, **make, directory=str(directory))
    for memory in (in_ram, in_files):
        memory.rng = np.random.default_rng(0)
    for _ in range(12):
        transition = envs.step()
        in_ram.add(transition)
        in_files.add(transition)
        assert identical(in_ram.sample(), in_files.sample())
    in_files.load_state_dict(saved_and_loaded(in_ram))
    assert identical(in_ram.sample(), in_files.sample())
    assert list(directory.iterdir()) == []


def add_to(num_rows, **arguments):
    memory = ReplayMemory(num_rows, num_envs=1, batch_size=1, learning_starts=0, compact=False, **arguments)
    memory.add(Stacks(1, 2, np.random.default_rng(0)).step())
    return memory


def test_what_does_not_fit_into_ram_is_refused_before_it_is_allocated(monkeypatch):
    """40 bytes a row: 8 + 8 of observations, 8 of action, 4 of reward, 2 flags, and 2 for alignment."""
    monkeypatch.setattr(room, "available_ram", lambda: 32_000)
    assert add_to(1_000)._table.rows.nbytes == 32_000
    monkeypatch.setattr(room.Room, "empty", None)
    with pytest.raises(ConfigurationError, match=r"needs 32_032 bytes, and RAM has 32_000.*buffer_size.*directory="):
        add_to(1_001)


@pytest.mark.parametrize(("alpha", "num_bytes"), [(0.0, "1_000_000_000_000"), (0.6, "9_000_000_000_000")])
def test_nor_does_a_capacity_fit_that_no_transition_is_known_of(alpha, num_bytes):
    with pytest.raises(ConfigurationError, match=f"needs {num_bytes} bytes, and RAM has"):
        ReplayMemory(10**12, num_envs=1, batch_size=1, learning_starts=0, alpha=alpha)


def test_what_does_not_fit_onto_the_disk_is_refused(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=32_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    add_to(1_000, directory=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"needs 32_032 bytes, and the file system of .* has 32_000"):
        add_to(1_001, directory=str(tmp_path))


def test_frames_count_too(monkeypatch):
    monkeypatch.setattr(room, "available_ram", lambda: 20_000)
    memory = ReplayMemory(1_000, num_envs=1, batch_size=1, learning_starts=0, compact=True)
    with pytest.raises(ConfigurationError, match="needs 20_004 bytes"):
        memory.add(Stacks(1, 2, np.random.default_rng(0)).step())


def test_available_ram_is_what_the_system_and_its_cgroup_leave(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemAvailable:   50 kB\n")
    monkeypatch.setattr(room, "_MEMINFO", meminfo)
    monkeypatch.setattr(room, "_CGROUP", tmp_path)
    assert room.available_ram() == 51_200
    (tmp_path / "memory.max").write_text("max\n")
    assert room.available_ram() == 51_200
    (tmp_path / "memory.max").write_text("40000\n")
    (tmp_path / "memory.stat").write_text("anon 10000\nfile 29000\n")
    assert room.available_ram() == 30_000
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "none")
    (tmp_path / "memory.max").unlink()
    assert room.available_ram() is None


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files are sparse here")
def test_files_are_full_size_from_the_start(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, offset, length: sizes.append(length))
    add_to(1_000, directory=str(tmp_path))
    assert sizes == [32_000]
