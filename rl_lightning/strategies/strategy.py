"""How experience is gathered: the part of training that steps the envs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from rl_lightning.agents import Agent
from rl_lightning.envs import EnvPool
from rl_lightning.types import Transition


class Strategy(ABC):
    """Gathers experience. The loop it lives in::

        strategy.setup(agent, pool, seed=seed, device=device, dtype=dtype)
        try:
            while global_step < max_steps:
                transition = strategy.advance()
                ...                                     # remember it, learn from it
        finally:
            strategy.teardown()

    Attributes:
        num_steps: env steps taken by the last `advance`.
        episodes: what is known of the episodes, running and finished.
    """

    num_steps: int
    episodes: Episodes

    @abstractmethod
    def setup(self, agent: Agent, pool: EnvPool, *, seed: int | None, device: torch.device, dtype: torch.dtype) -> None:
        """Get ready to gather: reset every env, with seeds that follow from `seed` if it is given."""

    def begin_episodes(self) -> None:
        """Start new episodes where the last ones are over, if somebody wants to look; `advance` does it too."""

    @abstractmethod
    def advance(self) -> Transition:
        """Take the next step of every env and say what happened."""

    @abstractmethod
    def teardown(self) -> None:
        """Let go of the envs. Called always, also after an error; may be called twice."""


class Episodes:
    """Returns and lengths of training episodes.

    Attributes:
        num_finished: episodes ended so far.
        recent_returns, recent_lengths: those of the last 100 (or `num_envs`, if that is more) that ended.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_finished = 0
        window = max(100, num_envs)
        self.recent_returns: deque[float] = deque(maxlen=window)
        self.recent_lengths: deque[int] = deque(maxlen=window)
        self._return = np.zeros(num_envs, dtype=np.float64)
        self._length = np.zeros(num_envs, dtype=np.int64)

    def add(self, reward: NDArray[np.float32], done: NDArray[np.bool_], valid: NDArray[np.bool_] | None) -> None:
        """Count one step of every env. Args: each [B]; `valid` is None where all are."""
        self._return += reward
        self._length += 1 if valid is None else valid
        if np.count_nonzero(done):
            for i in np.flatnonzero(done):
                self.recent_returns.append(float(self._return[i]))
                self.recent_lengths.append(int(self._length[i]))
                self.num_finished += 1
            self._return[done] = 0.0
            self._length[done] = 0
