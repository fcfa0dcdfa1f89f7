"""Half an hour of training with all that a long run has: memory and open files do not grow."""

import time

import psutil
import pytest
import pytorch_lightning as pl

from rl_lightning import DQN, Trainer
from rl_lightning.callbacks import BestAgent, Checkpoint, Evaluation
from rl_lightning.envs import GymEnvModule

MINUTES, SETTLED = 30, 5
MOST_GROWN = 8 << 20
"""Bytes, from when it has settled to the end."""


class Watch(pl.Callback):
    """Notes what the process holds, once a second or so."""

    def __init__(self):
        self.notes, self._next = [], 0.0
        self._process, self._start = psutil.Process(), time.monotonic()

    def on_env_step_end(self, trainer, module, transition):
        now = time.monotonic() - self._start
        if now >= self._next:
            self._next = now + 1.0
            self.notes.append((now / 60, self._process.memory_info().rss, self._process.num_fds()))


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES + 300)
def test_half_an_hour(tmp_path, monkeypatch):
    monkeypatch.setattr("rl_lightning._lightning.resume.FEW_BYTES", 0)  # rows in files: the longer way
    watch = Watch()
    saving = Checkpoint(tmp_path / "checkpoints", every_n_train_steps=5_000, save_top_k=1, save_last=True)
    trainer = Trainer(
        max_time={"minutes": MINUTES},
        default_root_dir=tmp_path,
        callbacks=[Evaluation(5, every_n_steps=5_000), BestAgent(dirpath=tmp_path / "best"), saving, watch],
        accelerator="cpu",
    )
    agent = DQN(hidden_sizes=(64, 64), buffer_size=20_000, batch_size=32, learning_starts=1_000)
    trainer.fit(agent, GymEnvModule("CartPole-v1", num_envs=2))
    settled = [note for note in watch.notes if note[0] >= SETTLED]
    _, start, start_files = settled[0]
    grown = max(held for _, held, _ in settled) - start
    print(
        f"{trainer.global_step:,} env steps: {start / 2**20:.0f} MiB after {SETTLED} minutes, {grown / 2**20:+.1f} MiB "
        f"at most later; {len(list((tmp_path / 'checkpoints' / 'memory').iterdir()))} files of rows"
    )
    assert grown < MOST_GROWN
    assert max(files for _, _, files in settled) <= start_files + 2
    assert sum(file.stat().st_size for file in (tmp_path / "checkpoints").rglob("*") if file.is_file()) < 20 << 20
