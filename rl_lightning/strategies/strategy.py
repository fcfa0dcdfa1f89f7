"""How experience is gathered: the part of training that steps the envs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl_lightning.agents import Agent
from rl_lightning.envs import EnvPool
from rl_lightning.envs.pool import Mask
from rl_lightning.memory import Memory
from rl_lightning.types import Transition


class Strategy(ABC):
    """Gathers experience. The loop it lives in::

        strategy.setup(agent, pool, seed=seed, device=device, dtype=dtype)
        try:
            while global_step < max_steps:
                transition = strategy.advance()
                ...                                     # remember it, learn from it
            strategy.finish()
        finally:
            strategy.teardown()

    Attributes:
        num_steps: env steps taken by the last `advance`.
        episodes: what is known of the episodes, running and finished.
    """

    num_steps: int
    episodes: Episodes

    @property
    def learns_elsewhere(self) -> bool:
        """Whether other processes learn, and `memory.batches()` are their reports."""
        return False

    def make_memory(self, agent: Agent, memory: Memory | None, num_envs: int) -> Memory:
        """What to learn from: the user's `memory`, or the agent's own for the envs that are stepped together."""
        return agent.make_memory(num_envs) if memory is None else memory

    @abstractmethod
    def setup(self, agent: Agent, pool: EnvPool, *, seed: int | None, device: torch.device, dtype: torch.dtype) -> None:
        """Get ready to gather: reset every env, with seeds that follow from `seed` if it is given."""

    def begin_episodes(self) -> None:
        """Start new episodes where the last ones are over, if somebody wants to look; `advance` does it too."""

    @abstractmethod
    def advance(self) -> Transition | None:
        """Take the next step of every env and say what happened; None where others keep that to themselves."""

    def finish(self) -> int:
        """Training ends here: let others, where there are any, end their step. Returns env steps not yet counted."""
        return 0

    def synchronize(self) -> None:
        """Somebody wants to look at the agent and its optimizers: where others learn, take over what they have."""

    def check(self) -> None:
        """Called now and then while something else goes on, such as an evaluation.

        Raises:
            WorkerError: a process that gathers has failed.
        """

    def metrics(self) -> dict[str, float]:
        """What to log of gathering as `train/<name>`, since the last time."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The envs, and the episodes that run in them, between two steps: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> Mask | None:
        """Go on where `state_dict` was called, after `setup`.

        Returns:
            [B] which envs could not be put back, so that their episodes begin anew; None where none.
        """
        return None

    @abstractmethod
    def teardown(self) -> None:
        """Let go of the envs. Called always, also after an error; may be called twice."""


class Episodes:
    """Returns and lengths of training episodes.

    Attributes:
        num_finished: episodes ended so far.
        recent_returns, recent_lengths: those of the last 100 (or `num_envs`, if that is more) that ended.
        add: count one step of every env: `add(reward, done, valid)`, each [B]; `valid` is None where all are.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_finished = 0
        window = max(100, num_envs)
        self.recent_returns: deque[float] = deque(maxlen=window)
        self.recent_lengths: deque[int] = deque(maxlen=window)
        self._return = np.zeros(num_envs, dtype=np.float64)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._return_of_one, self._length_of_one = 0.0, 0
        # for one env, Python's numbers take a sixth of the time of arrays: 0.5 microseconds instead of 3.2
        self.add: Callable[[NDArray[np.float32], Mask, Mask | None], None]
        self.add = self._add_one if num_envs == 1 else self._add_several

    def _add_one(self, reward: NDArray[np.float32], done: Mask, valid: Mask | None) -> None:
        self._return_of_one += reward.item()
        self._length_of_one += 1 if valid is None else valid.item()
        if done.item():
            self._finish(self._return_of_one, self._length_of_one)
            self._return_of_one, self._length_of_one = 0.0, 0

    def _add_several(self, reward: NDArray[np.float32], done: Mask, valid: Mask | None) -> None:
        self._return += reward
        self._length += 1 if valid is None else valid
        if np.count_nonzero(done):
            for i in np.flatnonzero(done):
                self._finish(float(self._return[i]), int(self._length[i]))
            self._return[done] = 0.0
            self._length[done] = 0

    def include(self, returns: Sequence[float], lengths: Sequence[int], num_finished: int) -> None:
        """Count episodes that ended elsewhere: so many, of which those are the last."""
        self.recent_returns.extend(returns)
        self.recent_lengths.extend(lengths)
        self.num_finished += num_finished

    def state_dict(self) -> dict[str, Any]:
        """All of them, as tensors and plain data."""
        return {
            "num_finished": self.num_finished,
            "recent": [list(self.recent_returns), list(self.recent_lengths)],
            "running": [torch.from_numpy(self._return.copy()), torch.from_numpy(self._length.copy())],
            "running_of_one": [self._return_of_one, self._length_of_one],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.num_finished = state["num_finished"]
        returns, lengths = state["recent"]
        self.recent_returns.clear()
        self.recent_lengths.clear()
        self.include(returns, lengths, 0)
        self._return[:], self._length[:] = (tensor.numpy() for tensor in state["running"])
        self._return_of_one, self._length_of_one = state["running_of_one"]

    def forget(self, where: Mask) -> None:
        """The episodes that run `where` [B] begin anew."""
        self._return[where], self._length[where] = 0.0, 0
        if where.all():
            self._return_of_one, self._length_of_one = 0.0, 0

    def _finish(self, return_: float, length: int) -> None:
        self.recent_returns.append(return_)
        self.recent_lengths.append(length)
        self.num_finished += 1
