"""8 CartPoles in processes of their own, stepped with the same actions: what it costs to talk to them."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np

UNIT = "vector steps"
AMOUNT = 4_000
NUM_ENVS = 8


def ours(steps: int, **kwargs: Any) -> float:
    """`GymEnvModule(vectorization="async")`: a process each."""
    from rl_lightning.envs import EnvRecipe

    pool = EnvRecipe("CartPole-v1", NUM_ENVS, "async", **kwargs).make()
    pool.reset(0)
    actions = _actions(steps)
    start = time.perf_counter()
    for action in actions:
        pool.begin_episodes()
        pool.step(action)
    seconds = time.perf_counter() - start
    pool.close()
    return seconds


def two_workers(steps: int) -> float:
    """The same, 4 envs a process."""
    return ours(steps, num_workers=2)


def gymnasium(steps: int) -> float:
    """Its `AsyncVectorEnv`, which resets an env in the step that ends its episode."""
    factories = [lambda: gym.make("CartPole-v1", disable_env_checker=True)] * NUM_ENVS
    mode = gym.vector.AutoresetMode.SAME_STEP
    envs = gym.vector.AsyncVectorEnv(factories, context="forkserver", copy=False, autoreset_mode=mode)
    envs.reset(seed=0)
    actions = _actions(steps)
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    seconds = time.perf_counter() - start
    envs.close()
    return seconds


def _actions(steps: int) -> Any:
    return np.random.default_rng(0).integers(0, 2, size=(steps, NUM_ENVS))


CONTENDERS = {"ours": ours, "ours, 2 processes": two_workers, "gymnasium": gymnasium}
