"""An agent that does nothing on 8 CartPoles in batch: what the loop itself costs, beside gymnasium's own vector env."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np

UNIT = "vector steps"
AMOUNT = 50_000
NUM_ENVS = 8


def ours(steps: int) -> float:
    """`Trainer.fit` with nothing but the progress bar."""
    from rl_lightning import Trainer
    from rl_lightning.envs import GymEnvModule
    from tests.benchmarks.idle import Idle

    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=steps * NUM_ENVS, **quiet)
    start = time.perf_counter()
    trainer.fit(Idle(), GymEnvModule("CartPole-v1", num_envs=NUM_ENVS))
    return time.perf_counter() - start


def gymnasium(steps: int) -> float:
    """Its `SyncVectorEnv`, which resets an env in the step after its episode's end."""
    envs = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1", disable_env_checker=True)] * NUM_ENVS)
    action = np.zeros(NUM_ENVS, np.int64)
    envs.reset(seed=0)
    start = time.perf_counter()
    for _ in range(steps):
        envs.step(action)
    return time.perf_counter() - start


def bare(steps: int) -> float:
    """`while: env.step` for each env in turn."""
    envs = [gym.make("CartPole-v1", disable_env_checker=True) for _ in range(NUM_ENVS)]
    for env in envs:
        env.reset(seed=0)
    start = time.perf_counter()
    for _ in range(steps):
        for env in envs:
            _, _, terminated, truncated, _ = env.step(0)
            if terminated or truncated:
                env.reset()
    return time.perf_counter() - start


CONTENDERS = {"ours": ours, "tight loop": bare, "gymnasium": gymnasium}
