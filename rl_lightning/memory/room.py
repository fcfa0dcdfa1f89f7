"""Where the arrays of a memory lie, and whether they fit there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rl_lightning.types import Array, ConfigurationError

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


class Room:
    """Room in RAM, or in a directory: in files without a name, which are gone with their memory, or its process.

    Args:
        directory: made where it is missing. None: RAM.
    """

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory

    def reserve(self, num_bytes: int) -> None:
        """Make sure that so much fits.

        Raises:
            ConfigurationError: it does not.
        """
        if self._directory is None:
            where, available = "RAM", available_ram()
            cure = "lie in files instead (directory=...), or on a bigger machine"
        else:
            os.makedirs(self._directory, exist_ok=True)
            where, available = f"the file system of {self._directory}", shutil.disk_usage(self._directory).free
            cure = "lie in another directory"
        if available is not None and num_bytes > available:
            raise ConfigurationError(
                f"the replay memory needs {num_bytes:_} bytes, and {where} has {available:_} available. Make the "
                f"capacity (an agent's buffer_size) smaller, or let it {cure}."
            )

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of zeros, also between the fields of rows: nothing else of this process gets into a checkpoint.

        The system hands out RAM only as it fills; files are full size from the start, so that no disk is found full
        later on.
        """
        array: Array
        if self._directory is None:
            array = np.zeros(shape, dtype)
            return array
        with tempfile.TemporaryFile(dir=self._directory) as file:
            array = np.asarray(np.memmap(file, dtype, "w+", shape=shape))
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, array.nbytes)
        return array


def available_ram() -> int | None:
    """Bytes that this process may still take without swapping; None where the system does not say."""
    limits = []
    if _MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    if (_CGROUP / "memory.max").exists() and (limit := (_CGROUP / "memory.max").read_text().strip()) != "max":
        used = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        limits.append(int(limit) - int(used["anon"]))  # what files take there is given back when it is needed
    return max(min(limits), 0) if limits else None
