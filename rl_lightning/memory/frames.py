"""Observations stored once, though each lies in several transitions, and each frame in several observations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl_lightning.memory.room import Room
from rl_lightning.memory.row_files import RowReader, RowWriter
from rl_lightning.types import Array

MOST_FRAMES = 16
"""Frames in an observation, at most; a first axis that is longer is taken for something else."""
_RINGS = ("age", "is_followed")
_ARRAYS = ("at", *_RINGS, "newest")


class Frames:
    """One part of the observations of B envs, of which each frame is stored once.

    An observation [S, *frame] is taken for the S frames that its env saw last, oldest first, and `next_obs` for the
    next row's observation. Both are compared as they are written; what is otherwise, as at the ends of episodes, is
    kept whole. So what comes back is what was written, bit for bit, whatever that was.

    Args:
        num_rows: steps of each env to keep.
        num_envs: B.
        shape, dtype: of one env's observation, O.
        stack: S, the length of the first axis of O; 1 where the whole observation is the one frame.
    """

    def __init__(
        self, num_rows: int, num_envs: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, stack: int
    ) -> None:
        self._num_rows, self._num_envs = num_rows, num_envs
        self._shape, self._dtype, self._stack = shape, dtype, stack
        self._frame_shape = shape[1:] if stack > 1 else shape
        self._ring_len = num_rows + stack - 1  # the oldest row's observation reaches further back than the rows do
        self._ring = np.empty((0, num_envs, *self._frame_shape), dtype)
        self._num_written = 0  # rows, ever
        self._at = np.zeros(num_rows, np.int64)  # where in the ring the newest frame of each row is
        self._age = np.zeros(num_rows * num_envs, np.uint8)  # how many of those before it there belong to it too
        self._is_followed = np.zeros(num_rows * num_envs, np.bool_)  # `next_obs` is the next row's observation
        self._whole: dict[int, Array] = {}  # by cell: observations that the ring does not have, each [S, *frame]
        self._end: dict[int, Array] = {}  # by cell: `next_obs` that is no row's observation
        self._newest = np.empty((num_envs, stack, *self._frame_shape), dtype)  # `next_obs` of the row written last

    @classmethod
    def like(cls, num_rows: int, obs: Array, next_obs: Array) -> Frames:
        """For observations like these, [B, *O] each: stacks where the second is the first moved on by one frame."""
        shape = obs.shape[1:]
        may_be_stack = len(shape) > 1 and 2 <= shape[0] <= MOST_FRAMES
        is_stack = may_be_stack and bool(_same(obs[:, 1:], next_obs[:, :-1]).all())
        return cls(num_rows, len(obs), shape, obs.dtype, stack=shape[0] if is_stack else 1)

    @classmethod
    def of_state(cls, num_rows: int, state: dict[str, Any]) -> Frames:
        """For what `state_dict` gave, which is yet to be loaded."""
        newest: Array = state["newest"].numpy()
        return cls(num_rows, len(newest), tuple(state["shape"]), newest.dtype, stack=newest.shape[1])

    @property
    def num_bytes(self) -> int:
        """That the frames take."""
        return self._ring_len * self._num_envs * math.prod(self._frame_shape) * self._dtype.itemsize

    def allocate(self, room: Room) -> None:
        """Make room for the frames; before anything is written."""
        self._ring = room.empty((self._ring_len, self._num_envs, *self._frame_shape), self._dtype)

    def write(self, row: int, obs: Array, next_obs: Array) -> None:
        """Put a step of B envs [B, *O] into `row`, which follows the row written last, in place of what was there."""
        obs, next_obs = obs.reshape(self._newest.shape), next_obs.reshape(self._newest.shape)
        cells, before = self._cells_of(row), self._cells_of(row - 1)
        age = np.zeros(self._num_envs, np.uint8)
        if self._num_written:
            follows = _same(obs, self._newest).all(axis=1)
            self._is_followed[before] = follows
            for env in np.flatnonzero(~follows).tolist():
                self._end[int(before[env])] = self._newest[env].copy()
            age = np.minimum(self._age[before] + 1, self._stack - 1)
        for cell in cells.tolist():
            self._whole.pop(cell, None)
            self._end.pop(cell, None)
        self._at[row] = at = self._num_written % self._ring_len
        self._ring[at] = obs[:, -1]
        self._age[cells], self._is_followed[cells] = age, False
        self._keep_what_differs(cells, obs)
        self._newest = next_obs.copy()
        self._num_written += 1

    def _keep_what_differs(self, cells: NDArray[np.int64], obs: Array) -> None:
        """Where the frames before are none of the observation's, its age is 0; where the ring does not have it, it is
        kept whole.
        """
        same = _same(self._assemble(cells), obs)
        belongs = np.arange(self._stack) >= self._stack - 1 - self._age[cells][:, None]
        if (wrong := (belongs & ~same).any(axis=1)).any():
            self._age[cells[wrong]] = 0
            same = _same(self._assemble(cells), obs)
        for env in np.flatnonzero(~same.all(axis=1)).tolist():
            self._whole[int(cells[env])] = obs[env].copy()

    def obs(self, cells: NDArray[np.int64]) -> Array:
        """The observations of N cells, [N, *O]."""
        return self._taken(cells).reshape(-1, *self._shape)

    def next_obs(self, cells: NDArray[np.int64]) -> Array:
        """What followed them, [N, *O]."""
        taken = self._taken((cells + self._num_envs) % len(self._age))
        for i in np.flatnonzero(~self._is_followed[cells]).tolist():
            cell = int(cells[i])
            # only the row written last has neither
            taken[i] = self._end[cell] if cell in self._end else self._newest[cell % self._num_envs]
        return taken.reshape(-1, *self._shape)

    def _taken(self, cells: NDArray[np.int64]) -> Array:
        """[N, S, *frame]."""
        taken = self._assemble(cells)
        if self._whole:
            for i, cell in enumerate(cells.tolist()):
                if cell in self._whole:
                    taken[i] = self._whole[cell]
        return taken

    def _assemble(self, cells: NDArray[np.int64]) -> Array:
        """What the ring has for N cells, [N, S, *frame]; frames from before an episode are its first one."""
        row, env = np.divmod(cells, self._num_envs)
        back = np.minimum(np.arange(self._stack - 1, -1, -1), self._age[cells][:, None])
        at = (self._at[row][:, None] - back) % self._ring_len
        frames = self._ring.reshape(-1, *self._frame_shape)
        taken: Array = frames.take(at * self._num_envs + env[:, None], axis=0)
        return taken

    def _cells_of(self, row: int) -> NDArray[np.int64]:
        return (row % self._num_rows) * self._num_envs + np.arange(self._num_envs)

    def state_dict(self) -> dict[str, Any]:
        """All that is stored, as tensors and plain data."""
        return {
            **{name: torch.from_numpy(getattr(self, f"_{name}").copy()) for name in _ARRAYS},
            "ring": torch.from_numpy(self._ring[: self._num_written].copy()),
            "whole": {cell: torch.from_numpy(array.copy()) for cell, array in self._whole.items()},
            "end": {cell: torch.from_numpy(array.copy()) for cell, array in self._end.items()},
            "num_written": self._num_written,
            "shape": self._shape,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for name in _ARRAYS:
            setattr(self, f"_{name}", state[name].numpy().copy())
        self._ring[: len(state["ring"])] = state["ring"].numpy()
        self._whole = {cell: array.numpy().copy() for cell, array in state["whole"].items()}
        self._end = {cell: array.numpy().copy() for cell, array in state["end"].items()}
        self._num_written = state["num_written"]

    def snapshot(self) -> dict[str, Any]:
        """All that is not in the rows, as tensors and plain data: copies."""
        return {"newest": torch.from_numpy(self._newest.copy()), "shape": self._shape}

    def write_rows(self, rows: RowWriter) -> None:
        """Write what some rows have, with the frames before them that their observations reach back to."""
        self._pass_rings(rows)
        for apart in (self._whole, self._end):
            row_of = {cell: rows.start + (cell // self._num_envs - rows.start) % self._num_rows for cell in apart}
            kept = {
                row * self._num_envs + cell % self._num_envs: apart[cell]
                for cell, row in row_of.items()
                if row < rows.stop
            }
            rows.pairs(kept, self._newest.shape[1:], self._dtype)

    def read_rows(self, rows: RowReader) -> None:
        """Put rows back; each call has what follows, or overlaps with, the one before.

        Raises:
            ConfigurationError: there is something else in the file.
        """
        self._pass_rings(rows)
        some = np.arange(rows.first, rows.stop)
        self._at[some % self._num_rows] = some % self._ring_len
        most = (rows.stop - rows.start) * self._num_envs
        for apart in (self._whole, self._end):
            kept = rows.pairs(self._newest.shape[1:], self._dtype, most=most)
            for row in range(rows.first, self._num_written):  # read before, and they may have changed
                for cell in self._cells_of(row).tolist():
                    apart.pop(cell, None)
            first = rows.first * self._num_envs
            apart.update({number % len(self._age): kept[number] for number in kept if number >= first})
        self._num_written = rows.stop

    def _pass_rings(self, rows: RowWriter | RowReader) -> None:
        """What is there for each row, to a file or from one."""
        rows.ring(self._ring, before=self._stack - 1)
        for name in _RINGS:
            rows.ring(getattr(self, f"_{name}").reshape(self._num_rows, -1))

    def finish_rows(self, newest: torch.Tensor) -> None:
        """What `snapshot` had beside the rows."""
        self._newest = newest.numpy().copy()


def _same(a: Array, b: Array) -> NDArray[np.bool_]:
    """Which frames of observations [B, S, *frame] are the same, bit for bit: [B, S]."""
    a_bytes, b_bytes = (np.ascontiguousarray(part).reshape(*part.shape[:2], -1).view(np.uint8) for part in (a, b))
    same: NDArray[np.bool_] = (a_bytes == b_bytes).all(axis=2)
    return same
