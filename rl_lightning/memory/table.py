"""The transitions of a replay memory: rows, and beside them what is too big to be stored twice."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl_lightning.memory import storage
from rl_lightning.memory.frames import Frames
from rl_lightning.memory.room import Room
from rl_lightning.memory.row_files import RowReader, RowWriter
from rl_lightning.types import Array, Batch, ObsArray, Transition, tree_map

SMALLEST_IMAGE = 1024
"""Bytes from which an image is stored frame by frame by default: smaller ones are quicker to draw whole."""


class Table:
    """`num_rows` rows of the transitions of B envs, written in turn, over and over. A cell is row * B + env.

    Args:
        shape: rows and envs.
        dtype: of a row, without what is in `frames`.
        frames: by path, the parts of the observations that are stored frame by frame; "" is one without parts.
        room: where it all lies.
    Raises:
        ConfigurationError: it does not fit there.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[np.void], frames: dict[str, Frames], room: Room) -> None:
        room.reserve(math.prod(shape) * dtype.itemsize + sum(part.num_bytes for part in frames.values()))
        self.rows: storage.Rows = room.empty(shape, dtype)
        self.cells = self.rows.reshape(-1)
        self._columns = storage.columns(self.rows)
        self._frames = frames
        for part in frames.values():
            part.allocate(room)

    @classmethod
    def like(cls, shape: tuple[int, int], transition: Transition, room: Room, *, compact: bool | None) -> Table:
        """For transitions like this one."""
        parts = _parts(transition.obs), _parts(transition.next_obs)
        paths = [path for path, leaf in parts[0].items() if (_is_image(leaf) if compact is None else compact)]
        frames = {path: Frames.like(shape[0], parts[0][path], parts[1][path]) for path in paths}
        storage.check_names(transition)
        return cls(shape, storage.row_dtype(_without(storage.fields_of(transition), frames)), frames, room)

    @property
    def num_bytes(self) -> int:
        """That all rows take."""
        return self.rows.nbytes + sum(part.num_bytes for part in self._frames.values())

    def write(self, row: int, transition: Transition) -> None:
        """Put one step of B envs into `row`, which follows the row written last."""
        fields = storage.fields_of(transition)
        if self._frames:
            fields = _without(fields, self._frames)
            obs, next_obs = _parts(transition.obs), _parts(transition.next_obs)
            for path, frames in self._frames.items():
                frames.write(row, obs[path], next_obs[path])
        storage.write(self._columns, row, fields)

    def take(self, cells: NDArray[np.int64], ends: NDArray[np.int64] | None = None) -> Batch:
        """Copies of N transitions; next_obs, terminated and truncated are those of the cells `ends` [N], if given."""
        batch = storage.as_tensors(self.cells.take(cells))
        if ends is not None:
            for name in {"next_obs", "terminated", "truncated"} & batch.keys():
                batch[name] = storage.gather(self.cells[name], ends)
        for path, frames in self._frames.items():
            _put(batch, "obs", path, frames.obs(cells))
            _put(batch, "next_obs", path, frames.next_obs(cells if ends is None else ends))
        return batch

    def state_dict(self, num_filled: int) -> dict[str, Any]:
        """A copy of the first `num_filled` rows."""
        frames = {path: part.state_dict() for path, part in self._frames.items()}
        return {"rows": storage.save(self.rows[:num_filled]), "frames": frames}

    @classmethod
    def restored(cls, shape: tuple[int, int], state: dict[str, Any], room: Room) -> Table:
        """What `state_dict` was a copy of."""
        frames = {path: Frames.of_state(shape[0], part) for path, part in state["frames"].items()}
        fields = tree_map(lambda tensor: tensor.numpy(), state["rows"])
        dtype = storage.row_dtype(tree_map(lambda array: array.reshape(-1, *array.shape[2:]), fields))
        table = cls(shape, dtype, frames, room)
        storage.write(table._columns, slice(len(fields["reward"])), fields)
        for path, part in frames.items():
            part.load_state_dict(state["frames"][path])
        return table

    def snapshot(self) -> dict[str, Any]:
        """All that is not in the rows, as tensors and plain data."""
        frames = {path: part.snapshot() for path, part in self._frames.items()}
        return {"fields": storage.described(self.rows.dtype), "frames": frames}

    def write_rows(self, rows: RowWriter) -> None:
        """Write some rows."""
        rows.ring(self.rows)
        for part in self._frames.values():
            part.write_rows(rows)

    @classmethod
    def of_snapshot(
        cls, shape: tuple[int, int], state: dict[str, Any], files: Iterable[RowReader], room: Room
    ) -> Table:
        """What `snapshot` and `write_rows` have saved.

        Raises:
            ConfigurationError: it does not fit into the room, or the files are not of such rows.
        """
        frames = {path: Frames.of_state(shape[0], part) for path, part in state["frames"].items()}
        table = cls(shape, storage.row_dtype(storage.like_described(state["fields"])), frames, room)
        for rows in files:
            rows.ring(table.rows)
            for part in frames.values():
                part.read_rows(rows)
        for path, part in frames.items():
            part.finish_rows(state["frames"][path]["newest"])
        return table


def _is_image(obs: Array) -> bool:
    return obs.dtype == np.uint8 and obs.ndim >= 4 and obs[0].nbytes >= SMALLEST_IMAGE


def _parts(obs: ObsArray) -> dict[str, Array]:
    return obs if isinstance(obs, dict) else {"": obs}


def _without(fields: dict[str, ObsArray], frames: dict[str, Frames]) -> dict[str, ObsArray]:
    """The fields of rows, of obs and next_obs only the parts that are not in `frames`."""
    kept = dict(fields)
    for name in ("obs", "next_obs"):
        parts = {path: part for path, part in _parts(fields[name]).items() if path not in frames}
        if not parts:
            del kept[name]
        elif "" not in parts:
            kept[name] = parts
    return kept


def _put(batch: Batch, name: str, path: str, array: Array) -> None:
    if path:
        batch.setdefault(name, {})[path] = torch.from_numpy(array)
    else:
        batch[name] = torch.from_numpy(array)
