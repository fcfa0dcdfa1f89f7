"""The memory of off-policy agents: keep the last transitions, learn from random ones at a fixed pace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_lightning.memory import storage
from rl_lightning.memory.pace import Pace
from rl_lightning.memory.priorities import Priorities
from rl_lightning.memory.room import Room
from rl_lightning.memory.row_files import RowReader, RowWriter
from rl_lightning.memory.table import Table
from rl_lightning.types import Batch, ConfigurationError, Transition

Cells = NDArray[np.int64]
"""Positions in the ring, row * num_envs + env."""


class ReplayMemory:
    """A ring of the last transitions, sampled with replacement: uniformly, or by priority.

    The pace: once `learning_starts` env steps are stored, every `update_every` env steps a learning phase of
    `update_every * updates_per_step` batches is due. Fractions are carried over, and steps that several envs take at
    once all count, so that in the long run there are exactly `updates_per_step` batches an env step.

    The batch has the fields obs, action, reward, next_obs, terminated, truncated, the agent's extras, and, where
    `num_steps` is not 1, `n` [N] int64. Then reward is the sum over n steps, discounted to the first, and the three
    others are those of the last: the bootstrap factor is discount ** n. n falls short of `num_steps` where the episode
    ends, or nothing newer is stored yet.

    With `alpha` above 0 a transition is drawn in proportion to |error| ** alpha, and the batch has the field `weight`
    [N] float32 to multiply each row's loss by. Before the next batch the agent's `update` must have put the errors
    into it, `batch["td_error"]` [N], of either sign. Transitions that have none yet get the highest priority so far.

    Args:
        capacity: transitions to keep, over all envs; rounded up to a multiple of `num_envs`.
        num_envs: B, envs that act together.
        batch_size: N, transitions in a batch.
        learning_starts: env steps to store before the first batch.
        update_every: env steps between two learning phases.
        updates_per_step: batches for each env step, on average.
        num_steps: rewards to sum at most (n-step return).
        discount: per env step; used only where `num_steps` is not 1.
        alpha: how strongly errors rule what is drawn; 0 is uniform, 0.6 the paper's.
        beta: how far the weights make up for that at first, from 0 (all are 1) to 1 (fully).
        beta_steps: env steps from `beta` to 1, in a straight line, counted from when the memory is made.
        compact: store each observation once, though it is one transition's obs and another's next_obs, and of a stack
            of frames (its first axis, oldest first) each frame once. What comes back is the same. None: for images.
        directory: where to store it in files, which are gone with the memory. None: RAM.
    Raises:
        ConfigurationError: numbers out of range, or that cannot work together. From the first `add` too: the capacity
            does not fit into RAM, or the file system.
    Source:
        Lin, 1992, doi:10.1007/BF00992699. n-step returns: Sutton and Barto, 2018, chapter 7. Priorities: Schaul et
        al., 2016, arXiv:1511.05952.
    """

    def __init__(
        self,
        capacity: int,
        *,
        num_envs: int,
        batch_size: int,
        learning_starts: int,
        update_every: int = 1,
        updates_per_step: float = 1.0,
        num_steps: int = 1,
        discount: float = 0.99,
        alpha: float = 0.0,
        beta: float = 0.4,
        beta_steps: int = 100_000,
        compact: bool | None = None,
        directory: str | None = None,
    ) -> None:
        sizes = {"num_envs": num_envs, "batch_size": batch_size}
        storage.check_at_least("ReplayMemory", 1, **sizes, update_every=update_every, num_steps=num_steps)
        storage.check_at_least("ReplayMemory", 0, learning_starts=learning_starts, discount=discount)
        for name, number in (*sizes.items(), ("learning_starts", learning_starts)):
            if number > capacity:
                raise ConfigurationError(
                    f"ReplayMemory(capacity={capacity}, {name}={number}): {name} does not fit. Make the capacity (an "
                    f"agent's buffer_size) at least {number}, or {name} smaller."
                )
        self.capacity = capacity
        self.num_rows = -(-capacity // num_envs)
        self.num_envs = num_envs
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.update_every = update_every
        self.updates_per_step = updates_per_step
        self.num_steps = num_steps
        self.discount = discount
        self.alpha, self.beta, self.beta_steps = alpha, beta, beta_steps
        self.compact, self.directory = compact, directory
        self.rng = np.random.default_rng()
        self.pace = Pace(
            num_envs=num_envs,
            learning_starts=learning_starts,
            update_every=update_every,
            updates_per_step=updates_per_step,
        )
        Room().reserve(self.num_rows * num_envs * (9 if alpha else 1))  # flags and priorities alone
        self._priorities = self._no_priorities()
        self._drawn: Cells = np.empty(0, np.int64)
        self._unrated: Batch | None = None  # the batch that is out, until its errors are known
        self._table: Table | None = None
        self._valid = np.zeros((self.num_rows, num_envs), dtype=np.bool_)
        self._head = 0  # the row that is written next
        self._num_filled = 0  # rows written, of num_rows
        self._num_valid = 0
        self._num_unranked = 0  # rows that have no priority yet
        self._num_written = 0  # rows, ever
        self._num_cuts = 0

    def _no_priorities(self) -> Priorities | None:
        """Priorities of an empty memory; None where all transitions are alike."""
        if self.alpha == 0:
            return None
        num_cells = self.num_rows * self.num_envs
        return Priorities(num_cells, alpha=self.alpha, beta=self.beta, beta_steps=self.beta_steps)

    @property
    def stride(self) -> int:
        """Env steps after which it is sure to learn again; in between it may."""
        return self.pace.stride

    @property
    def offset(self) -> int:
        """Env steps by which the multiples of `stride` are shifted, where it is sure to learn."""
        return self.pace.offset

    def __len__(self) -> int:
        """Transitions stored."""
        return self._num_valid

    @property
    def num_bytes(self) -> int:
        """That `state_dict` copies, about."""
        return 0 if self._table is None else self._table.num_bytes * self._num_filled // self.num_rows

    def add(self, transition: Transition) -> None:
        """Store one step of B envs, in the place of the oldest once the ring is full.

        Raises:
            ShapeError: the transition is not of `num_envs` envs.
            ConfigurationError: of the first one, so many do not fit.
        """
        storage.check_num_envs(transition, self.num_envs)
        if self._table is None:
            self._table = Table.like(self._valid.shape, transition, Room(self.directory), compact=self.compact)
        self._table.write(self._head, transition)
        num_new = self._mark(self._head, transition.valid)
        self._head = (self._head + 1) % self.num_rows
        self._num_filled = min(self._num_filled + 1, self.num_rows)
        self._num_written += 1
        self._num_unranked += 1
        self.pace.count(num_new)

    def _mark(self, row: int, valid: NDArray[np.bool_] | None) -> int:
        """Note which of the new transitions in `row` are experience; returns how many."""
        if valid is None and self._num_valid == self._num_filled * self.num_envs:
            # every cell written is valid: of those that are overwritten nothing has to be counted
            self._valid[row] = True
            self._num_valid += 0 if self._num_filled == self.num_rows else self.num_envs
            return self.num_envs
        num_new = self.num_envs if valid is None else int(np.count_nonzero(valid))
        self._num_valid += num_new - int(np.count_nonzero(self._valid[row]))
        self._valid[row] = True if valid is None else valid
        return num_new

    def batches(self) -> Iterator[Batch]:
        """The batches that are due, each drawn when it is asked for.

        Raises:
            ConfigurationError: nobody put the errors into the last one, and what is drawn depends on them.
        """
        while self.pace.due > 0 and self._num_valid > 0:
            self.pace.due -= 1
            batch = self.sample()
            self._unrated = batch if self._priorities is not None else None
            yield batch
            if self._unrated is batch and "td_error" not in batch:
                raise ConfigurationError(
                    f"ReplayMemory(alpha={self.alpha}): the agent's update() left no batch['td_error'], which says "
                    "what to draw. Use alpha=0, or an agent that learns from priorities."
                )
            self._rate()

    def _rate(self) -> None:
        """Take over the errors of the batch that is out, if they are there."""
        if self._unrated is not None and "td_error" in self._unrated:
            self.update_priorities(self._unrated["td_error"])
            self._unrated = None

    def sample(self) -> Batch:
        """One batch of `batch_size` transitions, due or not.

        Raises:
            RuntimeError: nothing is stored.
        """
        if self._table is None or self._num_valid == 0:
            raise RuntimeError("ReplayMemory is empty: there is nothing to sample.")
        self._drawn = first = self._draw()
        batch = self._table.take(first) if self.num_steps == 1 else self._take_windows(first, self._table)
        if self._priorities is not None:
            batch["weight"] = self._priorities.weights(first, self.pace.num_steps)
        return batch

    def update_priorities(self, td_error: Tensor) -> None:
        """Rank the transitions of the batch that was sampled last by their errors [N]; `batches` does it by itself.

        Raises:
            ConfigurationError: the memory has no priorities.
            ShapeError, NonFiniteError: not one finite error a transition.
        """
        if self._priorities is None:
            raise ConfigurationError("ReplayMemory(alpha=0) has no priorities. Use an alpha above 0, such as 0.6.")
        self._priorities.update(self._drawn, td_error)

    def _draw(self) -> Cells:
        """Positions of `batch_size` valid transitions."""
        if self._priorities is not None:
            self._rank_new_rows(self._priorities)
            return self._priorities.draw(self.batch_size, self.rng)
        num_cells = self._num_filled * self.num_envs
        cells = self._any_of(num_cells, self.batch_size)
        if self._num_valid < num_cells:
            valid = self._valid.reshape(-1)
            while len(wrong := np.flatnonzero(~valid[cells])):
                cells[wrong] = self._any_of(num_cells, len(wrong))
        return cells

    def _rank_new_rows(self, priorities: Priorities) -> None:
        """Give the rows that were added since the last draw their priorities: all at once costs as little as one."""
        start = self._head - min(self._num_unranked, self.num_rows)
        self._num_unranked = 0
        parts = [(start, self._head)] if start >= 0 else [(start + self.num_rows, self.num_rows), (0, self._head)]
        for first, stop in parts:
            if first < stop:
                priorities.admit(first * self.num_envs, self._valid[first:stop].reshape(-1))

    def _any_of(self, num_cells: int, size: int) -> Cells:
        # below num_cells also after rounding; in half the time of `integers`, and its bias, 2 ** -53, is as nothing
        return (self.rng.random(size) * num_cells).astype(np.int64)

    def _take_windows(self, first: Cells, table: Table) -> Batch:
        """n-step transitions, by walking forward from `first`."""
        rows = table.cells
        rewards, valid = rows["reward"], self._valid.reshape(-1)
        last, n = first.copy(), np.ones(len(first), dtype=np.int64)
        total = rewards[first]
        walking = np.arange(len(first))
        for k in range(1, self.num_steps):
            here = last[walking]
            ended = rows["terminated"][here] | rows["truncated"][here]
            after = (here + self.num_envs) % len(rows)
            goes_on = ~ended & (after // self.num_envs != self._head) & valid[after]
            walking, after = walking[goes_on], after[goes_on]
            if not len(walking):
                break
            last[walking] = after
            total[walking] += self.discount**k * rewards[after]
            n[walking] += 1
        return {**table.take(first, last), "reward": torch.from_numpy(total), "n": torch.from_numpy(n)}

    def cut_episodes(self, where: NDArray[np.bool_] | None = None) -> None:
        """Mark the episodes that are going on as truncated, where somebody else has reset the envs, or they were lost.

        What comes next then does not follow from what came before: no return may reach across.

        Args:
            where: [B], in which envs. None: in all.
        """
        if self._table is not None and self._num_filled > 0:
            last = self._table.rows[self._head - 1]
            last["truncated"] |= ~last["terminated"] if where is None else ~last["terminated"] & where
            self._num_cuts += 1

    @property
    def moment(self) -> tuple[int, int]:
        """Rows written ever, and times that the last one was changed: the rows are the same while this is."""
        return self._num_written, self._num_cuts

    @property
    def first_row(self) -> int:
        """The oldest row that is stored, counted as `moment` counts them."""
        return self._num_written - self._num_filled

    def snapshot(self) -> dict[str, Any]:
        """All but the rows, which `write_rows` writes, as tensors and plain data."""
        table = None if self._table is None else self._table.snapshot()
        return {**self._state(), "num_envs": self.num_envs, "table": table}

    def write_rows(self, rows: RowWriter) -> None:
        """Write some of the rows that are stored."""
        assert self._table is not None
        assert self.first_row <= rows.start < rows.stop <= self._num_written
        rows.ring(self._valid)
        self._table.write_rows(rows)

    def restore(self, state: dict[str, Any], files: Iterable[RowReader]) -> None:
        """Put back what a snapshot was of; after an error, the memory is as it was.

        Args:
            state: of the snapshot.
            files: the rows, in their order, all that are to be stored; of a row that is there twice, the second counts.
        Raises:
            ConfigurationError: the memory saved is of another shape, only one of the two has priorities, it does not
                fit into RAM or the file system, or the files are of something else.
        """
        self._check_fits(state, state["num_envs"])
        valid = np.zeros_like(self._valid)

        def with_valid() -> Iterator[RowReader]:
            for rows in files:
                rows.ring(valid)
                yield rows

        saved = state["table"]
        if saved is None:
            table = None
        else:
            table = Table.of_snapshot(valid.shape, saved, with_valid(), Room(self.directory))
        self._put_back(state, table, valid)

    def _state(self) -> dict[str, Any]:
        """All but the rows."""
        priorities = self._priorities
        self._rate()
        return {
            "num_rows": self.num_rows,
            "num_written": self._num_written,
            "num_unranked": self._num_unranked,
            "pace": self.pace.state_dict(),
            "priorities": None if priorities is None else priorities.state_dict(self._num_filled * self.num_envs),
            "rng": storage.rng_state(self.rng),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that is stored, the pace, and the sampling stream."""
        return {
            **self._state(),
            "table": None if self._table is None else self._table.state_dict(self._num_filled),
            "valid": torch.from_numpy(self._valid[: self._num_filled].copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            ConfigurationError: the memory saved is of another shape, or only one of the two has priorities.
        """
        saved = state["valid"].numpy()
        self._check_fits(state, saved.shape[1])
        valid = np.zeros_like(self._valid)
        valid[: len(saved)] = saved
        table = state["table"]
        self._put_back(
            state, None if table is None else Table.restored(valid.shape, table, Room(self.directory)), valid
        )

    def _check_fits(self, state: dict[str, Any], num_envs: int) -> None:
        if (state["num_rows"], num_envs) != (self.num_rows, self.num_envs):
            raise ConfigurationError(
                f"the replay memory saved has {state['num_rows']} rows of {num_envs} envs, this one has "
                f"{self.num_rows} of {self.num_envs}. Continue with the same capacity (buffer_size) and num_envs."
            )
        if (state["priorities"] is None) != (self._priorities is None):
            raise ConfigurationError(
                f"only one of the replay memory saved and this one, with alpha={self.alpha}, has priorities. "
                "Continue with the same alpha."
            )

    def _put_back(self, state: dict[str, Any], table: Table | None, valid: NDArray[np.bool_]) -> None:
        self._priorities = self._no_priorities()
        if self._priorities is not None:
            self._priorities.load_state_dict(state["priorities"])
        self._num_unranked, self._drawn, self._unrated = state["num_unranked"], np.empty(0, np.int64), None
        self._table, self._valid = table, valid
        self._num_valid = int(np.count_nonzero(valid))
        self._num_written = state["num_written"]
        self._num_filled = min(self._num_written, self.num_rows)
        self._head = self._num_written % self.num_rows
        self.pace.load_state_dict(state["pace"])
        self.rng.bit_generator.state = state["rng"]
