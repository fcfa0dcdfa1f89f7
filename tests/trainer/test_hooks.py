"""Lightning's hooks fire in Lightning's order, and cost nothing where nobody overrides them."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from rl_lightning import RLModule, Trainer
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import Recorder, quiet, small_dqn, small_ppo

EVERY_HOOK = [name for name in dir(pl.Callback) if name.startswith("on_") or name in ("setup", "teardown")]


def test_order_of_a_short_run():
    recorder = Recorder(*(set(EVERY_HOOK) - {"on_load_checkpoint", "on_save_checkpoint"}))
    trainer = Trainer(max_steps=3, **quiet(recorder, Evaluation(num_episodes=1)))
    trainer.fit(small_dqn(batch_size=1, learning_starts=2, epsilon_steps=10), "CartPole-v1")
    assert [name for name, _ in recorder.calls] == [
        "setup",
        "on_fit_start",
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_before_zero_grad",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_train_batch_end",
        "on_validation_start",
        "on_validation_epoch_start",
        "on_validation_batch_start",
        "on_validation_batch_end",
        "on_validation_epoch_end",
        "on_validation_end",
        "on_train_epoch_end",
        "on_train_end",
        "on_fit_end",
        "teardown",
    ]


def test_on_env_step_sees_every_step():
    seen = []

    class Watch(pl.Callback):
        def on_env_step(self, trainer, module, transition):
            seen.append((trainer.global_step, transition.obs.shape))

    Trainer(max_steps=12, **quiet(Watch())).fit(small_ppo(), GymEnvModule("CartPole-v1", num_envs=4))
    assert seen == [(4, (4, 4)), (8, (4, 4)), (12, (4, 4))]


def test_on_env_step_of_the_module():
    class Counting(RLModule):
        count = 0

        def on_env_step(self, transition):
            self.count += len(transition.reward)

    module = Counting(small_ppo())
    Trainer(max_steps=20, **quiet()).fit(module, GymEnvModule("CartPole-v1", num_envs=4))
    assert module.count == 20


def test_stages():
    stages = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            stages["train"] = (trainer.training, module.training, torch.is_grad_enabled())

        def on_validation_batch_end(self, trainer, module, *args):
            stages["val"] = (trainer.validating, module.training, torch.is_grad_enabled())

    Trainer(max_steps=100, steps_per_epoch=50, **quiet(Look(), Evaluation(num_episodes=1))).fit(
        small_ppo(), "CartPole-v1"
    )
    assert stages == {"train": (True, True, True), "val": (True, False, False)}


def test_log_works_in_every_hook(tmp_path):
    class Logging(RLModule):
        def training_step(self, batch, batch_idx):
            metrics = super().training_step(batch, batch_idx)
            self.log("mine/step", float(self.trainer.global_step), prog_bar=True)
            self.log("mine/epoch", 1.0, on_step=False, on_epoch=True)
            return metrics

        def validation_step(self, episode, batch_idx):
            self.log("mine/shortest", episode.length, reduce_fx="min", batch_size=1)

        def on_train_epoch_end(self):
            self.log("mine/epoch_end", 2.0)

    trainer = Trainer(
        max_steps=64, log_every_n_steps=1, **{**quiet(Evaluation(num_episodes=3)), "logger": CSVLogger(tmp_path)}
    )
    trainer.fit(Logging(small_ppo()), "CartPole-v1")
    metrics = trainer.callback_metrics
    assert metrics["mine/step"] == 64
    assert metrics["mine/epoch"] == 1
    assert metrics["mine/epoch_end"] == 2
    assert metrics["mine/shortest"] == min(trainer.last_evaluation.lengths)
    header = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"mine/step", "mine/epoch", "mine/epoch_end", "mine/shortest", "eval/mean"} <= set(header)


def test_training_step_outputs_reach_on_train_batch_end():
    outputs_seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            outputs_seen.append((sorted(outputs), set(batch) >= {"obs", "action"}, batch_idx))

    Trainer(max_steps=10, **quiet(Look())).fit(small_dqn(batch_size=4, learning_starts=8), "CartPole-v1")
    assert outputs_seen == [(["loss", "q_mean"], True, 0), (["loss", "q_mean"], True, 1)]


def test_returning_minus_one_from_batch_start_ends_the_epoch():
    class Skip(RLModule):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 else None

    trainer = Trainer(max_epochs=2, **quiet())
    trainer.fit(Skip(small_dqn(batch_size=4, learning_starts=8)), "CartPole-v1")
    assert trainer.num_updates == 4


@pytest.mark.parametrize("kind", ["step", "epoch", "plateau"])
def test_schedulers_are_stepped(kind):
    class Scheduled(RLModule):
        def configure_optimizers(self):
            optimizer = self.named_optimizers()["q"]
            if kind == "plateau":
                scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0, threshold=1e9)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "eval/mean"}}
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": kind}}

    trainer = Trainer(max_epochs=3, steps_per_epoch=20, **quiet(Evaluation(num_episodes=1)))
    trainer.fit(Scheduled(small_dqn(lr=1.0, learning_starts=18)), "CartPole-v1")
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx({"step": 0.5**trainer.num_updates, "epoch": 0.5**3, "plateau": 0.1**2}[kind])


def test_overridden_lightning_methods_are_used():
    called = []

    class Own(RLModule):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            called.append("optimizer_step")
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            called.append("configure_gradient_clipping")

        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            called.append("optimizer_zero_grad")
            optimizer.zero_grad()

        def backward(self, loss, *args, **kwargs):
            called.append("backward")
            loss.backward()

    before = None

    class Look(pl.Callback):
        def on_train_start(self, trainer, module):
            nonlocal before
            before = [parameter.detach().clone() for parameter in module.parameters()]

    module = Own(small_dqn(batch_size=4, learning_starts=8))
    Trainer(max_steps=9, **quiet(Look())).fit(module, "CartPole-v1")
    assert called == ["optimizer_zero_grad", "backward", "configure_gradient_clipping", "optimizer_step"]
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
