"""The faults of `rl_lightning.testing` happen where they were ordered, and nowhere else."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_lightning import PPO, RLModule, Trainer
from rl_lightning.callbacks import Checkpoint
from rl_lightning.envs import GymEnvModule
from rl_lightning.testing import EXIT_CODE, FaultyEnv, FullDisk, kill_at_step
from rl_lightning.types import ConfigurationError, WorkerError
from rl_lightning.workers import Supervisor
from tests.envs import Scripted


def steps_of(env: Any, count: int) -> int:
    """How many steps of `count` the env takes before it raises."""
    env.reset()
    for step in range(count):
        try:
            env.step(0)
        except RuntimeError as error:
            assert "as ordered" in str(error)
            return step
    return count


def test_a_step_fails_and_so_does_every_later_one():
    env = FaultyEnv(Scripted(), "raise in step", at_step=3)
    assert steps_of(env, 9) == 2 and steps_of(env, 9) == 0


def test_it_happens_once_among_all_that_share_a_directory(tmp_path):
    first, second = (FaultyEnv(Scripted(), "raise in step", at_step=3, once_in=tmp_path) for _ in range(2))
    assert steps_of(first, 9) == 2 and steps_of(first, 9) == 9 and steps_of(second, 9) == 9


def test_a_reset_fails_after_so_many_steps():
    env = FaultyEnv(Scripted(), "raise in reset", at_step=2)
    env.reset(), env.step(0), env.reset(seed=5), env.step(0)
    assert env.unwrapped.seeds == [None, 5]
    with pytest.raises(RuntimeError, match="failed in reset after step 2"):
        env.reset()


def test_the_constructor_fails(tmp_path):
    with pytest.raises(RuntimeError, match="failed in the constructor"):
        FaultyEnv(Scripted(), "raise in constructor", once_in=tmp_path)
    assert steps_of(FaultyEnv(Scripted(), "raise in constructor", once_in=tmp_path), 5) == 5


def test_numbers_that_are_none():
    for fault, index in (("nan observation", 0), ("nan reward", 1)):
        env = FaultyEnv(Scripted(), fault, at_step=2)
        env.reset()
        assert [bool(np.isnan(env.step(0)[index]).all()) for _ in range(3)] == [False, True, True]


def test_an_unknown_fault_is_refused():
    with pytest.raises(ConfigurationError, match="fault='explode': one of raise in constructor, "):
        FaultyEnv(Scripted(), "explode")


@pytest.mark.parametrize(("fault", "code"), [("exit", EXIT_CODE), ("kill", -signal.SIGKILL), ("hang", None)])
def test_the_process_goes_or_hangs_in_that_step(fault, code):
    def work(context):
        env = FaultyEnv(Scripted(), fault, at_step=3)
        env.reset()
        for _ in range(9):
            context.beat()
            env.step(0)
            context.env_step += 1

    supervisor = Supervisor(1, start_method="fork", timeout_s=0.3)
    supervisor.start(0, work)
    with pytest.raises(WorkerError, match="at env step 2") as caught:
        supervisor.poll(30.0)
    assert caught.value.exit_code == code
    supervisor.stop()


def test_a_process_is_killed_once_a_count_is_reached():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    counts = iter([*range(5), *[5] * 1_000_000])
    with kill_at_step(lambda: process.pid, lambda: next(counts), 5, sig=signal.SIGTERM):
        assert process.wait(60.0) == -signal.SIGTERM
    assert next(counts) == 5


def test_a_count_that_is_never_reached_is_an_error():
    with (
        pytest.raises(RuntimeError, match="came to 4 only, and was to come to 5"),
        kill_at_step(os.getpid(), lambda: 4, 5),
    ):
        pass


@pytest.mark.parametrize("mode", ["w", "wb", "a", "x", "r+b"])
def test_nothing_can_be_written_to_a_full_disk(tmp_path, mode):
    full, other = tmp_path / "full", tmp_path / "other"
    full.mkdir(), other.mkdir()
    (full / "old").write_text("old")
    name = "old" if "r" in mode else "new"
    with FullDisk(full):
        assert (full / "old").read_text() == "old"
        with pytest.raises(OSError, match="No space left on device") as caught, open(full / name, mode) as file:
            file.write(b"more" if "b" in mode else "more")
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match="No space"), tempfile.NamedTemporaryFile() as file:
            file.write(b"more")
        (other / "new").write_text("there is room")
    assert (full / name).exists() and (full / "old").read_text() == "old"
    (full / "new").write_text("now there is room")
    assert Path(tempfile.gettempdir()) != full


# ---- pointed at the Trainer, as users will ---------------------------------------------------------------------------


def fit(envs: GymEnvModule, **kwargs: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(max_steps=64, accelerator="cpu", **{"enable_checkpointing": False, **quiet, **kwargs})
    trainer.fit(RLModule(PPO(num_steps=8, num_minibatches=2, num_epochs=1)), envs)
    return trainer


def faulty(fault: str, **kwargs: Any) -> GymEnvModule:
    kwargs |= {"vectorization": "async", "max_episode_len": 20}
    once_in = kwargs.pop("once_in", None)
    wrappers = [functools.partial(FaultyEnv, fault=fault, at_step=9, once_in=once_in)]
    return GymEnvModule("CartPole-v1", 2, wrappers=wrappers, **kwargs)


def test_a_run_whose_env_dies_ends_with_the_error():
    with pytest.raises(WorkerError, match=r"(?s)worker \d .* SIGKILL .* at env step 8"):
        fit(faulty("kill"))


def test_a_run_whose_env_is_replaced_goes_on_and_counts_each_step_once(tmp_path):
    with pytest.warns(RuntimeWarning, match=r"failed in step 9, as ordered(?s:.*)restart 1 of 1"):
        trainer = fit(faulty("raise in step", once_in=tmp_path, restart_workers=1))
    assert trainer.global_step == 65  # fifteen of 16 and the lost one's, which does not count
    assert trainer.num_updates > 0


@pytest.mark.filterwarnings("ignore:Training ended early")
def test_a_full_disk_ends_the_run_and_leaves_no_half_checkpoint(tmp_path):
    checkpoint = Checkpoint(dirpath=tmp_path / "full", every_n_train_steps=16)
    with pytest.raises(OSError, match="No space left on device"), FullDisk(tmp_path / "full"):
        fit(GymEnvModule("CartPole-v1", 2), callbacks=[checkpoint], enable_checkpointing=True)
    assert not list((tmp_path / "full").glob("*.ckpt"))
