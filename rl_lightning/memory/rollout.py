"""The memory of on-policy agents: collect a rollout, learn from all of it, forget it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_lightning.memory import storage
from rl_lightning.types import Batch, ConfigurationError, Transition, tree_map


class RolloutMemory:
    """`num_steps` steps of B envs, then `num_epochs` passes over them in shuffled minibatches::

        collect [T, B] -> prepare -> flatten to [T * B] -> num_epochs x num_minibatches x [N] -> collect ...

    With one epoch of one minibatch nothing is shuffled or copied. A learning phase that its caller does not finish
    can be finished by the next call of `batches`, also after `load_state_dict`; the next `add` drops what is left.

    Args:
        num_steps: T, steps of each env in a rollout.
        num_envs: B, envs that act together.
        num_epochs: passes over each rollout.
        num_minibatches: parts that a pass is cut into, of sizes that differ by at most 1.
        prepare: called once a rollout with its fields as tensors [T, B, ...] (and `valid` [T, B], where a row is no
            experience); returns the fields [T, B, ...] to learn from. None: the fields as they are.
        should_stop: asked after each minibatch; True leaves out the rest of this rollout's minibatches.
        whole: the one batch of a rollout is the rollout itself, fields [T, B, ...] (and `valid`, as for `prepare`).
    Raises:
        ConfigurationError: a number below 1, more minibatches than transitions, or `whole` ones in parts.
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        *,
        num_epochs: int = 1,
        num_minibatches: int = 1,
        prepare: Callable[[Batch], Batch] | None = None,
        should_stop: Callable[[], bool] | None = None,
        whole: bool = False,
    ) -> None:
        storage.check_at_least("RolloutMemory", 1, num_steps=num_steps, num_envs=num_envs)
        storage.check_at_least("RolloutMemory", 1, num_epochs=num_epochs, num_minibatches=num_minibatches)
        if num_minibatches > num_steps * num_envs:
            raise ConfigurationError(
                f"RolloutMemory(num_minibatches={num_minibatches}): a rollout of {num_steps} steps of {num_envs} envs "
                f"has only {num_steps * num_envs} transitions. Use fewer minibatches or a longer rollout (num_steps)."
            )
        if whole and num_epochs * num_minibatches > 1:
            raise ConfigurationError(
                f"RolloutMemory(whole=True, num_epochs={num_epochs}, num_minibatches={num_minibatches}): a "
                "whole rollout is learned from once. Leave `whole` out, or the other two."
            )
        self.num_steps = num_steps
        self.num_envs = num_envs
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.prepare = prepare
        self.should_stop = should_stop
        self.whole = whole
        self.rng = np.random.default_rng()
        self._rows: storage.Rows | None = None
        self._columns: dict[str, Any] = {}
        self._valid = np.zeros((num_steps, num_envs), dtype=np.bool_)
        self._num_filled = 0
        self._flat: Batch = {}
        self._todo: deque[Tensor | None] = deque()  # the rows of each minibatch to come; None for all
        self._has_begun = False

    @property
    def stride(self) -> int:
        """Env steps between two learning phases."""
        return self.num_steps * self.num_envs

    def __len__(self) -> int:
        """Transitions of the rollout that is being collected."""
        return int(self._valid[: self._num_filled].sum())

    def add(self, transition: Transition) -> None:
        """Store one step of B envs.

        Raises:
            ShapeError: the transition is not of `num_envs` envs.
            RuntimeError: the rollout is full: `batches` was not called.
        """
        if self._num_filled == self.num_steps:
            raise RuntimeError("RolloutMemory is full: take its batches() after every add().")
        storage.check_num_envs(transition, self.num_envs)
        if self._rows is None:
            self._adopt(storage.allocate((self.num_steps, self.num_envs), transition))
        self._todo.clear()
        if transition.valid is not None and (lost := transition.truncated & ~transition.valid).any():
            self.cut_episodes(lost)
        storage.write(self._columns, self._num_filled, storage.fields_of(transition))
        self._valid[self._num_filled] = True if transition.valid is None else transition.valid
        self._num_filled += 1

    def _adopt(self, rows: storage.Rows) -> None:
        self._rows, self._columns = rows, storage.columns(rows)

    def batches(self) -> Iterator[Batch]:
        """The minibatches of a full rollout; none before it is full."""
        if self._num_filled == self.num_steps:
            self._begin()
        while self._todo:
            if self._has_begun and self.should_stop is not None and self.should_stop():
                self._todo.clear()
                break
            index = self._todo.popleft()
            self._has_begun = True
            yield self._flat if index is None else _take(self._flat, index)
        self._flat = {}

    def _begin(self) -> None:
        """Prepare and flatten the full rollout, draw the order of its minibatches, and start the next rollout."""
        assert self._rows is not None
        rollout = storage.as_tensors(self._rows)
        kept = np.flatnonzero(self._valid)
        is_whole = len(kept) == self._valid.size
        if not is_whole:
            rollout["valid"] = torch.from_numpy(self._valid.copy())
        if self.prepare is not None:
            rollout = self.prepare(rollout)
        if self.whole:
            self._flat = rollout
        else:
            rollout.pop("valid", None)
            self._flat = tree_map(lambda field: field.flatten(0, 1), rollout)
        if self.whole or (self.num_epochs == self.num_minibatches == 1 and is_whole):
            self._todo = deque([None])
        else:
            self._todo = deque(torch.from_numpy(kept[part]) for part in self._parts(len(kept)))
        self._has_begun = False
        self._num_filled = 0

    def _parts(self, num_rows: int) -> Iterator[Any]:
        for _ in range(self.num_epochs):
            order = np.arange(num_rows) if self.num_minibatches == 1 else self.rng.permutation(num_rows)
            for part in np.array_split(order, self.num_minibatches):
                if len(part):
                    yield part

    def cut_episodes(self, where: NDArray[np.bool_] | None = None) -> None:
        """Mark the episodes that are going on as truncated, where somebody else has reset the envs, or they were lost.

        What comes next then does not follow from what came before: no return may reach across.

        Args:
            where: [B], in which envs. None: in all.
        """
        if self._rows is not None and self._num_filled > 0:
            last = self._rows[self._num_filled - 1]
            last["truncated"] |= ~last["terminated"] if where is None else ~last["terminated"] & where

    def state_dict(self) -> dict[str, Any]:
        """The rollout so far, the minibatches still to come, and the sampling stream."""
        return {
            "rows": storage.save(None if self._rows is None else self._rows[: self._num_filled]),
            "valid": torch.from_numpy(self._valid[: self._num_filled].copy()),
            "flat": tree_map(torch.clone, self._flat) if self._todo else {},
            "todo": list(self._todo),
            "has_begun": self._has_begun,
            "rng": storage.rng_state(self.rng),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            ConfigurationError: the rollout saved is of other envs or longer than `num_steps`.
        """
        valid = state["valid"].numpy()
        if len(valid) > self.num_steps or valid.shape[1] != self.num_envs:
            raise ConfigurationError(
                f"the rollout saved has {len(valid)} steps of {valid.shape[1]} envs, this memory holds "
                f"{self.num_steps} of {self.num_envs}. Continue with the same num_envs and num_steps."
            )
        self._num_filled = len(valid)
        self._valid[: len(valid)] = valid
        shape = (self.num_steps, self.num_envs)
        self._rows = None
        if state["rows"] is not None:
            self._adopt(storage.restore(state["rows"], shape))
        self._flat = tree_map(torch.clone, state["flat"])
        self._todo = deque(state["todo"])
        self._has_begun = state["has_begun"]
        self.rng.bit_generator.state = state["rng"]


def _take(fields: Batch, index: Tensor) -> Batch:
    batch: Batch = tree_map(lambda field: field.index_select(0, index.to(field.device)), fields)
    return batch
