"""Files that are there as a whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOST = socket.gethostname()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The temporary path to write to; it gets its name when the body has ended and all of it is on the disk.

    A kill, a power cut, a full disk: the file that had the name before stays as it was. After an error nothing is left
    of the attempt; after a kill, `remove_leftovers` finds it.
    """
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(directory: Path) -> None:
    """Remove what processes of this machine that are no more had begun to write."""
    for temporary in directory.glob(f".*.{_HOST}.*.tmp"):
        number = temporary.name.split(".")[-2]
        if number.isdigit() and not _is_alive(int(number)):
            temporary.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk: a power cut could leave a name without its content."""
    posix = os.name == "posix"  # elsewhere directories cannot be opened, and files only be synced to be written
    if posix or path.is_file():
        descriptor = os.open(path, os.O_RDONLY if posix else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
