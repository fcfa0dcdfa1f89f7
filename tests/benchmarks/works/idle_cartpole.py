"""An agent that does nothing on CartPole-v1: what the loop itself costs, beside a bare loop over the same env."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl_lightning import Agent, Trainer

UNIT = "env steps"
AMOUNT = 50_000
NOTHING = np.zeros(64, np.int64)


class Idle(Agent):
    """Pushes left for ever, and never learns."""

    def build(self, observation_space: Any, action_space: Any) -> None:
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def act(self, obs: Any, *, explore: bool) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(len(obs), dtype=torch.long), {}

    def act_on_host(self, obs: Any, *, explore: bool) -> tuple[Any, dict[str, Any]]:
        return NOTHING[: len(obs)], {}

    def update(self, batch: Any, step: Any) -> dict[str, Tensor]:
        raise AssertionError

    def configure_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"nothing": torch.optim.SGD([self.nothing], lr=0.1)}

    def make_memory(self, num_envs: int) -> Any:
        return Forgets()


class Forgets:
    """A memory that remembers nothing."""

    rng: Any = None

    def add(self, transition: Any) -> None: ...

    def batches(self) -> Iterator[Any]:
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def ours(steps: int) -> float:
    """`Trainer.fit` with nothing but the progress bar."""
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


CONTENDERS = {"ours": ours, "bare loop": bare}
