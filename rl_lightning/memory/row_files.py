"""Rows of a memory in a file: arrays of bytes one after another, each as `numpy.save` writes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from rl_lightning.types import Array, ConfigurationError

_BLOCK = 1 << 20
"""Bytes that are read at once of what is not wanted."""


def in_turn(ring: Array, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """The bytes of what was written to a ring's places `start` to `stop`, counted ever on, in up to two views."""
    while start < stop:
        place = start % len(ring)
        num = min(stop - start, len(ring) - place)
        yield _bytes_of(ring[place : place + num])
        start += num


def _bytes_of(array: Array) -> NDArray[np.uint8]:
    """[n, *S] as [n, bytes each]; nothing is copied."""
    width = math.prod(array.shape[1:]) * array.itemsize
    return array.reshape(-1).view(np.uint8).reshape(len(array), width)


class Sink(Protocol):
    """What takes bytes."""

    def write(self, data: Any, /) -> Any:
        """Take some."""


class RowWriter:
    """Writes rows `start` to `stop` of a memory, counted ever since it was made."""

    def __init__(self, file: Sink, start: int, stop: int) -> None:
        self._file = file
        self.start, self.stop = start, stop

    def ring(self, ring: Array, *, before: int = 0) -> None:
        """What the rows have in a ring, which has a place for each row, and `before` rows before them."""
        parts = list(in_turn(ring, max(self.start - before, 0), self.stop))
        self._array(sum(map(len, parts)), parts[0].shape[1])
        for part in parts:
            self._file.write(part.data)

    def pairs(self, pairs: dict[int, Array], shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        """What only some have: a number each, and an array [*shape]."""
        numbers, arrays = np.array(list(pairs), np.int64), np.empty((len(pairs), *shape), dtype)
        for i, array in enumerate(pairs.values()):
            arrays[i] = array
        for part in (_bytes_of(numbers), _bytes_of(arrays)):
            self._array(*part.shape)
            self._file.write(part.data)

    def _array(self, num: int, width: int) -> None:
        npy.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": (num, width)})


class RowReader:
    """Reads what a `RowWriter` wrote, in the same order, straight to where it belongs. It trusts no number.

    Args:
        file: gives bytes.
        start, stop: the rows that it has.
        first: the first that is wanted; those before it are left out.
        name: of the file, for errors.
    """

    def __init__(self, file: BinaryIO, start: int, stop: int, *, first: int, name: str) -> None:
        self._file = file
        self.start, self.stop, self._name = start, stop, name
        self.first = min(max(start, first), stop)

    def ring(self, ring: Array, *, before: int = 0) -> None:
        """Fill the rows' places in the ring.

        Raises:
            ConfigurationError: the file has something else.
        """
        start, first = max(self.start - before, 0), max(self.first - before, 0)
        width = math.prod(ring.shape[1:]) * ring.itemsize
        self._expect((self.stop - start, width), self._header())
        self._skip((first - start) * width)
        for part in in_turn(ring, first, self.stop):
            self._fill(part)

    def pairs(self, shape: tuple[int, ...], dtype: np.dtype[np.generic], *, most: int) -> dict[int, Array]:
        """What only some have, at most `most` of them.

        Raises:
            ConfigurationError: the file has something else.
        """
        num, width = self._header()
        self._expect((min(num, most), 8), (num, width))
        numbers, arrays = np.empty(num, np.int64), np.empty((num, *shape), dtype)
        self._fill(_bytes_of(numbers))
        self._expect(_bytes_of(arrays).shape, self._header())
        self._fill(_bytes_of(arrays))
        return dict(zip(numbers.tolist(), arrays, strict=True))

    def _header(self) -> tuple[int, ...]:
        try:
            if npy.read_magic(self._file) != (1, 0):
                raise ValueError("another version")
            shape, _, dtype = npy.read_array_header_1_0(self._file)
        except ValueError as error:
            raise ConfigurationError(f"{self._name} is damaged: an array begins with no header ({error}).") from error
        if dtype != np.uint8 or len(shape) != 2:
            raise ConfigurationError(f"{self._name} is damaged: it has {dtype} {shape} in place of bytes in rows.")
        return shape

    def _expect(self, expected: tuple[int, ...], given: tuple[int, ...]) -> None:
        if given != expected:
            raise ConfigurationError(
                f"{self._name} does not fit: it has {given[0]} rows of {given[1]} bytes where {expected[0]} of "
                f"{expected[1]} belong."
            )

    def _skip(self, num_bytes: int) -> None:
        while num_bytes > 0:
            block = np.empty(min(num_bytes, _BLOCK), np.uint8)
            self._fill(block)
            num_bytes -= len(block)

    def _fill(self, part: NDArray[np.uint8]) -> None:
        if part.size and self._file.readinto(part.reshape(-1).data) != part.size:  # type: ignore[attr-defined]
            raise ConfigurationError(f"{self._name} is truncated.")
