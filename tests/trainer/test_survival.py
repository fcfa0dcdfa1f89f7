"""Runs survive signals, kills, full disks and damaged files: what was saved is whole, and training goes on from it."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gymnasium as gym
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from rl_lightning import DQN, ConfigurationError, NonFiniteError, RLModule, Trainer, files
from rl_lightning.callbacks import Checkpoint, Evaluation
from rl_lightning.checkpoint_file import read_checkpoint
from rl_lightning.resume_check import first_difference
from rl_lightning.testing import FullDisk
from tests.trainer.helpers import quiet
from tests.trainer.test_resume import AGENTS, final

pytestmark = pytest.mark.filterwarnings(
    "ignore:Training ended early", "ignore:Checkpoint directory", "ignore:Be aware that when using `ckpt_path`"
)


def fit(root, *callbacks, agent=None, max_steps=300, ckpt_path=None, env="CartPole-v1", **arguments):
    trainer = Trainer(
        max_steps=max_steps,
        default_root_dir=root,
        **{**quiet(*callbacks), "enable_checkpointing": True, **arguments},
    )
    trainer.fit(AGENTS["dqn"]() if agent is None else agent, env, ckpt_path=ckpt_path)
    return trainer


class SignalIn(pl.Callback):
    """Sends a signal to this process, in one hook, as soon as the clock has reached a step."""

    def __init__(self, hook, number, step=60):
        self.number, self.step, self.sent = number, step, False
        setattr(self, hook, self.send)

    def send(self, trainer, module, *args):
        if not self.sent and trainer.global_step >= self.step:
            self.sent = True
            os.kill(os.getpid(), self.number)


ENDS = {signal.SIGTERM: SIGTERMException, signal.SIGINT: SystemExit}


@pytest.fixture
def handlers():
    """Lightning leaves SIGINT ignored after an interruption."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", ENDS, ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    "hook", ["on_env_step", "on_train_batch_end", "on_validation_batch_end", "on_validation_start"]
)
def test_a_signal_saves_a_run_that_goes_on_bit_for_bit(hook, number, tmp_path):
    def evaluation():
        return Evaluation(3, every_n_steps=90)

    pl.seed_everything(1, verbose=False)
    straight = fit(tmp_path / "straight", Checkpoint(tmp_path / "straight"), evaluation())
    pl.seed_everything(1, verbose=False)
    with pytest.raises(ENDS[number]):
        fit(tmp_path, Checkpoint(tmp_path), evaluation(), SignalIn(hook, number))
    torch.manual_seed(77)
    resumed = fit(tmp_path, Checkpoint(tmp_path), evaluation(), ckpt_path=tmp_path / "except.ckpt")
    assert first_difference(final(straight), final(resumed)) is None


@pytest.mark.usefixtures("handlers")
def test_usr1_saves_and_training_goes_on(tmp_path):
    trainer = fit(tmp_path, Checkpoint(tmp_path), SignalIn("on_env_step", signal.SIGUSR1))
    assert trainer.global_step == 300
    assert torch.load(tmp_path / "requested.ckpt", weights_only=True)["global_step"] == 60


@pytest.mark.usefixtures("handlers")
def test_a_second_ctrl_c_does_not_wait(tmp_path):
    class Hangs(pl.Callback):
        def on_env_step(self, trainer, module, transition):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    started = time.monotonic()
    with pytest.raises(SystemExit):
        fit(tmp_path, Hangs())
    assert time.monotonic() - started < 30


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import pytorch_lightning as pl
from rl_lightning import RLModule, Trainer
from rl_lightning.callbacks import Checkpoint, Evaluation
from rl_lightning._lightning import resume
from tests.trainer.test_resume import AGENTS

root, resume.FEW_BYTES = sys.argv[1], int(sys.argv[2])
pl.seed_everything(1, verbose=False)
trainer = Trainer(
    max_steps=3_000,
    steps_per_epoch=500,
    default_root_dir=root,
    callbacks=[Evaluation(1), Checkpoint(root, every_n_train_steps=10, save_last=True)],
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    accelerator="cpu",
)
module = RLModule(AGENTS["dqn"]())
trainer.fit(module, "CartPole-v1", ckpt_path="auto")
resume.FEW_BYTES = 10**9
trainer.save_checkpoint(root + "/end")
"""


def train_with_kills(root: Path, num_kills: int, rng: random.Random, few_bytes: int) -> None:
    """Start again and again what is killed at random moments, until it ends."""
    kills = 0
    while True:
        command = [sys.executable, "-c", SCRIPT, str(root), str(few_bytes)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + 60
        newest = max((file.stat().st_mtime_ns for file in root.glob("*.ckpt")), default=0)
        if kills < num_kills:
            while process.poll() is None and time.monotonic() < deadline:
                if any(file.stat().st_mtime_ns > newest for file in root.glob("last*.ckpt")):
                    break
                time.sleep(0.01)
            time.sleep(rng.random() * 0.3)
            process.kill()
            kills += 1
        if process.wait() == 0:
            return


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("few_bytes", [10**9, 0])
@pytest.mark.parametrize("num_kills", [pytest.param(4, marks=pytest.mark.ci), 20])
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(num_kills, few_bytes, tmp_path):
    """Also where the rows of the memory are in files of their own."""
    for name, kills in (("straight", 0), ("killed", num_kills)):
        (tmp_path / name).mkdir()
        train_with_kills(tmp_path / name, kills, random.Random(num_kills), few_bytes)
    assert not list(tmp_path.glob("killed/**/.*.tmp"))
    one, other = (torch.load(tmp_path / name / "end", weights_only=True) for name in ("straight", "killed"))
    assert one["global_step"] == 3_000
    for part in ("state_dict", "optimizer_states", "rl_lightning_run"):
        for end in (one, other):
            end[part].pop("metrics", None) if isinstance(end[part], dict) else None
        assert first_difference(one[part], other[part]) is None, part


def test_auto_starts_where_nothing_is_and_goes_on_where_something_is(tmp_path):
    loggers = {"logger": True, "log_every_n_steps": 50}
    first = fit(tmp_path, Checkpoint(every_n_train_steps=40), Evaluation(1), max_steps=100, ckpt_path="auto", **loggers)
    steps = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, module):
            steps.append(trainer.global_step)

    second = fit(tmp_path, Checkpoint(every_n_train_steps=40), Evaluation(1), Look(), ckpt_path="auto", **loggers)
    assert steps == [80]
    assert second.global_step == 300
    assert first.log_dir == second.log_dir


def test_auto_passes_over_what_is_damaged_and_names_it(tmp_path):
    fit(tmp_path, Checkpoint(tmp_path, filename="{step}", every_n_train_steps=50, save_top_k=-1))
    *_, older, newest = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with pytest.warns(UserWarning, match=rf"{newest.name} cannot be read"):
        trainer = fit(tmp_path, Checkpoint(tmp_path), max_steps=310, ckpt_path="auto")
    assert trainer.ckpt_path == str(older)


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_auto_passes_over_a_checkpoint_whose_rows_are_damaged(how, tmp_path, monkeypatch):
    monkeypatch.setattr("rl_lightning._lightning.resume.FEW_BYTES", 0)
    fit(tmp_path, Checkpoint(tmp_path, filename="{step}", every_n_train_steps=50, save_top_k=-1))
    *_, older, newest = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
    rows = max(tmp_path.glob("memory/rows-*.npy"), key=lambda path: int(path.name.split("-")[2]))
    data = bytearray(rows.read_bytes())
    data[-1] ^= 1
    rows.unlink()
    if how == "flipped":
        rows.write_bytes(data)
    with pytest.warns(UserWarning, match=rf"{rows.name} is (missing|damaged).* An older one"):
        trainer = fit(tmp_path, Checkpoint(tmp_path), max_steps=310, ckpt_path="auto")
    assert trainer.ckpt_path == str(older)
    with pytest.raises(ConfigurationError, match=f"{rows.name} is"):
        fit(tmp_path, max_steps=310, ckpt_path=newest)
    assert Trainer(default_root_dir=tmp_path, **quiet()).test(AGENTS["dqn"](), "CartPole-v1", ckpt_path=newest)


def test_rows_that_no_checkpoint_needs_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("rl_lightning._lightning.resume.FEW_BYTES", 0)
    fit(tmp_path, Checkpoint(tmp_path, every_n_train_steps=50, save_top_k=1, save_last=True), max_steps=1_000)
    spans = [tuple(map(int, path.name.split("-")[1:3])) for path in tmp_path.glob("memory/rows-*.npy")]
    assert max(stop for _, stop in spans) == 1_000
    assert min(stop for _, stop in spans) > 700  # of which the memory keeps 200
    fit(tmp_path, max_steps=1_010, ckpt_path=tmp_path / "last.ckpt")


def damaged(path, how):
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    return {"truncated": data[:middle], "flipped": flipped, "text": b"this is no checkpoint", "empty": b""}[how]


@pytest.mark.parametrize("how", ["truncated", "flipped", "text", "empty"])
def test_a_damaged_checkpoint_is_named(how, tmp_path):
    fit(tmp_path, Checkpoint(tmp_path, filename="saved"), max_steps=60)
    path = tmp_path / "saved.ckpt"
    path.write_bytes(damaged(path, how))
    with pytest.raises(ConfigurationError, match=r"saved\.ckpt cannot be read: it is damaged"):
        fit(tmp_path, max_steps=80, ckpt_path=path)
    with pytest.raises(ConfigurationError, match=r"saved\.ckpt cannot be read: it is damaged"):
        RLModule.load_from_checkpoint(path)


def test_every_flipped_bit_is_found_out_or_changes_nothing():
    good = {"weights": torch.randn(500), "counts": {"steps": list(range(50)), "name": "x" * 200}}
    file = io.BytesIO()
    torch.save(good, file)
    data, rng, num_found = file.getvalue(), random.Random(0), 0
    for _ in range(500):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            read = read_checkpoint(io.BytesIO(flipped))
        except ConfigurationError:
            num_found += 1
        else:
            assert first_difference(good, read) is None
    assert num_found > 300


def test_a_checkpoint_is_read_from_where_the_web_has_it_now(tmp_path):
    """A file of the same name that was read before does not count."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/saved.ckpt"
        for steps in (60, 80):
            trained = fit(tmp_path / "run", max_steps=steps)
            trained.save_checkpoint(tmp_path / "saved.ckpt")
            weights = RLModule.load_from_checkpoint(url).state_dict()
            assert first_difference(weights, trained.lightning_module.state_dict()) is None
        assert fit(tmp_path / "run", max_steps=90, ckpt_path=url).global_step == 90
        (tmp_path / "saved.ckpt").write_bytes(pickle.dumps(Hostile(f"touch {tmp_path / 'trace'}")))
        with pytest.raises(ConfigurationError, match="holds more than tensors and plain data"):
            fit(tmp_path / "run", max_steps=90, ckpt_path=url)
        server.shutdown()
    assert not (tmp_path / "trace").exists()


def test_a_link_to_the_last_checkpoint_is_never_away(tmp_path, monkeypatch):
    removed = []
    remove = os.remove
    monkeypatch.setattr(os, "remove", lambda path: (removed.append(Path(path).name), remove(path)))
    saving = Checkpoint(tmp_path, filename="{step}", every_n_train_steps=50, save_top_k=1, save_last="link")
    fit(tmp_path, saving)
    assert (tmp_path / "last.ckpt").is_symlink()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 300
    assert "last.ckpt" not in removed


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["alone", "among the envs", "in a callback"])
def test_a_hostile_checkpoint_runs_no_code(place, tmp_path):
    fit(tmp_path, Checkpoint(tmp_path, filename="saved"), max_steps=60)
    path, trace = tmp_path / "saved.ckpt", tmp_path / "trace"
    payload = Hostile(f"touch {trace}")
    if place == "alone":
        path.write_bytes(pickle.dumps(payload))
    else:
        checkpoint = torch.load(path, weights_only=True)
        if place == "in a callback":
            checkpoint["callbacks"]["payload"] = payload
        else:
            checkpoint["rl_lightning_run"]["gathering"]["envs"]["envs"] = payload
        torch.save(checkpoint, path)
    with pytest.raises(ConfigurationError, match="holds more than tensors and plain data"):
        fit(tmp_path, max_steps=80, ckpt_path=path)
    assert not trace.exists()


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_older_checkpoint(call, tmp_path, monkeypatch):
    fit(tmp_path, Checkpoint(tmp_path, filename="saved"), max_steps=60)
    before = (tmp_path / "saved.ckpt").read_bytes()

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match="No space left"):
        trainer = fit(tmp_path, max_steps=80, enable_checkpointing=False)
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert (tmp_path / "saved.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved.ckpt"]


def test_a_disk_that_is_full_ends_training_with_what_the_disk_said(tmp_path, monkeypatch):
    """The older checkpoint is whole, and training goes on from it once there is room."""

    class Fills(pl.Callback):
        def on_env_step_end(self, trainer, module, transition):
            if trainer.global_step == 120:
                monkeypatch.setattr(files.os, "fsync", full)

    saving = partial(Checkpoint, tmp_path, filename="{step}", every_n_train_steps=50, save_top_k=-1)
    with pytest.raises(OSError, match="No space left"), pytest.warns(UserWarning, match="could not be saved"):
        fit(tmp_path, Fills(), saving())
    monkeypatch.undo()
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step=52.ckpt", "step=100.ckpt"}
    assert fit(tmp_path, saving(), ckpt_path="auto").ckpt_path == str(tmp_path / "step=100.ckpt")


class FailingLogger(CSVLogger):
    def log_metrics(self, metrics, step=None):
        if step is not None and step >= 120:
            raise ConnectionError("the logger's server is gone")
        super().log_metrics(metrics, step)


def test_a_logger_that_fails_ends_training_with_a_checkpoint(tmp_path):
    with pytest.raises(ConnectionError, match="server is gone"):
        fit(tmp_path, Checkpoint(tmp_path), logger=FailingLogger(tmp_path), log_every_n_steps=20)
    assert fit(tmp_path, max_steps=200, ckpt_path=tmp_path / "except.ckpt").global_step == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_a_logger_whose_disk_is_full_ends_training_with_what_the_disk_said(logger, tmp_path):
    (tmp_path / "logs").mkdir()
    disk = FullDisk(tmp_path / "logs")

    class Fills(pl.Callback):
        def on_env_step_end(self, trainer, module, transition):
            if trainer.global_step == 110:
                disk.__enter__()

    try:
        with pytest.raises(OSError, match=r"No space left on device.*version_0"):
            fit(tmp_path, Fills(), Checkpoint(tmp_path), logger=logger(tmp_path / "logs"), log_every_n_steps=20)
    finally:
        disk.__exit__()
    assert torch.load(tmp_path / "except.ckpt", weights_only=True)["global_step"] == 120


class Fails(gym.Wrapper):
    """CartPole that fails in its n-th step or reset."""

    def __init__(self, in_reset=False, at=45):
        super().__init__(gym.make("CartPole-v1"))
        self.left = {True: -1, False: -1, in_reset: at if not in_reset else 3}

    def _count(self, in_reset):
        self.left[in_reset] -= 1
        if self.left[in_reset] == 0:
            raise ValueError("sensor unplugged")

    def step(self, action):
        self._count(False)
        return self.env.step(action)

    def reset(self, **kwargs):
        self._count(True)
        return self.env.reset(**kwargs)


@pytest.mark.parametrize("in_reset", [False, True])
def test_an_env_that_fails_ends_the_run_with_a_checkpoint_that_goes_on(in_reset, tmp_path):
    factory = partial(Fails, in_reset)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="sensor unplugged"):
        fit(tmp_path, Checkpoint(tmp_path), env=factory)
    step = torch.load(tmp_path / "except.ckpt", weights_only=True)["global_step"]
    assert step > 0
    for more in (2, 40):  # an episode ends in these, or none
        resumed = fit(tmp_path, max_steps=step + more, ckpt_path=tmp_path / "except.ckpt", log_every_n_steps=1)
        assert resumed.global_step == step + more


def test_a_loss_that_is_nan_leaves_the_last_good_checkpoint(tmp_path):
    class Diverges(DQN):
        def update(self, batch, step):
            if self.num_updates == 60:
                step("q", next(self.parameters()).sum() * float("nan"))
            return super().update(batch, step)

    agent = Diverges(hidden_sizes=(8,), buffer_size=200, batch_size=8, learning_starts=40)
    with pytest.raises(NonFiniteError, match="the loss 'q' is nan at env step"):
        fit(tmp_path, Checkpoint(tmp_path, filename="{step}", every_n_train_steps=20), agent=agent)
    (kept,) = tmp_path.glob("*.ckpt")
    assert all(
        torch.isfinite(tensor).all() for tensor in torch.load(kept)["state_dict"].values() if hasattr(tensor, "shape")
    )


def test_a_callback_that_fails_ends_the_run_with_a_checkpoint(tmp_path):
    class Breaks(pl.Callback):
        def on_env_step_end(self, trainer, module, transition):
            if trainer.global_step == 50:
                raise RuntimeError("callback broke")

    with pytest.raises(RuntimeError, match="callback broke"):
        fit(tmp_path, Breaks(), Checkpoint(tmp_path))
    assert torch.load(tmp_path / "except.ckpt", weights_only=True)["global_step"] == 50


def test_time_limits_count_across_resumes(tmp_path):
    elapsed = []

    class Look(pl.Callback):
        def on_env_step(self, trainer, module, transition):
            (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, pl.callbacks.Timer))
            elapsed.append(timer.time_elapsed("train"))

    fit(tmp_path, Checkpoint(tmp_path, filename="saved"), max_steps=-1, max_epochs=-1, max_time={"seconds": 1})
    more = {"max_time": {"seconds": 2}, "ckpt_path": tmp_path / "saved.ckpt"}
    fit(tmp_path, Look(), max_steps=-1, max_epochs=-1, **more)
    assert elapsed[0] > 0.9


def test_a_memory_that_is_too_large_is_left_out_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("rl_lightning._lightning.resume.MOST_BYTES", 1_000)
    monkeypatch.setattr("rl_lightning._lightning.checkpoint.local_directory", lambda path: None)
    with pytest.warns(UserWarning, match="The memory has .* bytes, and is left out of the checkpoint"):
        fit(tmp_path, Checkpoint(tmp_path, filename="saved"), max_steps=100)
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["rl_lightning_run"]
    assert saved["memory"] is None
    resumed = fit(tmp_path, max_steps=120, ckpt_path=tmp_path / "saved.ckpt")
    assert len(resumed.memory) == 20
