"""Every kind of env, space and autoreset mode trains through the whole Trainer."""

import functools

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from rl_lightning import A2C, ConfigurationError, RLModule, Trainer
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import EnvModule, EnvRecipe, GymEnvModule
from tests.trainer.helpers import quiet, small_dqn, small_ppo

OBSERVATIONS = {
    "box": Box(-1, 1, (3,), np.float32),
    "matrix": Box(-1, 1, (2, 3), np.float64),
    "discrete": Discrete(4, start=2),
    "multi_discrete": MultiDiscrete([2, 3]),
    "multi_binary": MultiBinary(3),
    "image": Box(0, 255, (3, 36, 36), np.uint8),
    "tuple": Tuple((Discrete(2), Box(0, 1, (2,), np.float32))),
    "dict": Dict(
        {"camera": Box(0, 255, (36, 36, 1), np.uint8), "joint": Dict({"angle": Box(-1, 1, (1,), np.float32)})}
    ),
}
ACTIONS = {
    "discrete": Discrete(3, start=-1),
    "multi_discrete": MultiDiscrete([2, 3]),
    "multi_binary": MultiBinary(2),
    "box": Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32)),
}


class AnySpaces(gym.Env):
    """Random observations; an episode has 5 steps; complains about actions outside its space."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.count = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        if not isinstance(self.action_space, Discrete):
            action = np.asarray(action, self.action_space.dtype)
        assert self.action_space.contains(action), action
        self.count += 1
        return self.observation_space.sample(), 1.0, self.count == 5, False, {}


def make_agent(name):
    return {"ppo": small_ppo, "a2c": lambda: A2C(num_steps=4, hidden_sizes=(16,)), "dqn": small_dqn}[name]()


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("agent", ["ppo", "a2c", "dqn"])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observation_spaces(name, agent, num_envs):
    recipe = EnvRecipe(lambda: AnySpaces(OBSERVATIONS[name], Discrete(2)), num_envs=num_envs)
    trainer = Trainer(max_steps=36, **quiet(Evaluation(num_episodes=2)))
    trainer.fit(make_agent(agent), recipe)
    assert trainer.num_updates > 0
    assert trainer.callback_metrics["eval/mean"] == 5


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("agent", ["ppo", "a2c", "dqn"])
@pytest.mark.parametrize("name", ACTIONS)
def test_action_spaces(name, agent, num_envs):
    recipe = EnvRecipe(lambda: AnySpaces(OBSERVATIONS["box"], ACTIONS[name]), num_envs=num_envs)
    trainer = Trainer(max_steps=36, **quiet(Evaluation(num_episodes=2)))
    if agent == "dqn" and name != "discrete":
        with pytest.raises(ConfigurationError, match="DQN needs a Discrete action space"):
            trainer.fit(make_agent(agent), recipe)
    else:
        trainer.fit(make_agent(agent), recipe)
        assert trainer.num_updates > 0


def wrapped(*args, **kwargs):
    return RecordEpisodeStatistics(SyncVectorEnv(*args, **kwargs))


class Steps(pl.Callback):
    """Adds up what the training envs gave."""

    def __init__(self):
        self.num_steps, self.ends, self.gaps = 0, 0, 0

    def on_env_step(self, trainer, module, transition):
        valid = np.ones(len(transition.reward), bool) if transition.valid is None else transition.valid
        self.num_steps += int(valid.sum())
        self.gaps += int((~valid).sum())
        self.ends += int((transition.terminated | transition.truncated)[valid].sum())
        # what followed an observation is never another episode's start: Counting counts up
        assert (transition.next_obs[valid] - transition.obs[valid] == 1).all()


class Counting(gym.Env):
    """The observation is the number of steps taken; an episode has as many as its env's number."""

    observation_space, action_space = Box(0, 100, (1,), np.float32), Discrete(2)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, self.count == self.length, False, {}


@pytest.mark.parametrize("agent", [small_ppo, small_dqn])
@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv, wrapped])
def test_a_users_vector_env_in_every_autoreset_mode(kind, mode, agent):
    envs = kind([lambda length=length: Counting(length) for length in (2, 3, 7)], autoreset_mode=mode)
    steps = Steps()
    trainer = Trainer(max_steps=200, **quiet(steps))
    trainer.fit(agent(), envs)
    envs.close()
    assert trainer.global_step == steps.num_steps
    assert 200 <= steps.num_steps < 203
    assert trainer.num_episodes == steps.ends
    assert (steps.gaps > 0) == (kind is wrapped and mode == AutoresetMode.NEXT_STEP)
    assert set(trainer.rl_strategy.episodes.recent_returns) == {2.0, 3.0, 7.0}


@pytest.mark.parametrize("vectorization", ["sync", "async", "vector_entry_point"])
def test_vectorizations(vectorization):
    module = GymEnvModule("CartPole-v1", num_envs=2, vectorization=vectorization)
    trainer = Trainer(max_steps=40, **quiet(Evaluation(num_episodes=2)))
    trainer.fit(small_ppo(), module)
    assert trainer.num_updates > 0
    assert trainer.callback_metrics["eval/mean"] > 0


@pytest.mark.parametrize(
    "env",
    [
        "CartPole-v1",
        lambda: gym.make("CartPole-v1"),
        lambda: gym.make_vec("CartPole-v1", 3, vectorization_mode="sync"),
        GymEnvModule("CartPole-v1", 2),
        EnvRecipe("CartPole-v1", num_envs=2),
    ],
)
def test_whatever_an_env_can_be_given_as(env):
    trainer = Trainer(max_steps=24, **quiet(Evaluation(num_episodes=2)))
    trainer.fit(small_ppo(), env)
    assert trainer.callback_metrics["eval/mean"] > 0


def test_an_env_module_of_the_users_own():
    made = []

    class Own(EnvModule):
        def train_envs(self):
            return EnvRecipe(self.factory("train"), num_envs=2)

        def val_envs(self):
            return self.factory("val")

        def test_envs(self):
            return self.factory("test")

        def factory(self, stage):
            def make():
                made.append(stage)
                return Counting(4)

            return make

    trainer = Trainer(max_steps=16, **quiet(Evaluation(num_episodes=1)))
    module = RLModule(small_ppo())
    trainer.fit(module, Own())
    assert sorted(set(made)) == ["train", "val"]
    assert trainer.test(module) == [
        {"test/mean": 4, "test/median": 4, "test/stdev": 0, "test/max": 4, "test/min": 4, "test/length_mean": 4}
    ]
    assert made[-1] == "test"


def test_evaluation_in_an_env_of_its_own():
    trainer = Trainer(max_steps=16, **quiet(Evaluation(num_episodes=1, env=lambda: Counting(9))))
    trainer.fit(small_ppo(), lambda: Counting(4))
    assert trainer.callback_metrics["eval/mean"] == 9


def test_max_episode_len():
    trainer = Trainer(max_steps=30, **quiet(Evaluation(num_episodes=1)))
    trainer.fit(RLModule(small_ppo()), EnvRecipe(lambda: Counting(50), num_envs=2, max_episode_len=6))
    assert set(trainer.rl_strategy.episodes.recent_lengths) == {6}
    assert trainer.callback_metrics["eval/length_mean"] == 6


@pytest.mark.parametrize("mode", AutoresetMode)
def test_max_episode_len_of_a_users_vector_env(mode):
    """Episodes of 2 and 50 steps under a limit of 6; evaluation makes vector envs of its own, under the same limit."""
    steps = Steps()
    trainer = Trainer(max_steps=60, **quiet(steps, Evaluation(num_episodes=4)))
    factory = functools.partial(SyncVectorEnv, [lambda: Counting(2), lambda: Counting(50)], autoreset_mode=mode)
    trainer.fit(RLModule(small_ppo()), EnvRecipe(factory, max_episode_len=6))
    assert set(trainer.rl_strategy.episodes.recent_lengths) == {2, 6}
    assert steps.gaps == 0 and steps.num_steps == trainer.global_step
    assert trainer.callback_metrics["eval/max"] == 6 and trainer.callback_metrics["eval/min"] == 2
