"""Signals end a run as Lightning ends one, with whatever its callbacks save."""

import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import OnExceptionCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.utilities.exceptions import SIGTERMException

from rl_lightning import Trainer
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import quiet, small_dqn, small_ppo


class SignalAt(pl.Callback):
    """Sends a signal to this process once the clock has reached a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_env_step(self, trainer, module, transition):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


# Lightning takes the callback for a wish to resume
@pytest.mark.filterwarnings("ignore:.*called without a model:UserWarning", "ignore:.*no last checkpoint:UserWarning")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SIGTERMException), (signal.SIGINT, SystemExit)], ids=["SIGTERM", "SIGINT"]
)
@pytest.mark.parametrize("agent", [small_ppo, lambda: small_dqn(learning_starts=400)], ids=["learning", "warm-up"])
def test_a_signal_stops_training_at_the_next_step_and_saves(number, error, agent, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    callbacks = quiet(SignalAt(30, number), OnExceptionCheckpoint(tmp_path))
    trainer = Trainer(max_steps=500, **callbacks)
    with pytest.raises(error):
        trainer.fit(agent(), GymEnvModule("CartPole-v1", num_envs=2), ckpt_path=None)
    signal.signal(signal.SIGINT, handler)
    assert trainer.interrupted
    assert torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["global_step"] == 30


def test_lightnings_own_trainer_says_which_one_to_use():
    with pytest.raises(Exception, match=r"has envs, not dataloaders: use rl_lightning.Trainer"):
        pl.Trainer(max_steps=1, **{**quiet(), "callbacks": None}).fit(
            BoringModel(), datamodule=GymEnvModule("CartPole-v1")
        )
