"""Agents from elsewhere, trained by the Trainer."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

from rl_lightning import ConfigurationError, RLModule, Trainer
from rl_lightning.callbacks import LinearInterpolation, StepHooks
from rl_lightning.envs import EnvRecipe, GymEnvModule
from rl_lightning.memory import ReplayMemory
from tests.experiments.scripted import Env, Steps, Told, Without, named
from tests.trainer.helpers import quiet, small_ppo


@pytest.fixture
def log():
    return []


class Boxed(Env):
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def step(self, action):
        self.log.append(("action", action.tolist()))
        return super().step(0)


class Far(Told):
    def act(self, obs):
        super().act(obs)
        return np.array([5.0, -0.5])


def test_actions_are_moved_into_the_bounds(log):
    Trainer(max_steps=1, **quiet()).fit(Far(log), Boxed(log))
    assert named(log, "action") == [("action", [1.0, -0.5])]


class Shifted(Env):
    action_space = gym.spaces.Discrete(10, start=3)


def test_integers_are_those_that_the_env_takes(log):
    class Four(Told):
        def act(self, obs):
            return 4

    Trainer(max_steps=1, **quiet()).fit(Four(log), Shifted(log))
    assert named(log, "step") == [("step", 4)]


class Nested(Env):
    observation_space = gym.spaces.Dict(
        {"a": Env.observation_space, "b": gym.spaces.Tuple([gym.spaces.Discrete(9), Env.observation_space])}
    )

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return {"a": obs, "b": (3, obs + 1)}, info

    def step(self, action):
        obs, *rest = super().step(action)
        return {"a": obs, "b": (4, obs + 1)}, *rest


@pytest.mark.parametrize("num_envs", [1, 2])
def test_observations_are_nested_as_the_env_gives_them(num_envs, log):
    class Looks(Told):
        def act(self, obs):
            log.append(("obs", obs["a"].tolist(), int(obs["b"][0]), obs["b"][1].tolist()))
            return 0

        def batch_act(self, batch_obs):
            return [self.act(obs) for obs in batch_obs]

        def observe(self, *args): ...

        batch_observe = observe

    Trainer(max_steps=2 * num_envs, **quiet()).fit(Looks(log), EnvRecipe(partial(Nested, log), num_envs))
    assert named(log, "obs") == [("obs", [0, t], 3 + t, [1, 1 + t]) for t in (0, 1) for _ in range(num_envs)]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gradient_clip_val": 1.0}, "gradient_clip_val=1.0.*does not reach Told"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=2"),
        ({"precision": "bf16-mixed"}, "precision"),
    ],
)
def test_what_the_trainer_cannot_do_for_a_foreign_agent(arguments, match, log):
    with pytest.raises(ConfigurationError, match=match):
        Trainer(max_steps=9, **arguments, **quiet()).fit(Told(log), Env(log))
    assert not log


@pytest.mark.parametrize("target", ["learning_rate", "epsilon"])
def test_our_schedules_do_not_reach_a_foreign_agent(target, log):
    schedule = LinearInterpolation(target, start_value=1.0, stop_value=0.0)
    with pytest.raises(ConfigurationError, match="does not reach Told.*StepHooks"):
        Trainer(max_steps=9, **quiet(schedule)).fit(Told(log), Env(log))
    assert not log


def test_a_memory_cannot_teach_a_foreign_agent(log):
    memory = ReplayMemory(9, num_envs=1, batch_size=2, learning_starts=2)
    with pytest.raises(ConfigurationError, match=r"RLModule\(memory=...\) cannot teach Told"):
        Trainer(max_steps=9, **quiet()).fit(RLModule(Told(log), memory), Env(log))
    assert not log


def test_acting_by_hand_is_acting_at_its_best(log):
    module = RLModule(Told(log))
    module.build(Env.observation_space, Env.action_space)
    assert module(torch.zeros(2, 2)).tolist() == [1, 2]
    assert named(log, "eval act")


def test_a_foreign_agent_for_one_env_in_several(log):
    with pytest.raises(ConfigurationError, match="no batch_act and batch_observe"):
        Trainer(max_steps=9, **quiet()).fit(Without(log, "batch_act"), SyncVectorEnv([partial(Env, log)] * 2))


def test_vector_envs_that_spend_steps_on_resets_are_refused(log):
    envs = gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    with pytest.raises(ConfigurationError, match=r"spends steps on resets.*vectorization_mode='sync'"):
        Trainer(max_steps=9, **quiet()).fit(Told(log), envs)


def test_a_checkpoint_of_a_foreign_agent_holds_its_files(log, tmp_path):
    trainer = Trainer(max_steps=6, **quiet())
    trainer.fit(Told(log), Env(log))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = Told(log)
    again = Trainer(max_steps=8, **quiet())
    again.fit(resumed, Env(log), ckpt_path=tmp_path / "a.ckpt")
    assert (resumed.num_acts, resumed.t, again.global_step) == (8, 6, 8)
    with pytest.raises(ConfigurationError, match=r"ForeignAgent's agent.*Pass agent=ForeignAgent"):
        RLModule.load_from_checkpoint(tmp_path / "a.ckpt")


def test_a_checkpoint_that_names_files_elsewhere_is_refused(log, tmp_path):
    agent = RLModule(Told(log)).agent
    for name in ("../outside", str(tmp_path / "outside")):
        with pytest.raises(ConfigurationError, match="outside its own directory"):
            agent.set_extra_state({name: torch.zeros(3, dtype=torch.uint8)})
    assert not (tmp_path / "outside").exists()


def test_any_step_hook_among_a_trainers_callbacks(log):
    trainer = Trainer(max_steps=8, **quiet(StepHooks([Steps(log)])))
    trainer.fit(small_ppo(), GymEnvModule("CartPole-v1", num_envs=2))
    assert log == [("hook", t) for t in range(1, 9)]


def test_the_metrics_of_a_foreign_agent_are_logged(log):
    trainer = Trainer(max_steps=6, log_every_n_steps=3, **quiet())
    trainer.fit(Told(log), Env(log))
    assert trainer.callback_metrics["train/num_acts"] == 6
    assert trainer.callback_metrics["train/return"] == 3
