"""One clock: `global_step` is env steps, and everything that counts steps counts those."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from rl_lightning import A2C, DQN, PPO, ConfigurationError, RLModule, Trainer
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import Recorder, quiet, small_dqn, small_ppo


def test_global_step_is_env_steps_over_all_envs():
    trainer = Trainer(max_steps=100, **quiet())
    trainer.fit(RLModule(small_ppo()), GymEnvModule("CartPole-v1", num_envs=4))
    assert trainer.global_step == 100
    # 4 envs x 8 steps a rollout, 2 epochs x 2 minibatches: 3 whole rollouts in 100 steps
    assert trainer.num_updates == 3 * 4
    assert trainer.num_episodes > 0


def test_steps_pass_the_budget_by_less_than_num_envs():
    trainer = Trainer(max_steps=10, **quiet())
    trainer.fit(RLModule(small_ppo()), GymEnvModule("CartPole-v1", num_envs=4))
    assert trainer.global_step == 12


def test_replay_warm_up_counts_steps_but_no_updates():
    trainer = Trainer(max_steps=60, **quiet())
    trainer.fit(RLModule(small_dqn(learning_starts=50)), "CartPole-v1")
    assert trainer.global_step == 60
    assert trainer.num_updates == 10


def test_epochs_are_env_steps_long():
    recorder = Recorder("on_train_epoch_start", "on_train_epoch_end")
    trainer = Trainer(max_epochs=3, steps_per_epoch=40, **quiet(recorder))
    trainer.fit(RLModule(small_ppo()), GymEnvModule("CartPole-v1", num_envs=4))
    assert trainer.global_step == 120
    assert trainer.current_epoch == 3
    assert recorder.steps("on_train_epoch_end") == [40, 80, 120]


def test_max_epochs_and_max_steps_whichever_comes_first():
    for limits in ({"max_steps": 50, "max_epochs": 10}, {"max_steps": 500, "max_epochs": 1}):
        trainer = Trainer(steps_per_epoch=60, **limits, **quiet())
        trainer.fit(small_ppo(), "CartPole-v1")
        assert trainer.global_step == (50 if limits["max_steps"] == 50 else 60)


def test_max_time_stops_also_in_replay_warm_up():
    trainer = Trainer(max_steps=10**9, max_time={"seconds": 1}, **quiet())
    trainer.fit(small_dqn(buffer_size=10**6, learning_starts=10**6), "CartPole-v1")
    assert 0 < trainer.global_step < 10**6
    assert trainer.num_updates == 0


def test_min_steps_outlives_should_stop():
    class StopNow(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    trainer = Trainer(max_steps=500, min_steps=200, **quiet(StopNow()))
    trainer.fit(small_ppo(), GymEnvModule("CartPole-v1", num_envs=4))
    assert trainer.global_step == 200


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [100, 200]),
        ({"val_check_interval": 40}, [40, 80, 120, 160, 200]),
        ({"val_check_interval": 0.25}, [25, 50, 75, 100, 125, 150, 175, 200]),
        ({"check_val_every_n_epoch": 2}, [200]),
        ({"limit_val_batches": 0}, []),
    ],
)
def test_when_evaluation_runs(arguments, expected):
    recorder = Recorder("on_validation_start")
    trainer = Trainer(max_steps=200, steps_per_epoch=100, **arguments, **quiet(recorder, Evaluation(num_episodes=1)))
    trainer.fit(small_ppo(), "CartPole-v1")
    assert recorder.steps("on_validation_start") == expected


def test_evaluation_by_time():
    recorder = Recorder("on_validation_start")
    callbacks = quiet(recorder, Evaluation(num_episodes=1))
    trainer = Trainer(max_time="00:00:00:03", val_check_interval="00:00:00:01", steps_per_epoch=50, **callbacks)
    trainer.fit(small_ppo(), "CartPole-v1")
    assert 2 <= len(recorder.steps("on_validation_start")) <= 4  # each second, and at the end
    assert trainer.current_epoch > 4


def test_evaluation_by_its_own_interval_and_at_start():
    recorder = Recorder("on_validation_start")
    evaluation = Evaluation(num_episodes=1, every_n_steps=70, eval_at_start=True)
    trainer = Trainer(max_steps=200, steps_per_epoch=100, **quiet(recorder, evaluation))
    trainer.fit(small_ppo(), "CartPole-v1")
    # and once more at the end, because the last agent is wanted too
    assert recorder.steps("on_validation_start") == [0, 70, 140, 200]


def test_limit_val_batches_caps_episodes():
    for limit, expected in ((2, 2), (0.5, 5), (100, 10)):
        recorder = Recorder("on_validation_batch_end")
        trainer = Trainer(max_steps=20, limit_val_batches=limit, **quiet(recorder, Evaluation(num_episodes=10)))
        trainer.fit(small_ppo(), "CartPole-v1")
        assert len(recorder.calls) == expected


def test_limit_train_batches_ends_the_epoch():
    trainer = Trainer(max_epochs=2, limit_train_batches=3, steps_per_epoch=10_000, **quiet())
    trainer.fit(small_dqn(learning_starts=10), "CartPole-v1")
    assert trainer.num_updates == 6
    assert trainer.current_epoch == 2


def test_log_every_n_steps_fires_on_crossing_and_its_axis_is_env_steps(tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = Trainer(max_steps=300, log_every_n_steps=50, **{**quiet(), "logger": logger})
    trainer.fit(small_ppo(), GymEnvModule("CartPole-v1", num_envs=7))
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    steps = [int(row.split(",")[rows[0].split(",").index("step")]) for row in rows[1:]]
    # multiples of 7 that are the first past a multiple of 50, then the end
    assert steps == [56, 105, 154, 203, 252, 301]
    assert {"train/policy_loss", "time/env_steps_per_second", "train/return"} <= set(rows[0].split(","))


def test_fast_dev_run_learns_and_evaluates_once_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = Recorder("on_train_batch_end", "on_validation_batch_end")
    trainer = Trainer(fast_dev_run=True, callbacks=[recorder, Evaluation()], enable_progress_bar=False)
    trainer.fit(small_dqn(learning_starts=10), "CartPole-v1")
    assert [call[0] for call in recorder.calls] == ["on_train_batch_end", "on_validation_batch_end"]
    assert list(tmp_path.iterdir()) == []


def test_accumulate_grad_batches_steps_the_optimizer_less_often():
    def count_steps(accumulate):
        recorder = Recorder("on_before_optimizer_step", "on_train_batch_end")
        trainer = Trainer(max_steps=34, accumulate_grad_batches=accumulate, **quiet(recorder))
        trainer.fit(small_dqn(learning_starts=10), "CartPole-v1")
        return len(recorder.steps("on_before_optimizer_step")), len(recorder.steps("on_train_batch_end"))

    assert count_steps(1) == (24, 24)
    assert count_steps(4) == (6, 24)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true", "bf16-true"])
@pytest.mark.parametrize("agent", [small_ppo, small_dqn, lambda: A2C(num_steps=4)])
def test_precision(precision, agent):
    seen = {}

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            parameter = optimizer.param_groups[0]["params"][0]
            seen["dtype"], seen["grad"] = parameter.dtype, parameter.grad.dtype

    trainer = Trainer(max_steps=64, precision=precision, **quiet(Look(), Evaluation(num_episodes=1)))
    trainer.fit(agent(), GymEnvModule("CartPole-v1", num_envs=2))
    dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    assert seen == {"dtype": dtype, "grad": dtype}
    assert trainer.callback_metrics["eval/mean"] > 0


def test_gradient_clip_val_replaces_the_agents_own():
    def largest_norm(**arguments):
        norms = []

        class Norm(pl.Callback):
            def on_train_batch_end(self, trainer, module, *args):
                grads = [p.grad for p in module.parameters() if p.grad is not None]
                norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))))

        trainer = Trainer(max_steps=64, **arguments, **quiet(Norm()))
        trainer.fit(small_ppo(), GymEnvModule("CartPole-v1", num_envs=2))
        return max(norms)

    assert largest_norm() <= 0.5 + 1e-4  # PPO's own max_grad_norm
    assert largest_norm(gradient_clip_val=0.01) <= 0.01 + 1e-6
    assert largest_norm(gradient_clip_val=0) > 0.5
    assert largest_norm(gradient_clip_val=1e-3, gradient_clip_algorithm="value") < 0.2


def test_detect_anomaly_deterministic_and_barebones_run():
    for arguments in ({"detect_anomaly": True}, {"deterministic": True}):
        trainer = Trainer(max_steps=40, **arguments, **quiet())
        trainer.fit(small_ppo(), "CartPole-v1")
        assert trainer.num_updates > 0
    torch.use_deterministic_algorithms(False)
    trainer = Trainer(max_steps=40, barebones=True)
    trainer.fit(small_ppo(), "CartPole-v1")
    assert trainer.num_updates > 0
    assert trainer.progress_bar_callback is None


@pytest.mark.parametrize("name", ["simple", "advanced"])
def test_profilers_see_the_loop(name, tmp_path):
    kind = {"simple": pl.profilers.SimpleProfiler, "advanced": pl.profilers.AdvancedProfiler}[name]
    profiler = kind(dirpath=tmp_path, filename="profile")
    trainer = Trainer(max_steps=40, profiler=profiler, **quiet(Recorder("on_train_batch_end")))
    trainer.fit(small_ppo(), "CartPole-v1")
    text = next(tmp_path.glob("*profile*")).read_text()
    assert "run_training_epoch" in text
    assert "[LightningModule]RLModule.training_step" in text
    assert "Recorder.on_train_batch_end" in text


def test_num_sanity_val_steps_evaluates_before_training():
    recorder = Recorder("on_sanity_check_start", "on_validation_batch_end", "on_train_start")
    trainer = Trainer(max_steps=20, num_sanity_val_steps=2, **quiet(recorder, Evaluation(num_episodes=3)))
    trainer.fit(small_ppo(), "CartPole-v1")
    names = [call[0] for call in recorder.calls]
    assert names[:4] == [
        "on_sanity_check_start",
        "on_validation_batch_end",
        "on_validation_batch_end",
        "on_train_start",
    ]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"overfit_batches": 1}, "overfit_batches=1.*means nothing"),
        ({"reload_dataloaders_every_n_epochs": 1}, "no dataloaders"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"limit_train_batches": 0.5}, "part of an unknown number"),
    ],
)
def test_arguments_that_mean_nothing(arguments, match):
    with pytest.raises(ConfigurationError, match=match):
        Trainer(max_steps=10, **arguments)


def test_no_limit_at_all():
    with pytest.raises(ConfigurationError, match=r"max_steps=.*missing"):
        Trainer(**quiet()).fit(PPO(), "CartPole-v1")


def test_evaluation_interval_without_evaluation():
    with pytest.raises(ConfigurationError, match="nothing to run"):
        Trainer(max_steps=10, val_check_interval=5, **quiet()).fit(DQN(), "CartPole-v1")
