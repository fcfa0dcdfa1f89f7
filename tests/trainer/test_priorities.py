"""An agent's errors reach its prioritized memory, whatever is done to the batch on the way."""

import os
import shutil

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from rl_lightning import DQN, RLModule, Trainer
from rl_lightning.memory import ReplayMemory
from tests.trainer.helpers import quiet, small_dqn


class ErrorsOfActions(DQN):
    """Says that it was wrong where action 1 was taken, and right elsewhere; it learns to predict the reward."""

    def update(self, batch, step):
        value = self.network(batch["obs"]).gather(1, batch["action"].long().unsqueeze(1)).squeeze(1)
        step("q", (batch["weight"] * F.smooth_l1_loss(value, batch["reward"], reduction="none")).mean())
        batch["td_error"] = batch["action"].to(value.dtype)
        return {}


def share_of_ones(**arguments):
    """How often action 1 is in the last batch of a short run."""
    pl.seed_everything(0, verbose=False)
    agent = ErrorsOfActions(**small_dqn(epsilon=1.0, final_epsilon=1.0).init_args)
    memory = ReplayMemory(500, num_envs=1, batch_size=64, learning_starts=64, alpha=1.0)
    Trainer(max_steps=90, **quiet(), **arguments).fit(RLModule(agent, memory), "CartPole-v1")
    return memory.sample()["action"].float().mean().item()


def test_errors_reach_the_memory():
    assert share_of_ones() == 1.0


def test_errors_reach_the_memory_from_a_copy_of_its_batch():
    """Another precision has each batch converted."""
    assert share_of_ones(precision="64-true") == 1.0


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch compiles with a C++ compiler")
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's compiler imports its own old parts
def test_errors_reach_the_memory_from_a_compiled_learning_step():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert share_of_ones(compile=True) == 1.0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
