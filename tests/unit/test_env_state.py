"""The state of envs: plain data, put back in place, in an env that was made anew; and the proof of it."""

from __future__ import annotations

import io
import os
from collections import deque
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces, wrappers

from rl_lightning.envs import EnvRecipe, as_recipe, why_not_exact
from rl_lightning.envs.state import capture, restore
from rl_lightning.randomness import random_state
from rl_lightning.resume_check import first_difference
from rl_lightning.types import ConfigurationError


def through_a_file(state):
    """As a checkpoint keeps it, and reads it without running code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def steps(env, actions):
    taken = []
    for action in actions:
        *step, _ = env.step(action)
        taken.append(step)
        if step[2] or step[3]:
            taken.append([env.reset()[0]])
    return taken


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def wrapped():
    env = wrappers.NormalizeReward(wrappers.NormalizeObservation(gym.make("Pendulum-v1", max_episode_steps=30)))
    return wrappers.FrameStackObservation(wrappers.RecordEpisodeStatistics(env), 3)


def pong():
    pytest.importorskip("cv2")
    pytest.importorskip("ale_py")
    env = wrappers.AtariPreprocessing(gym.make("ALE/Pong-v5", frameskip=1))
    return wrappers.FrameStackObservation(env, 4)


def mujoco(name):
    pytest.importorskip("mujoco")
    return gym.make(name)


ENVS = {
    **{name: partial(gym.make, name) for name in ("CartPole-v1", "MountainCar-v0", "Acrobot-v1", "FrozenLake-v1")},
    **{name: partial(mujoco, name) for name in ("HalfCheetah-v5", "Hopper-v5", "Ant-v5")},
    "wrapped": wrapped,
    "pong": pong,
}


@pytest.mark.parametrize("name", ENVS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_env_goes_on_where_the_first_one_was_saved(name):
    first, second = ENVS[name](), ENVS[name]()
    first.reset(seed=3)
    space = ENVS[name]().action_space
    space.seed(0)
    actions = [space.sample() for _ in range(150)]
    steps(first, actions[:37])
    saved = through_a_file(capture(first))
    expected = steps(first, actions[37:])
    second.reset(seed=8)
    restore(second, saved)
    assert same(steps(second, actions[37:]), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_action_that_the_atari_emulator_is_about_to_repeat_is_saved():
    """The emulator does not save it. In each of these places it matters about once in four times."""
    first, second = pong(), pong()
    first.reset(seed=3), second.reset(seed=8)
    rng = np.random.default_rng(0)
    for _ in range(12):
        saved = through_a_file(capture(first))
        steps(second, rng.integers(6, size=3))  # its own last action is another one
        restore(second, saved)
        actions = rng.integers(6, size=5)
        assert same(steps(first, actions), steps(second, actions))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_atari_env_goes_on_as_if_it_had_not_been_saved():
    saved, untouched = pong(), pong()
    saved.reset(seed=3), untouched.reset(seed=3)
    for action in np.random.default_rng(0).integers(6, size=(40, 1)).tolist():
        capture(saved)
        assert same(steps(saved, action), steps(untouched, action))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_atari_env_that_repeats_continuous_actions_is_found_out():
    pytest.importorskip("ale_py")
    kwargs = {"continuous": True}
    assert "repeat_action_probability=0.0" in why_not_exact(EnvRecipe("ALE/Pong-v5", env_kwargs=kwargs))
    assert why_not_exact(EnvRecipe("ALE/Pong-v5", env_kwargs={**kwargs, "repeat_action_probability": 0.0})) is None


class Everything(gym.Env):
    """Holds one of each kind."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def __init__(self):
        self.numbers = [1, 2.5, np.float32(3.5), np.int64(4), True, None, "five", b"six", b""]
        self.array, self.empty = np.arange(6, dtype=np.uint16).reshape(2, 3), np.zeros((0, 4))
        self.twice = self.array
        self.queue, self.group = deque([1, 2], maxlen=3), {3, 1}
        self.table = {"a": [1], 2: {"b": np.ones(2)}}
        self.rng, self.old_rng = np.random.default_rng(0), np.random.RandomState(0)
        self.itself = self
        self.function = len
        self.tensor = torch.zeros(2)


def test_every_kind_of_value_comes_back_as_it_was():
    one = Everything()
    one.numbers[0], one.array[0, 0], one.table["c"], one.tensor[0] = 9, 77, "new", 5.0
    one.queue.extend([3, 4])
    one.group.add(8)
    one.rng.random(), one.old_rng.rand()
    other = Everything()
    restore(other, through_a_file(capture(one)))
    assert first_difference(through_a_file(capture(one)), through_a_file(capture(other))) is None
    assert [type(number) for number in other.numbers] == [type(number) for number in one.numbers]
    assert other.array.dtype == np.uint16 and other.twice is other.array
    assert other.queue == deque([2, 3, 4]) and other.queue.maxlen == 3
    assert other.itself is other and other.function is len
    assert other.rng.random() == one.rng.random()


def test_an_env_may_save_itself():
    class Own(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
        hidden = 1

        def state_dict(self):
            return {"hidden": self.hidden}

        def load_state_dict(self, state):
            self.hidden = state["hidden"] + 100

    one, other = Own(), Own()
    one.hidden = 5
    restore(other, through_a_file(capture(one)))
    assert other.hidden == 105


def test_an_env_that_was_made_otherwise_is_refused():
    saved = capture(wrappers.TimeLimit(gym.make("CartPole-v1"), 10))
    with pytest.raises(ConfigurationError, match=r"state at env is of .*TimeLimit, and this env has .*ClipReward"):
        restore(wrappers.ClipReward(gym.make("CartPole-v1"), -1, 1), saved)
    with pytest.raises(ConfigurationError, match=r"^the env's state at env\.env is of .*TimeLimit, and .*CartPoleEnv"):
        restore(wrappers.TimeLimit(gym.make("CartPole-v1", disable_env_checker=True).env.env, 10), saved)


@pytest.mark.parametrize(
    "state",
    [
        ("system", "touch trace"),
        ("__class__", []),
        ("array", "|O", [1], torch.zeros(8, dtype=torch.uint8)),
        ("array", "<f8", [10**9], torch.zeros(8, dtype=torch.uint8)),
        ("object", "gymnasium.wrappers.common.OrderEnforcing", [["__class__", 1]], {}),
        ("generator", {"bit_generator": "os.system"}),
    ],
)
def test_a_hostile_state_is_refused_and_runs_nothing(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError):
        restore(
            wrappers.OrderEnforcing(gym.make("CartPole-v1")),
            ("object", "gymnasium.wrappers.common.OrderEnforcing", [["env", state]], {}),
        )
    assert os.listdir() == []


@pytest.mark.parametrize("kwargs", [{}, {"num_envs": 3}, {"num_envs": 2, "vectorization": "vector_entry_point"}])
def test_what_is_exact_leaves_no_trace(kwargs):
    before = random_state()
    assert why_not_exact(EnvRecipe("CartPole-v1", **kwargs)) is None
    assert first_difference(before, random_state()) is None


def test_a_live_env_is_not_stepped_for_the_proof():
    env = gym.make("CartPole-v1")
    env.reset(seed=0)
    before = through_a_file(capture(env))
    assert why_not_exact(as_recipe(env)) is None
    assert first_difference(before, through_a_file(capture(env))) is None


class Counts:
    """Keeps its number where nobody sees it."""

    def __init__(self):
        count = 0

        def up():
            nonlocal count
            count += 1
            return count

        self.up = up


class Hides(gym.Wrapper):
    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.counts = Counts()

    def step(self, action):
        obs, _, *rest = self.env.step(action)
        return (obs, float(self.counts.up()), *rest)


def test_an_env_with_a_state_that_nobody_sees_is_found_out():
    assert "gives another reward 1 steps after it was put back" in why_not_exact(EnvRecipe(Hides))


def test_envs_of_box2d_and_in_processes_of_gymnasium_are_found_out():
    pytest.importorskip("Box2D")
    assert "LunarLander" in why_not_exact(EnvRecipe("LunarLander-v3"))
    env = gym.make_vec("CartPole-v1", num_envs=1, vectorization_mode="async")
    assert "processes that cannot be asked" in why_not_exact(as_recipe(env))
    env.close()
