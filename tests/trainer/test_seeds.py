"""The same seed gives the same run, bit for bit, whatever else watches it."""

import os

import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import A2C, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Checkpoint, Evaluation
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import quiet, small_dqn, small_ppo

AGENTS = {"ppo": small_ppo, "dqn": small_dqn, "a2c": lambda: A2C(num_steps=4, hidden_sizes=(16,))}


def train(make_agent, *, seed=0, num_envs=1, env="CartPole-v1", **arguments):
    """The weights at the end of a short run."""
    pl.seed_everything(seed, verbose=False)
    module = RLModule(make_agent())
    Trainer(**{"max_steps": 300, **quiet(), **arguments}).fit(module, GymEnvModule(env, num_envs=num_envs))
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("name", AGENTS)
def test_same_seed_same_weights(name, num_envs):
    first, second = (train(AGENTS[name], num_envs=num_envs) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, train(AGENTS[name], num_envs=num_envs, seed=1))


def test_same_seed_same_weights_continuous():
    first, second = (train(small_ppo, env="Pendulum-v1", num_envs=2) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", AGENTS)
def test_evaluation_logging_and_checkpoints_leave_the_weights_alone(name, tmp_path):
    watched = {
        "callbacks": [
            Evaluation(num_episodes=3, every_n_steps=50, eval_at_start=True),
            BestAgent(),
            Checkpoint(every_n_train_steps=40, save_last=True),
        ],
        "logger": pl.loggers.TensorBoardLogger(tmp_path),
        "enable_checkpointing": True,
        "enable_progress_bar": True,
        "enable_model_summary": True,
        "log_every_n_steps": 10,
    }
    assert torch.equal(train(AGENTS[name], num_envs=2), train(AGENTS[name], num_envs=2, **watched))
    assert list(tmp_path.rglob("best.ckpt"))


def test_sync_and_batch_with_one_env_are_the_same_run():
    assert torch.equal(train(small_ppo, strategy="sync"), train(small_ppo, strategy="batch"))


def test_streams_of_neighbouring_seeds_and_roles_share_nothing():
    trainer = Trainer(max_steps=1, **quiet())
    seeds = set()
    for seed in range(20):
        trainer.seed = seed
        for role in ("train", "val", "test", "predict", "memory"):
            seeds |= {trainer.draw_seed(role, step) for step in range(20)}
    assert len(seeds) == 20 * 5 * 20


def test_without_a_seed_runs_differ():
    os.environ.pop("PL_GLOBAL_SEED", None)
    trainer = Trainer(max_steps=1, **quiet())
    seeds = set()
    for _ in range(3):
        trainer.fit(small_ppo(), "CartPole-v1")
        seeds.add(trainer.seed)
    assert len(seeds) == 3


def test_each_evaluation_has_starts_of_its_own_unless_seeded():
    def evaluation_seeds(**arguments):
        seeds = []

        class Look(pl.Callback):
            def on_validation_end(self, trainer, module):
                seeds.append(trainer.last_evaluation.seed)

        train(small_ppo, callbacks=[Evaluation(num_episodes=1, every_n_steps=100, **arguments), Look()])
        return seeds

    fresh = evaluation_seeds()
    assert len(fresh) == len(set(fresh)) == 3
    assert evaluation_seeds() == fresh
    assert evaluation_seeds(seed=5) == [5, 5, 5]


def test_seeds_fit_into_the_integers_that_some_envs_take():
    """ALE's vector env takes signed 32-bit seeds, and env i gets `seed + i`."""
    trainer = Trainer(max_steps=1, **quiet())
    for seed in range(200):
        trainer.seed = seed
        assert all(0 <= trainer.draw_seed(role, seed) < 2**30 for role in ("train", "val", "test"))
