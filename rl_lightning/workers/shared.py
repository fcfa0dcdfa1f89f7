"""Memory and numbers that processes share, without a name that could stay behind and without a lock."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import multiprocessing.context
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rl_lightning.types import ConfigurationError

_ALIGNMENT = 64
"""Bytes: two fields never share a cache line."""
_MEMINFO = Path("/proc/meminfo")


class SharedFd:
    """A file descriptor that goes along with what a process is started with. It belongs to this object."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._close = weakref.finalize(self, os.close, fd)
        self._close.atexit = False  # others still use it there, to end their workers

    def close(self) -> None:
        """Close it; may be called twice."""
        self._close()

    def __reduce__(self) -> tuple[Callable[[Any], SharedFd], tuple[Any]]:
        multiprocessing.context.assert_spawning(self)
        popen = multiprocessing.context.get_spawning_popen()
        assert popen is not None
        return _receive_fd, (popen.DupFd(popen.duplicate_for_child(self.fd)),)


def _receive_fd(duplicate: Any) -> SharedFd:
    fd = duplicate.detach()
    os.set_inheritable(fd, False)
    return SharedFd(fd)


class SharedBlock:
    """Named arrays, filled with zeros, in memory that processes share: `block["reward"][3] = 1.0`.

    It goes to a worker as an argument of `Supervisor.start`. The memory has no name, so that nothing is left of it once
    the last process that has it is gone, whatever ended that process. Nothing keeps two processes from writing to one
    place: give each its own.
    """

    def __init__(self, fields: Mapping[str, tuple[tuple[int, ...], DTypeLike]]) -> None:
        """
        Args:
            fields: name -> (shape, dtype) of each array.
        Raises:
            ConfigurationError: the machine has not that much memory left.
        """
        self._fields = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in fields.items()}
        self.nbytes = max(1, sum(_room(shape, dtype) for shape, dtype in self._fields.values()))
        check_free_memory(self.nbytes)
        self._file = SharedFd(_anonymous_file())
        os.ftruncate(self._file.fd, self.nbytes)
        self._map()

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def _map(self) -> None:
        memory = mmap.mmap(self._file.fd, self.nbytes)
        self._arrays: dict[str, NDArray[Any]] = {}
        offset = 0
        for name, (shape, dtype) in self._fields.items():
            self._arrays[name] = np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)
            offset += _room(shape, dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {"_fields": self._fields, "nbytes": self.nbytes, "_file": self._file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


class Counter:
    """Whole numbers, handed out to processes: each once, and in order.

    The kernel adds, so there is no lock that a killed process could hold: the count is the offset of a file without
    name or content that all processes have open together. A `take` costs 0.2 microseconds. It goes to a worker as an
    argument of `Supervisor.start`.
    """

    def __init__(self, start: int = 0) -> None:
        """
        Args:
            start: the first number handed out is the next, `start + 1`.
        """
        # a regular file, whose offset the kernel moves under a lock; that of a memfd it does not (seen with Linux 6.18)
        self._file = SharedFd(_temporary_file())
        self._fd = self._file.fd
        os.lseek(self._fd, start, os.SEEK_SET)

    def take(self, count: int = 1) -> int:
        """So many next numbers, which nobody else gets; returns the last of them."""
        return os.lseek(self._fd, count, os.SEEK_CUR)

    @property
    def value(self) -> int:
        """The last number handed out."""
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def __getstate__(self) -> dict[str, Any]:
        return {"_file": self._file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._file = state["_file"]
        self._fd = self._file.fd


def check_free_memory(num_bytes: int, directory: str | None = None) -> None:
    """Whether so much can be shared, before it is: a process that touches shared memory beyond that is killed.

    Args:
        num_bytes: how much.
        directory: where it lies; torch's shared tensors are in /dev/shm, which containers keep small. None: in memory
            of no directory, as a `SharedBlock`.
    Raises:
        ConfigurationError: it cannot.
    """
    free = _free_memory() if directory is None else shutil.disk_usage(directory).free
    if num_bytes > free:
        where = "in memory" if directory is None else f"in {directory}"
        raise ConfigurationError(
            f"processes would share {num_bytes:_} bytes, and {free:_} are free {where}. Use fewer workers or smaller "
            "buffers" + ("." if directory is None else f", or make {directory} larger (docker run --shm-size).")
        )


def _free_memory() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return shutil.disk_usage(tempfile.gettempdir()).free


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rl_lightning", os.MFD_CLOEXEC)
    return _temporary_file()


def _temporary_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
