"""What loggers get: names, values, and env steps on the x-axis."""

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lightning import Trainer
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import quiet, small_dqn, small_ppo
from tests.trainer.test_stock_callbacks import csv

CARTPOLE = GymEnvModule("CartPole-v1", num_envs=2)
EVALUATED = {"mean", "median", "stdev", "max", "min", "length_mean"}
TIMES = {"time/env_steps_per_second", "time/updates_per_second"}


def events(path):
    accumulator = EventAccumulator(str(path))
    accumulator.Reload()
    return {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}


def test_tensorboard_is_the_default(tmp_path):
    arguments = {**quiet(Evaluation(num_episodes=2)), "logger": None}
    trainer = Trainer(max_steps=200, steps_per_epoch=100, log_every_n_steps=50, **arguments)
    trainer.fit(small_ppo(), CARTPOLE)
    assert isinstance(trainer.logger, TensorBoardLogger)
    run = tmp_path / "lightning_logs/version_0"
    logged = events(run)
    assert {f"eval/{name}" for name in EVALUATED} | TIMES | {"train/return", "train/length"} <= set(logged)
    assert {"train/policy_loss", "train/value_loss", "train/entropy", "train/approx_kl"} <= set(logged)
    assert [event.step for event in logged["eval/mean"]] == [100, 200]
    assert [event.step for event in logged["train/policy_loss"]] == [50, 100, 150, 200]
    assert logged["eval/mean"][-1].value == pytest.approx(trainer.last_evaluation.statistics()["mean"])
    assert "lr: 0.0003" in (run / "hparams.yaml").read_text()


def test_train_metrics_are_means_since_the_last_entry(tmp_path):
    values = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            values.append((trainer.global_step, outputs["value_loss"].item()))

    arguments = {**quiet(Look()), "logger": CSVLogger(tmp_path)}
    Trainer(max_steps=96, log_every_n_steps=32, **arguments).fit(small_ppo(), CARTPOLE)
    rows = csv(tmp_path / "lightning_logs/version_0/metrics.csv")
    for row, (low, high) in zip(rows, [(0, 32), (32, 64), (64, 96)], strict=True):
        mine = [value for step, value in values if low < step <= high]
        assert row["train/value_loss"] == pytest.approx(sum(mine) / len(mine), rel=1e-5)


def test_returns_and_lengths_are_those_of_whole_episodes(tmp_path):
    ends = []

    class Look(pl.Callback):
        def on_env_step(self, trainer, module, transition):
            ends.append((trainer.global_step, int((transition.terminated | transition.truncated).sum())))

    arguments = {**quiet(Look()), "logger": CSVLogger(tmp_path)}
    trainer = Trainer(max_steps=100, log_every_n_steps=100, **arguments)
    trainer.fit(small_ppo(), CARTPOLE)
    (row,) = csv(tmp_path / "lightning_logs/version_0/metrics.csv")
    assert trainer.num_episodes == sum(number for _, number in ends) > 0
    assert row["train/return"] == row["train/length"]  # CartPole pays 1 a step
    assert 8 <= row["train/return"] <= 50


def test_several_loggers_and_none(tmp_path):
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="tb")]
    Trainer(max_steps=40, log_every_n_steps=20, **{**quiet(), "logger": loggers}).fit(small_ppo(), CARTPOLE)
    assert len(csv(tmp_path / "csv/version_0/metrics.csv")) == 2
    assert len(events(tmp_path / "tb/version_0")["time/env_steps_per_second"]) == 2
    Trainer(max_steps=40, log_every_n_steps=0, **quiet()).fit(small_ppo(), CARTPOLE)


def test_the_clock_is_exact_beyond_what_float32_holds(tmp_path):
    start = 2**24 + 1

    class Ahead(pl.Callback):
        def on_train_start(self, trainer, module):
            loop = trainer.fit_loop
            loop.clock.env_steps = start
            loop._next_log = start + 1

    arguments = {**quiet(Ahead()), "logger": CSVLogger(tmp_path)}
    trainer = Trainer(max_steps=start + 2, log_every_n_steps=1, steps_per_epoch=2**30, **arguments)
    trainer.fit(small_dqn(), "CartPole-v1")
    assert trainer.global_step == start + 2
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("step")
    assert [int(row.split(",")[column]) for row in rows[1:]] == [start + 1, start + 2]
