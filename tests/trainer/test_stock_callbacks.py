"""Lightning's own callbacks, unchanged: each test looks at what the callback did."""

import re
from datetime import timedelta
from itertools import groupby, product

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
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger

from rl_lightning import DQN, ConfigurationError, RLModule, Trainer
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import GymEnvModule
from rl_lightning.memory import ReplayMemory
from tests.trainer.helpers import Recorder, quiet, small_dqn, small_ppo

# a resumed run goes on in the folder of its checkpoint, and Lightning warns of every folder that is not empty
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
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


@pytest.mark.parametrize("agent", [small_ppo, small_dqn])
def test_everything_goes_on_from_where_it_was(agent, tmp_path):
    def state(trainer, module):
        (optimizer,) = trainer.optimizers
        tensors = [*module.parameters(), *(value for state in optimizer.state.values() for value in state.values())]
        counters = trainer.global_step, trainer.num_updates, trainer.num_episodes
        return (
            counters,
            [tensor.detach().clone() for tensor in tensors],
            dict(trainer.checkpoint_callback.best_k_models),
        )

    def fit(max_steps, ckpt_path):
        started = []

        class Look(pl.Callback):
            def on_train_start(self, trainer, module):
                started.append((trainer.current_epoch, *state(trainer, module)))

        recorder = Recorder("on_train_epoch_end")
        checkpoint = ModelCheckpoint(tmp_path, monitor="eval/mean", mode="max", save_last=True, save_top_k=-1)
        callbacks = quiet(Evaluation(num_episodes=1), checkpoint, recorder, Look())
        trainer = Trainer(max_steps=max_steps, steps_per_epoch=40, **callbacks)
        module = RLModule(agent())
        trainer.fit(module, CARTPOLE, ckpt_path=ckpt_path)
        return state(trainer, module), started[0], recorder.steps("on_train_epoch_end")

    ended, _, _ = fit(104, None)
    (counters, _, kept), (epoch, *started), epoch_ends = fit(160, "last")
    assert epoch == 104 // 40
    for before, after in zip(ended, started, strict=True):
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert all(a > b for a, b in zip(counters, ended[0], strict=True))
    assert epoch_ends == [120, 160]
    assert len(kept) == len(list(tmp_path.glob("epoch=*.ckpt"))) == 3 + 2


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


def test_every_n_train_steps_after_a_resume_between_two_learning_phases(tmp_path):
    first = ModelCheckpoint(tmp_path, save_last=True)
    Trainer(max_steps=40, **quiet(first)).fit(small_ppo(), CARTPOLE)
    callbacks = quiet(ModelCheckpoint(tmp_path), ModelCheckpoint(tmp_path, every_n_train_steps=32))
    trainer = Trainer(max_steps=100, **callbacks)
    with pytest.raises(ConfigurationError, match=r"learning falls on 8, 24, .* env steps\. Use .*\.Checkpoint"):
        trainer.fit(small_ppo(), CARTPOLE, ckpt_path=tmp_path / "last.ckpt")


def test_a_replay_memory_knows_where_it_is_sure_to_learn():
    for num_envs, every, rate, starts in product((1, 2, 3, 8), (1, 2, 4, 6), (0.1, 0.25, 1, 1.5), (0, 5, 20)):
        memory = ReplayMemory(
            99, num_envs=num_envs, batch_size=1, learning_starts=starts, update_every=every, updates_per_step=rate
        )
        start, end = starts + memory.stride + num_envs + every, starts + 5 * memory.stride
        learns = set()
        for step in range(num_envs, end, num_envs):
            memory.pace.due = 0
            memory.pace.count(num_envs)
            if memory.pace.due:
                learns.add(step)
        assert {step for step in range(start, end) if step % memory.stride == memory.offset} <= learns


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"every_n_epochs": 2}, [80, 160]),
        ({"train_time_interval": timedelta(0)}, [16, 32, 48, 64, 80, 96, 112, 128, 144, 160]),
    ],
)
def test_checkpoints_by_epochs_and_by_time(arguments, steps, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **arguments)
    Trainer(max_steps=160, steps_per_epoch=40, **quiet(checkpoint)).fit(small_ppo(), CARTPOLE)
    assert {path.name for path in tmp_path.iterdir()} == {f"step={step}.ckpt" for step in steps}


def test_checkpoints_follow_an_evaluation_with_an_interval_of_its_own(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", monitor="eval/mean", mode="max", save_top_k=-1)
    callbacks = quiet(Scores(3.0, 9.0, 1.0), Evaluation(num_episodes=1, every_n_steps=30), checkpoint)
    Trainer(max_steps=80, steps_per_epoch=40, **callbacks).fit(small_ppo(), CARTPOLE)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step=30.ckpt", "step=60.ckpt", "step=80.ckpt"}
    assert checkpoint.best_model_path == str(tmp_path / "step=60.ckpt")


def test_training_metrics_can_be_monitored_at_the_end_of_each_epoch(tmp_path):
    seen = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append(trainer.callback_metrics["train/value_loss"].item())

    checkpoint = ModelCheckpoint(tmp_path, monitor="train/value_loss", mode="min", save_top_k=-1)
    stopping = EarlyStopping("train/return", mode="max", patience=99)
    trainer = Trainer(
        max_steps=240, steps_per_epoch=80, log_every_n_steps=100_000, **quiet(checkpoint, stopping, Look())
    )
    trainer.fit(small_ppo(), CARTPOLE)
    assert list(checkpoint.best_k_models.values()) == seen
    assert len(set(seen)) == 3
    assert stopping.best_score >= 8


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


@pytest.mark.parametrize(
    ("monitor", "evaluation", "match"),
    [
        ("val_loss", [Evaluation()], r"EarlyStopping\(monitor='val_loss'\): nobody logs that name.*eval/mean"),
        ("eval/mean", [], r"nothing is evaluated. Add the callback Evaluation\(\)"),
    ],
)
def test_a_monitor_that_nobody_logs(monitor, evaluation, match):
    trainer = Trainer(max_steps=20, **quiet(*evaluation, EarlyStopping(monitor, mode="max")))
    with pytest.raises(ConfigurationError, match=match):
        trainer.fit(small_ppo(), CARTPOLE)
    assert trainer.global_step == 0


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


class TwoOptimizers(DQN):
    """The first layer learns by itself, to give small values, before all others learn as usual."""

    def configure_optimizers(self):
        first, *others = self.network.parameters()
        return {"first": torch.optim.Adam([first], lr=0.25), "q": torch.optim.Adam(others, lr=0.5)}

    def update(self, batch, step):
        step("first", self.network(batch["obs"]).square().mean())
        return super().update(batch, step)


def test_learning_rates_of_several_optimizers(tmp_path):
    arguments = {**quiet(LearningRateMonitor("step")), "logger": CSVLogger(tmp_path)}
    trainer = Trainer(max_steps=40, log_every_n_steps=20, **arguments)
    trainer.fit(TwoOptimizers(learning_starts=10, batch_size=4), CARTPOLE)
    rows = [row for row in csv(tmp_path / "lightning_logs/version_0/metrics.csv") if "lr-Adam" in row]
    assert {(row["lr-Adam"], row["lr-Adam-1"]) for row in rows} == {(0.25, 0.5)}
    for optimizer in trainer.optimizers:
        assert {float(state["step"]) for state in optimizer.state.values()} == {trainer.num_updates}


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_timer_looks_where_it_is_told_to(interval):
    class TimeIsUp(pl.Callback):
        def on_env_step(self, trainer, module, transition):
            if trainer.global_step == 44:
                timer._start_time["train"] = -1e9

    timer = Timer(duration={"hours": 1}, interval=interval, verbose=False)
    trainer = Trainer(max_epochs=-1, steps_per_epoch=80, **quiet(timer, TimeIsUp()))
    trainer.fit(small_ppo(), CARTPOLE)
    assert trainer.global_step == 80 if interval == "epoch" else trainer.global_step < 80


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


@pytest.mark.parametrize(
    ("bar", "arguments", "shown"),
    [
        # learning falls on 16, 32, 48, 64, 80, 96
        (TQDMProgressBar(), {"max_steps": 100}, ["16/40", "32/40", "8/40", "24/40", "40/40", "16/20"]),
        (TQDMProgressBar(refresh_rate=10), {"max_epochs": 2}, ["10/40", "30/40", "20/40", "40/40"]),
        (TQDMProgressBar(), {"max_epochs": 2, "limit_train_batches": 2}, ["1/2", "2/2", "1/2", "2/2"]),
    ],
)
def test_the_stock_progress_bar_counts_the_env_steps_of_an_epoch(bar, arguments, shown, capsys):
    trainer = Trainer(steps_per_epoch=40, **arguments, **{**quiet(bar), "enable_progress_bar": True})
    trainer.fit(small_ppo(), CARTPOLE)
    counts = re.findall(r"\| (\d+/\d+) \[", capsys.readouterr().out)
    assert [count for count, _ in groupby(counts) if not count.startswith("0/")] == shown


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


def test_gradients_are_zeroed_where_accumulation_begins():
    names = ("on_before_zero_grad", "on_before_backward", "on_before_optimizer_step")
    recorder = Recorder(*names)
    trainer = Trainer(max_steps=44, steps_per_epoch=22, **quiet(recorder, GradientAccumulationScheduler({1: 3})))
    trainer.fit(small_dqn(learning_starts=20), "CartPole-v1")
    zero, backward, step = names
    assert [name for name, _ in recorder.calls[:6]] == [zero, backward, step] * 2  # env steps 21 and 22
    assert [name for name, _ in recorder.calls[6:16]] == [zero, backward, backward, backward, step] * 2


@pytest.mark.parametrize("kind", [StochasticWeightAveraging, BatchSizeFinder, LearningRateFinder])
def test_callbacks_that_need_dataloaders(kind):
    callback = kind(swa_lrs=1e-2) if kind is StochasticWeightAveraging else kind()
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} cannot work with envs"):
        Trainer(max_steps=10, **quiet(callback)).fit(small_ppo(), CARTPOLE)


class Weights(pl.Callback):
    """Copies of the weights after each learning step and in each evaluation."""

    def __init__(self):
        self.learned, self.evaluated = [], []

    def on_train_batch_end(self, trainer, module, *args):
        self.learned.append(self.copy(module))

    def on_validation_batch_end(self, trainer, module, *args):
        self.evaluated.append(self.copy(module))

    @staticmethod
    def copy(module):
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_averaged_weights_are_what_is_evaluated_and_kept(tmp_path):
    weights, checkpoint = Weights(), ModelCheckpoint(tmp_path)
    callbacks = quiet(WeightAveraging(), Evaluation(num_episodes=1), weights, checkpoint)
    module = RLModule(small_ppo(lr=0.1))
    Trainer(max_steps=96, steps_per_epoch=48, **callbacks).fit(module, CARTPOLE)
    assert len(weights.learned) == 24  # 4 after each rollout of 16 env steps
    for average, learned in zip(weights.evaluated, (weights.learned[:12], weights.learned), strict=True):
        assert torch.allclose(average, torch.stack(learned).mean(0), atol=1e-6)
        assert not torch.allclose(average, learned[-1], atol=1e-6)
    kept = RLModule.load_from_checkpoint(checkpoint.best_model_path)
    assert torch.equal(Weights.copy(kept), weights.evaluated[-1])
    assert torch.equal(Weights.copy(module), weights.evaluated[-1])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_moving_averages_count_optimizer_steps(accumulate):
    seen = []

    class Moving(EMAWeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            due = super().should_update(step_idx, epoch_idx)
            if step_idx is not None:
                seen.append((step_idx, due))
            return due

    trainer = Trainer(
        max_steps=64, accumulate_grad_batches=accumulate, **quiet(Moving(decay=0.5, update_every_n_steps=3))
    )
    trainer.fit(small_ppo(), CARTPOLE)
    assert trainer.global_step == 64
    assert seen == [(step, step % 3 == 0) for step in range(16 // accumulate)]


def test_pruned_weights_reach_the_checkpoint(tmp_path):
    pruning = ModelPruning("l1_unstructured", amount=0.5, apply_pruning=lambda epoch: epoch == 0)
    checkpoint = ModelCheckpoint(tmp_path)
    trainer = Trainer(max_steps=80, steps_per_epoch=40, **quiet(pruning, Evaluation(num_episodes=1), checkpoint))
    trainer.fit(small_ppo(), CARTPOLE)
    kept = Weights.copy(RLModule.load_from_checkpoint(checkpoint.best_model_path))
    assert (kept == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_throughput(tmp_path):
    class Counted(RLModule):
        flops_per_batch = 100

    monitor = ThroughputMonitor(batch_size_fn=lambda batch: len(batch["obs"]) if isinstance(batch, dict) else 1)
    arguments = {**quiet(monitor, Evaluation(num_episodes=2)), "logger": CSVLogger(tmp_path)}
    trainer = Trainer(max_steps=96, steps_per_epoch=48, log_every_n_steps=32, **arguments)
    trainer.fit(Counted(small_ppo()), CARTPOLE)
    rows = [row for row in csv(tmp_path / "lightning_logs/version_0/metrics.csv") if "train/samples" in row]
    # at the first learning step past each multiple of 32, of 4 with 8 samples each every 16 env steps
    assert [(row["step"], row["train/batches"], row["train/samples"]) for row in rows] == [
        (32, 5, 40),
        (64, 13, 104),
        (96, 21, 168),
    ]


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
