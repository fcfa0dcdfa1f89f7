"""Faults on order, to see what a run does when things go wrong: an env that fails, a process that dies, a full disk."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, SupportsFloat, TypeAlias, get_args

import gymnasium as gym
import numpy as np

from rl_lightning.types import ConfigurationError

Fault: TypeAlias = Literal[
    "raise in constructor", "raise in reset", "raise in step", "exit", "kill", "hang", "nan observation", "nan reward"
]
EXIT_CODE = 17
"""Of a process that a `FaultyEnv` ends with "exit"."""


class FaultyEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Any env, until the fault.

    In another process, for example::

        GymEnvModule("CartPole-v1", 4, vectorization="async",
                     wrappers=[partial(FaultyEnv, fault="kill", at_step=1_000)])

    Args:
        env: the env to wrap.
        fault: "raise in constructor", "raise in reset" and "raise in step" raise a RuntimeError; "exit" ends the
            process by `os._exit`, "kill" by SIGKILL; "hang" sleeps for ever; "nan observation" and "nan reward" give
            NaN.
        at_step: the step of this env, counted from 1, in which it happens, and in every later one; with "raise in
            reset", in every reset after so many steps.
        once_in: a directory that all copies of the env share: then it happens once, in the first that gets there, and
            not again in one that replaces it. None: always.
    Raises:
        ConfigurationError: there is no such fault.
    """

    def __init__(
        self, env: gym.Env[Any, Any], fault: Fault, *, at_step: int = 1, once_in: str | os.PathLike[str] | None = None
    ) -> None:
        if fault not in get_args(Fault):
            raise ConfigurationError(f"fault={fault!r}: one of {', '.join(get_args(Fault))}.")
        super().__init__(env)
        self._fault, self._at_step, self._once_in = fault, at_step, once_in
        self._num_steps = 0
        if fault == "raise in constructor" and self._is_due():
            raise RuntimeError("FaultyEnv: failed in the constructor, as ordered")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self._fault == "raise in reset" and self._num_steps >= self._at_step and self._is_due():
            raise RuntimeError(f"FaultyEnv: failed in reset after step {self._num_steps}, as ordered")
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        self._num_steps += 1
        happens = self._num_steps >= self._at_step and not self._fault.endswith(("constructor", "reset"))
        if not (happens and self._is_due()):
            return self.env.step(action)
        self._fail()
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._fault == "nan reward":
            return obs, float("nan"), terminated, truncated, info
        return np.full_like(obs, np.nan), reward, terminated, truncated, info

    def _is_due(self) -> bool:
        if self._once_in is None:
            return True
        try:
            Path(self._once_in, "happened").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _fail(self) -> None:
        if self._fault == "raise in step":
            raise RuntimeError(f"FaultyEnv: failed in step {self._num_steps}, as ordered")
        if self._fault == "exit":
            os._exit(EXIT_CODE)
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while self._fault == "hang":
            time.sleep(3600.0)


@contextlib.contextmanager
def kill_at_step(
    pid: int | Callable[[], int], count: Callable[[], int], step: int, *, sig: int | None = None
) -> Iterator[None]:
    """Send a signal to a process, once, as soon as a count has come to `step`, while the body of the `with` runs.

    Args:
        pid: of the process, or what finds it out at that moment.
        count: gives the count, such as `lambda: trainer.global_step`; asked a thousand times a second, in a thread.
        step: which count it is.
        sig: the signal. None: SIGKILL.
    Raises:
        RuntimeError: the body has ended and the count never came to it.
    """
    over, sent = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            if count() >= step:
                os.kill(pid() if callable(pid) else pid, signal.SIGKILL if sig is None else sig)
                sent.set()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if not sent.is_set():
        raise RuntimeError(f"kill_at_step: the count came to {count()} only, and was to come to {step}.")


class FullDisk:
    """Inside a `with`, files under a directory can be opened and made, but not written: "No space left on device".

    That is so for what writes through Python's `open`, in this process, and for temporary files too, as if they were on
    the same disk; compiled code that opens files itself notices nothing, nor does `torch.save` of a path.

    Args:
        directory: the directory.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory).resolve()

    def __enter__(self) -> FullDisk:
        self._open: Any = builtins.open
        self._tempdir = tempfile.tempdir
        tempfile.tempdir = str(self._directory)
        builtins.open = io.open = self._open_full
        return self

    def __exit__(self, *_: object) -> None:
        builtins.open = io.open = self._open
        tempfile.tempdir = self._tempdir

    def _open_full(
        self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, closefd: bool = True, **kwargs: Any
    ) -> Any:
        writes = not set(mode).isdisjoint("wax+")
        if isinstance(file, int) or not writes or not self._holds(file):
            return self._open(file, mode, buffering, *args, closefd=closefd, **kwargs)
        raw = _FullFile(os.fspath(file), mode.replace("b", "").replace("t", ""), opener=kwargs.pop("opener", None))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

    def _holds(self, file: Any) -> bool:
        return Path(os.fsdecode(file)).resolve().is_relative_to(self._directory)


class _FullFile(io.FileIO):
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")  # or some would write past this object
