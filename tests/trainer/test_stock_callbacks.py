"""Lightning's own callbacks, unchanged: each test looks at what the callback did."""

import re

import gymnasium as gym
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BasePredictionWriter,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger

from rl_lightning import ConfigurationError, RLModule, Trainer
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import Recorder, quiet, small_dqn, small_ppo

CARTPOLE = GymEnvModule("CartPole-v1", num_envs=2)


class Scores(pl.Callback):
    """Gives each evaluation the next score of a list, before anybody else looks at it."""

    def __init__(self, *scores):
        self.scores = list(scores)

    def on_validation_epoch_end(self, trainer, module):
        trainer.callback_metrics["eval/mean"].fill_(self.scores.pop(0))


def csv(path):
    """A metrics file as a list of dicts, empty cells left out."""
    header, *rows = (row.split(",") for row in path.read_text().splitlines())
    return [{name: float(cell) for name, cell in zip(header, row, strict=True) if cell} for row in rows]


# ---- ModelCheckpoint ---------------------------------------------------------------------------------------------


def test_top_k_by_the_evaluation(tmp_path):
    checkpoint = ModelCheckpoint(
        tmp_path, "{step}", monitor="eval/mean", mode="max", save_top_k=2, auto_insert_metric_name=True
    )
    scores = Scores(3.0, 9.0, 1.0, 5.0)
    trainer = Trainer(max_steps=80, steps_per_epoch=20, **quiet(scores, Evaluation(num_episodes=1), checkpoint))
    trainer.fit(small_ppo(), CARTPOLE)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=40.ckpt", "step=80.ckpt"]
    assert checkpoint.best_model_path == str(tmp_path / "step=40.ckpt")
    assert checkpoint.best_model_score == 9.0
    assert torch.load(checkpoint.best_model_path, weights_only=True)["global_step"] == 40


def test_default_checkpoint_keeps_the_last_epoch(tmp_path):
    trainer = Trainer(
        max_steps=60, steps_per_epoch=20, default_root_dir=tmp_path, **{**quiet(), "enable_checkpointing": True}
    )
    trainer.fit(small_ppo(), CARTPOLE)
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert path.name == "epoch=2-step=60.ckpt"


def test_save_last_and_resume_from_it(tmp_path):
    def fit(max_steps, ckpt_path):
        checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_epochs=1)
        stopping = EarlyStopping("eval/mean", mode="max", patience=50)
        callbacks = quiet(Evaluation(num_episodes=1), stopping, checkpoint)
        trainer = Trainer(max_steps=max_steps, steps_per_epoch=20, **callbacks)
        trainer.fit(RLModule(small_ppo()), CARTPOLE, ckpt_path=ckpt_path)
        return trainer, stopping

    first, first_stopping = fit(40, None)
    assert (tmp_path / "last.ckpt").exists()
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 40
    second, second_stopping = fit(80, "last")
    assert (second.global_step, second.current_epoch) == (80, 4)
    assert second.num_updates > first.num_updates
    assert second_stopping.best_score >= first_stopping.best_score


def test_every_n_train_steps_where_the_clock_meets_it(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=32, save_top_k=-1)
    Trainer(max_steps=100, **quiet(checkpoint)).fit(small_ppo(), CARTPOLE)  # learns every 8 x 2 env steps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=32.ckpt", "step=64.ckpt", "step=96.ckpt"]


@pytest.mark.parametrize(
    ("agent", "every", "match"),
    [
        (small_ppo, 100, r"about once in 4: training advances 16 env steps.*multiple of 16 \(96 or 112\)"),
        (small_ppo, 10, r"multiple of 16 \(16\)"),
        (lambda: small_dqn(update_every=6, learning_starts=20), 12, r"learning falls on 2, 8"),
    ],
)
def test_every_n_train_steps_that_the_clock_seldom_meets(agent, every, match):
    with pytest.raises(ConfigurationError, match=match):
        Trainer(max_steps=100, **quiet(ModelCheckpoint(every_n_train_steps=every))).fit(agent(), CARTPOLE)


def test_a_minimum_of_returns_is_warned_about():
    callbacks = quiet(Evaluation(num_episodes=1), ModelCheckpoint(monitor="eval/mean"))
    with pytest.warns(UserWarning, match="a higher return is better"):
        Trainer(max_steps=20, **callbacks).fit(small_ppo(), CARTPOLE)


# ---- EarlyStopping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [{"steps_per_epoch": 20}, {"every": 20}])
def test_patience_counts_evaluations(interval):
    evaluation = Evaluation(num_episodes=1, every_n_steps=interval.pop("every", None))
    stopping = EarlyStopping("eval/mean", mode="max", patience=2)
    callbacks = quiet(Scores(1.0, 5.0, 4.0, 4.0, 9.0, 9.0), evaluation, stopping)
    trainer = Trainer(max_steps=200, **interval, **callbacks)
    trainer.fit(small_ppo(), CARTPOLE)
    assert trainer.global_step == 80
    assert stopping.best_score == 5


def test_stopping_threshold():
    stopping = EarlyStopping("eval/mean", mode="max", stopping_threshold=100, patience=99)
    callbacks = quiet(Scores(1.0, 101.0, 1.0, 1.0), Evaluation(num_episodes=1), stopping)
    trainer = Trainer(max_steps=200, steps_per_epoch=20, **callbacks)
    trainer.fit(small_ppo(), CARTPOLE)
    assert trainer.global_step == 40


# ---- learning rates, time, progress, summaries ----------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "expected"), [("step", [64, 112, 160]), ("epoch", [0, 80])])
def test_learning_rate_monitor_counts_env_steps(interval, expected, tmp_path):
    logger = CSVLogger(tmp_path)
    arguments = {**quiet(LearningRateMonitor(interval)), "logger": logger}
    trainer = Trainer(max_steps=160, steps_per_epoch=80, log_every_n_steps=50, **arguments)
    trainer.fit(small_ppo(lr=0.25), CARTPOLE)
    rows = [row for row in csv(tmp_path / "lightning_logs/version_0/metrics.csv") if "lr-Adam" in row]
    assert [row["step"] for row in rows] == expected
    assert {row["lr-Adam"] for row in rows} == {0.25}


def test_timer():
    timer = Timer(duration={"seconds": 1})
    trainer = Trainer(max_epochs=-1, **quiet(timer))
    trainer.fit(small_ppo(), CARTPOLE)
    assert 1.0 <= timer.time_elapsed("train") < 10.0
    assert trainer.global_step > 0


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_stock_progress_bars(bar, capsys):
    arguments = {**quiet(bar(), Evaluation(num_episodes=2)), "enable_progress_bar": True}
    trainer = Trainer(max_steps=60, steps_per_epoch=30, limit_predict_batches=1, **arguments)
    module = RLModule(small_ppo())
    trainer.fit(module, CARTPOLE)
    trainer.validate(module)
    trainer.test(module)
    trainer.predict(module)
    text = capsys.readouterr().out
    assert "Epoch 1" in text
    assert "eval/mean" in text


@pytest.mark.parametrize("summary", [ModelSummary, RichModelSummary])
def test_summaries_see_the_networks(summary, capsys):
    arguments = {**quiet(summary()), "enable_model_summary": True}
    trainer = Trainer(max_steps=16, **arguments)
    module = RLModule(small_ppo())
    trainer.fit(module, CARTPOLE)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert 200 < count < 1000
    captured = capsys.readouterr()
    if summary is RichModelSummary:
        assert re.search(rf"Trainable params: {count}\b", captured.out)
    else:
        assert pl.utilities.model_summary.summarize(module).trainable_parameters == count


def test_device_stats(tmp_path):
    pytest.importorskip("psutil")
    arguments = {**quiet(DeviceStatsMonitor(cpu_stats=True)), "logger": CSVLogger(tmp_path)}
    Trainer(max_steps=100, log_every_n_steps=50, **arguments).fit(small_ppo(), CARTPOLE)
    rows = csv(tmp_path / "lightning_logs/version_0/metrics.csv")
    assert any("DeviceStatsMonitor.on_train_batch_end" in name for row in rows for name in row)


# ---- gradients and weights ---------------------------------------------------------------------------------------


def test_gradient_accumulation_scheduler():
    recorder = Recorder("on_before_optimizer_step")
    trainer = Trainer(max_steps=64, steps_per_epoch=32, **quiet(recorder, GradientAccumulationScheduler({1: 4})))
    trainer.fit(small_ppo(), CARTPOLE)  # 4 updates every 16 env steps
    assert recorder.steps("on_before_optimizer_step") == [16] * 4 + [32] * 4 + [48, 64]


@pytest.mark.parametrize("kind", [StochasticWeightAveraging, BatchSizeFinder, LearningRateFinder])
def test_callbacks_that_need_dataloaders(kind):
    callback = kind(swa_lrs=1e-2) if kind is StochasticWeightAveraging else kind()
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} cannot work with envs"):
        Trainer(max_steps=10, **quiet(callback)).fit(small_ppo(), CARTPOLE)


@pytest.mark.parametrize("kind", [WeightAveraging, EMAWeightAveraging])
def test_averaged_weights_are_what_is_evaluated_and_kept(kind, tmp_path):
    seen = {}

    class Look(pl.Callback):
        def on_validation_batch_end(self, trainer, module, *args):
            seen["evaluated"] = [parameter.detach().clone() for parameter in module.parameters()]

    averaging = kind()
    evaluation = Evaluation(num_episodes=1)
    trainer = Trainer(max_steps=96, steps_per_epoch=48, **quiet(averaging, evaluation, Look()))
    module = RLModule(small_ppo(lr=0.1))
    current = []

    class Copy(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            current.append([parameter.detach().clone() for parameter in module.parameters()])

    trainer.callbacks.append(Copy())
    trainer.fit(module, CARTPOLE)
    assert any(not torch.equal(a, b) for a, b in zip(seen["evaluated"], current[-1], strict=True))
    if kind is WeightAveraging:
        # it averages after the first learning step of each env step that it sees: one of each rollout
        firsts = current[::4]
        for i, parameter in enumerate(module.parameters()):
            assert torch.allclose(parameter, torch.stack([weights[i] for weights in firsts]).mean(0), atol=1e-6)


def test_lambda_callback():
    seen = []
    callback = LambdaCallback(on_train_batch_end=lambda trainer, *args: seen.append(trainer.global_step))
    Trainer(max_steps=32, **quiet(callback)).fit(small_ppo(), CARTPOLE)
    assert seen == [16] * 4 + [32] * 4


# ---- failures and predictions ------------------------------------------------------------------------------------


class Faulty(gym.Wrapper):
    """CartPole that breaks after 50 steps."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.left = 50

    def step(self, action):
        self.left -= 1
        if not self.left:
            raise ValueError("sensor unplugged")
        return super().step(action)


def test_on_exception_checkpoint_can_be_resumed(tmp_path):
    trainer = Trainer(max_steps=100, **quiet(OnExceptionCheckpoint(tmp_path)))
    with pytest.raises(ValueError, match="sensor unplugged"), pytest.warns(UserWarning, match="last"):
        trainer.fit(small_ppo(), Faulty)
    path = tmp_path / "on_exception.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 49
    again = Trainer(max_steps=100, **quiet())
    again.fit(small_ppo(), "CartPole-v1", ckpt_path=path)
    assert again.global_step == 100


def test_prediction_writer():
    written = []

    class Writer(BasePredictionWriter):
        def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
            written.append((prediction.length, batch_indices, batch_idx))

        def write_on_epoch_end(self, trainer, module, predictions, batch_indices):
            written.append((len(predictions), batch_indices))

    trainer = Trainer(limit_predict_batches=2, **quiet(Writer("batch_and_epoch")))
    episodes = trainer.predict(small_ppo(), "CartPole-v1")
    assert written == [(episodes[0].length, [0], 0), (episodes[1].length, [1], 1), (2, [[[0], [1]]])]
