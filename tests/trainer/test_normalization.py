"""Statistics under the Trainer: each training transition counts once, and they are saved with the agent."""

import pytest
import torch

from rl_lightning import A2C, DDPG, PPO, SAC, TD3, TRPO, RLModule, Trainer, evaluate
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import quiet, small_ppo

FLAGS = {"normalize_obs": True, "normalize_reward": True}


REPLAY = {"learning_starts": 40, "batch_size": 16, "hidden_sizes": (16,), "normalize_obs": True}


def check_counted_once(agent, env, tmp_path):
    """320 steps of two envs, evaluated meanwhile; the statistics are saved, and evaluation does not change them."""
    trainer = Trainer(max_steps=320, steps_per_epoch=80, **quiet(Evaluation(num_episodes=3)))
    trainer.fit(RLModule(agent), GymEnvModule(env, num_envs=2))
    moments = agent.normalization.obs_moments[0]
    assert moments.count == 320
    assert (moments.variance > 0).all() and (moments.variance != 1).all()  # as at the start
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = RLModule.load_from_checkpoint(tmp_path / "last.ckpt").agent
    for name, value in agent.normalization.state_dict().items():
        assert torch.equal(loaded.normalization.state_dict()[name], value)
    returns = [evaluate(one, env, num_episodes=5, seed=3).returns for one in (agent, loaded)]
    assert returns[0] == returns[1]
    assert moments.count == 320


@pytest.mark.parametrize(
    "agent", [small_ppo(**FLAGS), A2C(num_steps=8, hidden_sizes=(16,), **FLAGS), TRPO(num_steps=8, **FLAGS)]
)
def test_each_training_transition_counts_once(agent, tmp_path):
    check_counted_once(agent, "CartPole-v1", tmp_path)
    assert agent.normalization.return_moments.count == 320


@pytest.mark.parametrize("make", [SAC, TD3, DDPG])
def test_each_observation_acted_on_counts_once_with_replay(make, tmp_path):
    check_counted_once(make(**REPLAY), "Pendulum-v1", tmp_path)


class Keeping(RLModule):
    def on_env_step(self, transition):
        self.__dict__.setdefault("seen", []).append(transition.obs.copy())


def test_replay_keeps_observations_as_they_came():
    agent = SAC(**REPLAY)
    memory = agent.make_memory(2)
    memory.batches = lambda: iter(())  # what it stores, not what it draws
    module = Keeping(agent, memory)
    Trainer(max_steps=100, **quiet()).fit(module, GymEnvModule("Pendulum-v1", num_envs=2))
    rows = torch.cat([torch.from_numpy(obs) for obs in module.seen])
    torch.testing.assert_close(agent.normalization.obs_moments[0].mean, rows.mean(dim=0))
    del memory.batches
    drawn = next(memory.batches())["obs"]
    assert all((rows == row).all(dim=1).any() for row in drawn)


class Counting(RLModule):
    def on_env_step(self, transition):
        number = len(transition.reward) if transition.valid is None else int(transition.valid.sum())
        self.__dict__.setdefault("numbers", []).append(number)


def test_resets_of_a_vector_env_do_not_count():
    agent = small_ppo(**FLAGS)
    module, env = Counting(agent), GymEnvModule("CartPole-v1", num_envs=2, vectorization="vector_entry_point")
    Trainer(max_steps=320, **quiet()).fit(module, env)
    in_whole_rollouts = module.numbers[: len(module.numbers) // 8 * 8]
    assert 1 in in_whole_rollouts
    assert agent.normalization.obs_moments[0].count == sum(in_whole_rollouts)


def test_ppo_remains_what_it_was_where_nothing_is_normalised():
    assert not any("normalization" in name for name in PPO().state_dict())
