"""TRPO moves its policy without an optimizer, and the Trainer's features go with it all the same."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import TRPO, RLModule, Trainer
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import quiet


def fit(*, max_steps=64, **arguments):
    pl.seed_everything(0, verbose=False)
    trainer = Trainer(max_steps=max_steps, **quiet(), **arguments)
    agent = TRPO(num_steps=16, num_epochs=2, num_minibatches=2, hidden_sizes=(8,))
    trainer.fit(RLModule(agent), GymEnvModule("CartPole-v1", num_envs=2))
    return trainer, agent


def policy(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy_parameters()])


def value(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.network.value_layers.parameters()])


def test_a_rollout_is_one_learning_step_and_a_checkpoint_holds_the_policy(tmp_path):
    trainer, agent = fit()
    assert trainer.num_updates == 2
    assert not torch.equal(policy(agent), policy(fit(max_steps=32)[1]))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(policy(RLModule.load_from_checkpoint(tmp_path / "last.ckpt").agent), policy(agent))


def test_clipping_is_of_the_value_function_alone():
    _, plain = fit(max_steps=32)
    _, clipped = fit(max_steps=32, gradient_clip_val=1e-3)
    assert torch.equal(policy(plain), policy(clipped)) and not torch.equal(value(plain), value(clipped))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_policy_moves_with_full_digits_in_any_precision(precision):
    _, plain = fit(max_steps=32)
    _, other = fit(max_steps=32, precision=precision)
    torch.testing.assert_close(policy(other).float(), policy(plain), rtol=1e-2, atol=1e-3)
