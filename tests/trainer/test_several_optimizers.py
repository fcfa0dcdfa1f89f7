"""Agents with several optimizers under the Trainer: each is clipped, scheduled, accumulated, saved, and on its own."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger

from rl_lightning import DDPG, SAC, TD3, RLModule, Trainer
from rl_lightning.envs import GymEnvModule
from rl_lightning.memory import ReplayMemory
from tests.trainer.helpers import quiet

SMALL = {"batch_size": 16, "learning_starts": 20, "hidden_sizes": (16,), "buffer_size": 500}
AGENTS = pytest.mark.parametrize("make", [SAC, TD3, DDPG])


class Watch(pl.Callback):
    """Notes the gradient's norm at each optimizer's steps, by the optimizer's name."""

    def on_train_start(self, trainer, pl_module):
        self.norms = {name: [] for name in pl_module.named_optimizers()}
        for name, optimizer in pl_module.named_optimizers().items():
            optimizer.register_step_pre_hook(lambda optimizer, *_, name=name: self.norms[name].append(norm(optimizer)))


def norm(optimizer):
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    return torch.linalg.vector_norm(torch.cat([gradient.flatten().float() for gradient in gradients])).item()


def fit(agent, *callbacks, module=RLModule, num_envs=1, ckpt_path=None, **arguments):
    pl.seed_everything(0, verbose=False)
    trainer = Trainer(**{"max_steps": 60, **quiet(*callbacks), **arguments})
    trainer.fit(module(agent), GymEnvModule("Pendulum-v1", num_envs=num_envs), ckpt_path=ckpt_path)
    return trainer


@AGENTS
def test_each_optimizer_s_gradient_is_clipped_by_itself(make):
    watch = Watch()
    fit(make(**SMALL), watch, gradient_clip_val=1e-3)
    assert set(watch.norms) >= {"critic", "actor"}
    for name, norms in watch.norms.items():
        assert norms and max(norms) <= 1e-3 * 1.001, name
    loose = Watch()
    fit(make(**SMALL), loose)
    assert max(loose.norms["critic"]) > 1e-2


@AGENTS
def test_accumulated_batches_count_for_each_optimizer(make):
    watch = Watch()
    trainer = fit(make(**SMALL), watch, accumulate_grad_batches=2)
    assert trainer.num_updates == 40
    steps = {name: len(norms) for name, norms in watch.norms.items()}
    assert steps == {name: 10 if make is TD3 and name == "actor" else 20 for name in steps}


class Scheduled(RLModule):
    """The learning rate falls to a tenth after 10 learning steps."""

    def configure_optimizers(self):
        optimizers = super().configure_optimizers()
        schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, step_size=10) for optimizer in optimizers]
        return optimizers, [{"scheduler": scheduler, "interval": "step"} for scheduler in schedulers]


def test_each_has_a_schedule_and_the_monitor_names_them(tmp_path):
    agent = SAC(lr=1e-2, **SMALL)
    logger = CSVLogger(tmp_path)
    trainer = fit(agent, LearningRateMonitor(), module=Scheduled, logger=logger, log_every_n_steps=1, max_steps=35)
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == pytest.approx([1e-3] * 3)
    header = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"lr-Adam", "lr-Adam-1", "lr-Adam-2"} <= set(header)


@AGENTS
@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_every_precision_learns(make, precision, dtype):
    watch, agent = Watch(), make(**SMALL)
    trainer = fit(agent, watch, precision=precision)
    assert trainer.num_updates == 40
    assert {parameter.dtype for parameter in agent.parameters()} == {dtype}
    for name, norms in watch.norms.items():
        assert 0 < max(norms) < float("inf"), name


@AGENTS
def test_a_checkpoint_holds_all_of_them(make, tmp_path):
    agent = make(**SMALL)
    trainer = fit(agent)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = make(**SMALL)
    resumed = fit(other, ckpt_path=tmp_path / "a.ckpt")  # at its end already: nothing more is learned
    for ours, theirs in zip(trainer.optimizers, resumed.optimizers, strict=True):
        before, after = ours.state_dict()["state"], theirs.state_dict()["state"]
        assert before and before.keys() == after.keys()
        for k, state in before.items():
            for name, value in state.items():
                torch.testing.assert_close(after[k][name], value, rtol=0, atol=0)
    torch.testing.assert_close(dict(other.named_parameters()), dict(agent.named_parameters()), rtol=0, atol=0)
    assert other.warm_up.steps_left == agent.warm_up.steps_left <= 0
    assert getattr(other, "num_updates", None) == getattr(agent, "num_updates", None)


@AGENTS
def test_it_is_rebuilt_with_no_env_at_hand(make, tmp_path):
    agent = make(**SMALL)
    fit(agent).save_checkpoint(tmp_path / "a.ckpt")
    loaded = RLModule.load_from_checkpoint(tmp_path / "a.ckpt").agent
    obs = torch.randn(5, 3)
    assert torch.equal(loaded.act(obs, explore=False)[0], agent.act(obs, explore=False)[0])


@AGENTS
@pytest.mark.parametrize(("updates_per_step", "expected"), [(1.0, 180), (0.5, 90)])
def test_several_envs_learn_as_often_for_each_env_step(make, updates_per_step, expected):
    agent = make(updates_per_step=updates_per_step, **SMALL)
    assert fit(agent, num_envs=4, max_steps=200).num_updates == expected
    assert agent.warm_up.steps_left == 0


@AGENTS
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_they_learn_from_priorities(make, precision):
    """The memory raises where no errors come back."""
    memory = ReplayMemory(500, num_envs=1, batch_size=16, learning_starts=20, alpha=0.6)
    trainer = fit(make(**SMALL), module=lambda agent: RLModule(agent, memory), precision=precision)
    assert trainer.num_updates == 40
