"""An agent that does nothing on CartPole-v1: what the loop itself costs, beside a bare loop over the same env."""

from __future__ import annotations

import time

import gymnasium as gym

UNIT = "env steps"
AMOUNT = 200_000


def ours(steps: int) -> float:
    """`Trainer.fit` with nothing but the progress bar."""
    from rl_lightning import Trainer
    from tests.benchmarks.idle import Idle

    trainer = Trainer(max_steps=steps, logger=False, enable_checkpointing=False, enable_model_summary=False)
    start = time.perf_counter()
    trainer.fit(Idle(), "CartPole-v1")
    return time.perf_counter() - start


def bare(steps: int) -> float:
    """`while: env.step`."""
    env = gym.make("CartPole-v1", disable_env_checker=True)
    env.reset(seed=0)
    start = time.perf_counter()
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            env.reset()
    return time.perf_counter() - start


CONTENDERS = {"ours": ours, "tight loop": bare}
