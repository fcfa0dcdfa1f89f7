"""What a process is started with: anything that cloudpickle takes, and what is shared stays shared."""

from __future__ import annotations

import contextlib
import io
import multiprocessing.context
import os
import pickle
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import torch

from rl_lightning.types import ConfigurationError

_UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError, RuntimeError)


class Parcel:
    """Several objects on their way to a process that is being started.

    Lambdas, local classes and what a script defines travel by value. Shared tensors, `SharedBlock` and `Counter` arrive
    as the same memory; any other tensor as a copy.
    """

    def __init__(self, *contents: Any) -> None:
        self._contents = contents
        self._copies: list[int] = []

    def open(self) -> tuple[Any, ...]:
        """What is in it."""
        return self._contents

    def sent(self) -> None:
        """The process has it, or never will: let go of what was only for the way."""
        for fd in self._copies:
            os.close(fd)
        self._copies.clear()

    def __reduce__(self) -> tuple[type[_Sealed], tuple[bytes]]:
        with self._own_copies():
            try:
                return _Sealed, (_dumps(self._contents),)
            except _UNPICKLABLE as error:
                culprit = next((item for item in self._contents if not _can_be_sent(item)), self._contents)
                raise ConfigurationError(
                    f"{culprit!r} cannot be sent to another process: {error}. Leave out what belongs to this process "
                    "(locks, open files, live envs, renderers), and make it in the worker instead."
                ) from error

    @contextlib.contextmanager
    def _own_copies(self) -> Iterator[None]:
        """Each descriptor gets a duplicate each time: a new process takes none twice, and torch closes what it gets."""
        popen = multiprocessing.context.get_spawning_popen()
        assert popen is not None
        multiprocessing.context.set_spawning_popen(_Duplicating(popen, self._copies))  # type: ignore[arg-type]
        sharing: Any = torch.multiprocessing
        before = sharing.get_sharing_strategy()
        if "file_descriptor" in sharing.get_all_sharing_strategies():
            sharing.set_sharing_strategy("file_descriptor")  # the other one leaves files behind
        try:
            yield
        finally:
            sharing.set_sharing_strategy(before)
            multiprocessing.context.set_spawning_popen(popen)


class _Sealed:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self) -> tuple[Any, ...]:
        contents: tuple[Any, ...] = pickle.loads(self._data)
        return contents


class _Duplicating:
    """Stands in for the process that is being started."""

    def __init__(self, popen: Any, copies: list[int]) -> None:
        self._popen, self._copies, self.DupFd = popen, copies, popen.DupFd

    def duplicate_for_child(self, fd: int) -> Any:
        self._copies.append(os.dup(fd))
        return self._popen.duplicate_for_child(self._copies[-1])


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Cloudpickle, with multiprocessing's and torch's own ways for what processes can share."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._sharing = ForkingPickler(io.BytesIO()).dispatch_table

    def reducer_override(self, value: Any) -> Any:
        # torch's own way would move into shared memory what is not there yet
        storage = value._untyped_storage if isinstance(value, torch.TypedStorage) else value
        if isinstance(storage, torch.Tensor | torch.UntypedStorage) and not storage.is_shared():
            return value.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        if type(value) in self._sharing:
            return self._sharing[type(value)](value)
        return super().reducer_override(value)


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def _can_be_sent(value: Any) -> bool:
    try:
        _dumps(value)
    except _UNPICKLABLE:
        return False
    return True
