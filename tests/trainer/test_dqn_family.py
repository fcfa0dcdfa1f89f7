"""DQN's flags under the Trainer: any precision, checkpoints, and evaluation without noise."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import RLModule, Trainer, evaluate
from tests.trainer.helpers import quiet, small_dqn

RAINBOW = {"double": True, "dueling": True, "num_steps": 3, "prioritized": True, "noisy": True}
FLAGS = {
    "prioritized": {"prioritized": True},
    "quantile": {"distribution": "quantile", "num_atoms": 4},
    "implicit": {"distribution": "implicit", "num_atoms": 4, "prioritized": True},
    "rainbow": {**RAINBOW, "distribution": "categorical", "value_range": (0.0, 20.0)},
}


def fit(name, max_steps=60, **arguments):
    pl.seed_everything(0, verbose=False)
    agent = small_dqn(**FLAGS[name])
    trainer = Trainer(max_steps=max_steps, **quiet(), **arguments)
    trainer.fit(RLModule(agent), "CartPole-v1")
    return trainer, agent


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", FLAGS)
def test_any_precision(name, precision):
    trainer, agent = fit(name, precision=precision)
    assert trainer.num_updates == 40
    assert all(parameter.isfinite().all() for parameter in agent.parameters())


@pytest.mark.parametrize("name", FLAGS)
def test_a_checkpoint_acts_the_same_and_evaluation_has_no_noise(name, tmp_path):
    trainer, agent = fit(name)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = RLModule.load_from_checkpoint(tmp_path / "last.ckpt").agent
    assert loaded.init_args == agent.init_args
    obs = torch.randn(50, 4)
    assert torch.equal(loaded.act(obs, explore=False)[0], agent.act(obs, explore=False)[0])
    returns = [evaluate(one, "CartPole-v1", num_episodes=3, seed=1).returns for one in (agent, loaded, agent)]
    assert returns[0] == returns[1] == returns[2]


def test_the_same_seed_gives_the_same_weights():
    first, second, third = (fit("rainbow", max_steps)[1].state_dict() for max_steps in (60, 60, 61))
    for name, value in first.items():
        if torch.is_tensor(value):
            assert torch.equal(value, second[name]), name
    assert not torch.equal(first["network.value.0.weight"], third["network.value.0.weight"])
