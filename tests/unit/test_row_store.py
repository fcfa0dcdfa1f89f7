"""Rows of a replay memory beside its checkpoints: only what is new is written, and only what is needed is kept."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_lightning.memory import ReplayMemory
from rl_lightning.memory.row_files import RowWriter
from rl_lightning.memory.row_store import FOLDER, LONGEST, RowStore, check_rows
from rl_lightning.testing import FullDisk
from rl_lightning.types import ConfigurationError
from tests.unit.test_frames import Stacks, identical
from tests.unit.test_row_files import make, plain


def filled(num_rows, num_steps, *, seed=0, **arguments):
    memory, envs = make(num_rows, compact=False, **arguments), Stacks(1, 2, np.random.default_rng(seed))
    add(memory, envs, num_steps)
    return memory, envs


def add(memory, envs, num_steps):
    for _ in range(num_steps):
        memory.add(envs.step())


class Checkpoints:
    """As the Trainer saves them, on disk."""

    def __init__(self):
        self.num_read = 0

    def save(self, store, path):
        torch.save(store.save(path.parent), path)
        store.clean(path.parent, self.read, written=path)

    def read(self, path):
        self.num_read += 1
        return torch.load(path, weights_only=True)

    def load(self, path, **arguments):
        state = torch.load(path, weights_only=True)
        memory = make(state["num_rows"], state["num_envs"], **arguments)
        store = RowStore(memory)
        store.load(state, path.parent)
        return memory, store


def files_in(directory):
    return {path.name: path.stat().st_size for path in (directory / FOLDER).iterdir()}


def test_the_second_checkpoint_writes_what_is_new(tmp_path):
    memory, envs = filled(2_000, 3_000)
    store, checkpoints = RowStore(memory), Checkpoints()
    checkpoints.save(store, tmp_path / "a.ckpt")
    first = files_in(tmp_path)
    assert len(first) == LONGEST
    add(memory, envs, 20)
    checkpoints.save(store, tmp_path / "b.ckpt")
    second = files_in(tmp_path)
    new = {name: size for name, size in second.items() if name not in first}
    assert sum(new.values()) < 0.02 * sum(first.values())
    assert first.items() <= second.items()
    checkpoints.save(store, tmp_path / "c.ckpt")
    assert files_in(tmp_path) == second


def test_files_stay_few_and_small_however_often_it_is_saved(tmp_path):
    memory, envs = filled(200, 0)
    store, checkpoints = RowStore(memory), Checkpoints()
    add(memory, envs, 250)
    checkpoints.save(store, tmp_path / "last.ckpt")
    for _ in range(250):
        add(memory, envs, 1)
        checkpoints.save(store, tmp_path / "last.ckpt")
        spans = [name.split("-")[1:3] for name in files_in(tmp_path)]
        assert len(spans) <= 202
        num_overlaps = len(spans)
        assert sum(int(stop) - int(start) for start, stop in spans) - num_overlaps < (1 + 1 / LONGEST) * 200 + 5
    assert checkpoints.num_read == 0  # what this process has just written it knows
    memory_again, _ = checkpoints.load(tmp_path / "last.ckpt", compact=False)
    assert plain(memory_again.state_dict()) == plain(memory.state_dict())


def test_each_file_of_somebody_else_is_read_once_and_a_link_not_at_all(tmp_path):
    memory, envs = filled(200, 250)
    store, checkpoints = RowStore(memory), Checkpoints()
    for number in range(3):
        torch.save(RowStore(filled(20, 30)[0]).save(tmp_path), tmp_path / f"other-{number}.ckpt")
    theirs = files_in(tmp_path)
    for number in range(4):
        add(memory, envs, 1)
        checkpoints.save(store, tmp_path / f"{number % 2}.ckpt")
        (tmp_path / "last.ckpt").unlink(missing_ok=True)
        (tmp_path / "last.ckpt").symlink_to(f"{number % 2}.ckpt")
    assert checkpoints.num_read == 3
    assert theirs.items() <= files_in(tmp_path).items()


def test_a_checkpoint_without_a_memory_needs_no_rows(tmp_path):
    memory, envs = filled(200, 250)
    store, checkpoints = RowStore(memory), Checkpoints()
    checkpoints.save(store, tmp_path / "best.ckpt")
    first = files_in(tmp_path)
    (tmp_path / "best.ckpt").write_bytes(b"the agent alone")
    store.clean(tmp_path, checkpoints.read, written=tmp_path / "best.ckpt")
    add(memory, envs, 250)
    checkpoints.save(store, tmp_path / "last.ckpt")
    assert not first.keys() & files_in(tmp_path).keys()


@settings(max_examples=20, deadline=None)
@given(
    num_envs=st.integers(1, 2),
    num_rows=st.integers(1, 300),
    compact=st.booleans(),
    alpha=st.sampled_from([0.0, 0.6]),
    seed=st.integers(0, 9999),
)
def test_every_checkpoint_kept_gives_its_memory_again(num_envs, num_rows, compact, alpha, seed, tmp_path_factory):
    """Saved at any moment, in several directories, some of which are moved or lose files; gone on from any of them."""
    root, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(seed)
    envs = Stacks(num_envs, 3, rng, share_of_ends=0.1, share_of_noise=0.1)
    arguments = {"compact": compact, "alpha": alpha}
    memory, checkpoints, saved = make(num_rows, num_envs, **arguments), Checkpoints(), {}
    store = RowStore(memory)
    for number in range(12):
        for _ in range(rng.integers(num_rows)):
            memory.add(envs.step())
            if rng.random() < 0.1:
                memory.cut_episodes()
        path = root / str(rng.integers(2)) / f"{rng.integers(4)}.ckpt"
        path.parent.mkdir(exist_ok=True)
        saved[path] = plain(memory.state_dict())
        checkpoints.save(store, path)
        what = rng.random()
        if what < 0.2:
            new = root / f"moved-{number}"
            path.parent.rename(new)
            store.moved(path.parent, new)
            saved = {new / old.name if old.parent == path.parent else old: state for old, state in saved.items()}
        elif what < 0.4:
            path = list(saved)[rng.integers(len(saved))]
            memory, store = checkpoints.load(path, **arguments)
        elif what < 0.5:
            del saved[path]
            path.unlink()
    for path, state in saved.items():
        assert plain(checkpoints.load(path, **arguments)[0].state_dict()) == state


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_files_that_are_not_as_they_were_written_are_named(how, tmp_path):
    memory, _ = filled(50, 60)
    checkpoints = Checkpoints()
    checkpoints.save(RowStore(memory), tmp_path / "a.ckpt")
    file = sorted((tmp_path / FOLDER).iterdir())[3]
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[:-1])
    else:
        data[-5] ^= 1
        file.write_bytes(data)
    other, _ = filled(50, 20, seed=1)
    before = plain(other.state_dict())
    with pytest.raises(ConfigurationError, match=rf"{file.name} is (missing|damaged)"):
        RowStore(other).load(checkpoints.read(tmp_path / "a.ckpt"), tmp_path)
    with pytest.raises(ConfigurationError, match=file.name):
        check_rows(checkpoints.read(tmp_path / "a.ckpt"), tmp_path)
    assert plain(other.state_dict()) == before


def test_what_is_known_of_files_that_are_gone_is_forgotten(tmp_path):
    memory, envs = filled(50, 60)
    store, checkpoints = RowStore(memory), Checkpoints()
    sizes = []
    for number in range(60):
        add(memory, envs, 2)
        checkpoints.save(store, tmp_path / f"{number}.ckpt")
        (tmp_path / f"{number - 1}.ckpt").unlink(missing_ok=True)
        sizes.append(len(pickle.dumps([store._needed, store._written, store._homes, store._segments])))
    assert max(sizes[40:]) < 1.1 * max(sizes[20:40])


def test_what_is_missing_is_written_again(tmp_path):
    memory, envs = filled(50, 60)
    store, checkpoints = RowStore(memory), Checkpoints()
    checkpoints.save(store, tmp_path / "a.ckpt")
    next((tmp_path / FOLDER).iterdir()).unlink()
    add(memory, envs, 1)
    checkpoints.save(store, tmp_path / "a.ckpt")
    assert plain(checkpoints.load(tmp_path / "a.ckpt", compact=False)[0].state_dict()) == plain(memory.state_dict())


@pytest.mark.parametrize(
    "segments",
    [
        None,
        [[0, 10]],
        ["name"],
        [[0, 60, "../../etc/passwd", 10, "0" * 64]],
        [[5, 30, 1, 10, "0" * 64], [31, 60, 1, 10, "0" * 64]],
        [[5, 60, 1, 10, "0" * 64], [0, 20, 1, 10, "0" * 64]],
        [],
    ],
)
def test_lists_that_make_no_sense_are_refused(segments, tmp_path):
    memory, _ = filled(50, 60)
    state = {**RowStore(memory).save(tmp_path), "segments": segments}
    with pytest.raises(ConfigurationError, match="the (checkpoint names no files|memory saved has nothing)"):
        RowStore(make(50, compact=False)).load(state, tmp_path)


def fail():
    raise OSError("No space left on device")


def test_a_full_disk_leaves_the_older_checkpoint_as_it_was(tmp_path, monkeypatch):
    memory, envs = filled(50, 60)
    store, checkpoints = RowStore(memory), Checkpoints()
    checkpoints.save(store, tmp_path / "a.ckpt")
    before, files = plain(memory.state_dict()), files_in(tmp_path)
    add(memory, envs, 10)
    with FullDisk(tmp_path), pytest.raises(OSError, match="No space left"):
        checkpoints.save(store, tmp_path / "a.ckpt")
    assert files_in(tmp_path) == files
    (tmp_path / "other").mkdir()
    calls = iter(range(100))
    monkeypatch.setattr(RowWriter, "ring", lambda *_, **__: fail() if next(calls) > 4 else None)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(RowStore(memory), tmp_path / "other" / "a.ckpt")
    monkeypatch.undo()
    assert files_in(tmp_path / "other") == {}
    assert plain(checkpoints.load(tmp_path / "a.ckpt", compact=False)[0].state_dict()) == before
    checkpoints.save(store, tmp_path / "a.ckpt")
    assert plain(checkpoints.load(tmp_path / "a.ckpt", compact=False)[0].state_dict()) == plain(memory.state_dict())


def test_files_of_others_are_left_alone_while_their_checkpoint_may_be_on_its_way(tmp_path):
    (tmp_path / FOLDER).mkdir()
    young, old, foreign = (tmp_path / FOLDER / name for name in ("rows-0-1-a.npy", "rows-0-1-b.npy", "notes.txt"))
    for path in (young, old, foreign):
        path.touch()
        if path != young:
            os.utime(path, (time.time() - 7200,) * 2)
    Checkpoints().save(RowStore(filled(50, 60)[0]), tmp_path / "a.ckpt")
    assert young.exists() and foreign.exists() and not old.exists()


def test_a_checkpoint_that_makes_no_sense_does_not_end_training(tmp_path):
    memory, _ = filled(50, 60)
    store, checkpoints = RowStore(memory), Checkpoints()
    torch.save({**store.save(tmp_path), "segments": [[0, 1]]}, tmp_path / "strange.ckpt")
    torch.save({"segments": []}, tmp_path / "stranger.ckpt")
    checkpoints.save(store, tmp_path / "a.ckpt")
    assert checkpoints.num_read == 2


def test_another_directory_gets_links_and_keeps_them(tmp_path):
    memory, envs = filled(100, 120)
    store, checkpoints = RowStore(memory), Checkpoints()
    for name in "ab":
        (tmp_path / name).mkdir()
        checkpoints.save(store, tmp_path / name / "x.ckpt")
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
    file = next(iter(files_in(tmp_path / "a")))
    assert os.path.samefile(tmp_path / "a" / FOLDER / file, tmp_path / "b" / FOLDER / file)
    before = plain(memory.state_dict())
    add(memory, envs, 200)
    checkpoints.save(store, tmp_path / "a" / "x.ckpt")
    assert plain(checkpoints.load(tmp_path / "b" / "x.ckpt", compact=False)[0].state_dict()) == before


def test_where_links_are_impossible_files_are_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    memory, _ = filled(100, 120)
    store, checkpoints = RowStore(memory), Checkpoints()
    for name in "ab":
        (tmp_path / name).mkdir()
        checkpoints.save(store, tmp_path / name / "x.ckpt")
        other = checkpoints.load(tmp_path / name / "x.ckpt", compact=False)[0]
        assert identical(ReplayMemory.sample(other), memory.sample())


def test_an_empty_memory(tmp_path: Path):
    memory = make(10, compact=False)
    Checkpoints().save(RowStore(memory), tmp_path / "a.ckpt")
    assert len(Checkpoints().load(tmp_path / "a.ckpt", compact=False)[0]) == 0
