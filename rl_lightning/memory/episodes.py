"""The memory of agents that learn from whole episodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl_lightning.memory import storage
from rl_lightning.types import Batch, ConfigurationError, Transition, tree_map

FIRST_ROWS = 1024
"""Steps of each env that there is room for at first; it doubles as often as is needed."""
MAX_ROWS = 10_000_000
"""Steps of each env after which episodes that do not end are an error."""


class EpisodeMemory:
    """The next `num_episodes` episodes of B envs, then one batch of all of them::

        collect until the first num_episodes that begin are over -> [T, 1, ...] -> collect ...

    Those that begin first count, not those that end first, so that short episodes have no advantage. Whatever else the
    envs do meanwhile is left out: episodes that began later, and, after a batch, those that are still running, for the
    policy that they began with is gone. With one env, nothing is left out.

    Args:
        num_episodes: in a batch, over all envs.
        num_envs: B, envs that act together.
    Raises:
        ConfigurationError: a number below 1.
    """

    def __init__(self, num_episodes: int, num_envs: int) -> None:
        storage.check_at_least("EpisodeMemory", 1, num_episodes=num_episodes, num_envs=num_envs)
        self.num_episodes = num_episodes
        self.num_envs = num_envs
        self.rng = np.random.default_rng()  # which nothing is drawn from
        self._rows: storage.Rows | None = None
        self._columns: dict[str, Any] = {}
        self._valid = np.empty((0, num_envs), dtype=np.bool_)
        self._num_filled = 0
        self._is_over = np.ones(num_envs, dtype=np.bool_)  # of each env, what it did last: the next step begins anew
        self._running = np.full(num_envs, -1)  # the number of the episode that each env is in; -1: it does not count
        self._episodes: list[list[int]] = []  # env, first row, and row after the last; 0 while it runs

    def __len__(self) -> int:
        """Transitions of the episodes that count, so far."""
        return sum(len(self._rows_of(episode)) for episode in self._episodes)

    def add(self, transition: Transition) -> None:
        """Store one step of B envs.

        Raises:
            ShapeError: the transition is not of `num_envs` envs.
            ConfigurationError: there is no end to the episodes.
        """
        storage.check_num_envs(transition, self.num_envs)
        row = self._num_filled
        storage.write(self._room_for(row, transition), row, storage.fields_of(transition))
        self._num_filled += 1
        self._valid[row] = True if transition.valid is None else transition.valid
        valid = self._valid[row]
        for env in np.flatnonzero(self._is_over & valid):
            self._running[env] = -1
            if len(self._episodes) < self.num_episodes:
                self._running[env] = len(self._episodes)
                self._episodes.append([int(env), row, 0])
        done = transition.terminated | transition.truncated
        self._is_over = np.where(valid, done, self._is_over)
        self._end(done & valid)

    def _end(self, ended: NDArray[np.bool_]) -> None:
        for env in np.flatnonzero(ended & (self._running >= 0)):
            self._episodes[self._running[env]][2] = self._num_filled
            self._running[env] = -1

    def _room_for(self, row: int, transition: Transition) -> dict[str, Any]:
        if self._rows is None or row == len(self._rows):
            if row >= MAX_ROWS:
                raise ConfigurationError(
                    f"EpisodeMemory: {self.num_episodes} episodes are not over after {row:_} steps of each env. Set "
                    "max_episode_len for the envs, or use an agent that learns from rollouts, such as A2C."
                )
            old_rows, old_valid = self._rows, self._valid
            rows = storage.allocate((2 * row or FIRST_ROWS, self.num_envs), transition)
            self._adopt(rows)
            if old_rows is not None:
                rows[:row], self._valid[:row] = old_rows, old_valid
        return self._columns

    def _adopt(self, rows: storage.Rows) -> None:
        self._rows, self._columns = rows, storage.columns(rows)
        self._valid = np.empty(rows.shape, dtype=np.bool_)

    def _rows_of(self, episode: list[int]) -> storage.Rows:
        assert self._rows is not None
        env, start, stop = episode
        rows = slice(start, stop or self._num_filled)
        own: storage.Rows = self._rows[rows, env][self._valid[rows, env]]
        return own

    def batches(self) -> Iterator[Batch]:
        """All episodes, one after another in the order that they began in; none before they are over."""
        if len(self._episodes) < self.num_episodes or not all(stop for _, _, stop in self._episodes):
            return
        rows = np.concatenate([self._rows_of(episode) for episode in self._episodes])
        batch = tree_map(lambda field: field.unsqueeze(1), storage.as_tensors(rows))
        self._episodes, self._num_filled = [], 0
        self._running[:] = -1
        yield batch

    def cut_episodes(self, where: NDArray[np.bool_] | None = None) -> None:
        """Mark the episodes that are going on as truncated, where somebody else has reset the envs, or they were lost.

        What comes next then does not follow from what came before.

        Args:
            where: [B], in which envs. None: in all.
        """
        where = np.ones(self.num_envs, np.bool_) if where is None else where
        going_on = (self._running >= 0) & where
        for env in np.flatnonzero(going_on):
            last = np.flatnonzero(self._valid[: self._num_filled, env])[-1]
            self._columns["truncated"][last, env] = True
        self._end(going_on)
        self._is_over |= where

    def state_dict(self) -> dict[str, Any]:
        """The episodes so far."""
        return {
            "rows": storage.save(None if self._rows is None else self._rows[: self._num_filled]),
            "valid": torch.from_numpy(self._valid[: self._num_filled].copy()),
            "is_over": torch.from_numpy(self._is_over.copy()),
            "running": torch.from_numpy(self._running.copy()),
            "episodes": [list(episode) for episode in self._episodes],
            "rng": storage.rng_state(self.rng),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            ConfigurationError: the episodes saved are of other envs, or more than `num_episodes`.
        """
        num_envs, num_episodes = len(state["running"]), len(state["episodes"])
        if num_envs != self.num_envs or num_episodes > self.num_episodes:
            raise ConfigurationError(
                f"the memory saved has {num_episodes} episodes of {num_envs} envs, this one holds {self.num_episodes} "
                f"of {self.num_envs}. Continue with the same num_envs and num_episodes."
            )
        self._rows, self._columns, self._num_filled = None, {}, len(state["valid"])
        if state["rows"] is not None:
            num_rows = max(FIRST_ROWS, self._num_filled)
            self._adopt(storage.restore(state["rows"], (num_rows, self.num_envs)))
            self._valid[: self._num_filled] = state["valid"].numpy()
        self._is_over = state["is_over"].numpy().copy()
        self._running = state["running"].numpy().copy()
        self._episodes = [list(episode) for episode in state["episodes"]]
        self.rng.bit_generator.state = state["rng"]
