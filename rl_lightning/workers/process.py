"""One worker process, as its parent holds it."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import select
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from typing import Any

from rl_lightning.types import ConfigurationError
from rl_lightning.workers.channel import Channel, wait_for
from rl_lightning.workers.context import WorkerContext, run_worker
from rl_lightning.workers.parcel import Parcel
from rl_lightning.workers.shared import SharedBlock, SharedFd

START_METHODS = ("forkserver", "spawn", "fork")
REAP_S = 5.0
"""How long a killed process may take to be gone."""

_one_at_a_time = threading.RLock()
"""What starts a process changes things for a moment that all threads share."""
_alive: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerProcess:
    """A process, and this end of what ties it to its parent.

    Attributes:
        number, pid: whose it is.
        channel: to it and from it.
        end_fd: becomes readable when the process ends.
        begun_at: `time.monotonic()` of its start.
    """

    def __init__(
        self, method: str, number: int, state: SharedBlock, bell: SharedFd, work: tuple[Callable[..., None], Any]
    ) -> None:
        """
        Raises:
            ConfigurationError: `work` cannot be sent to another process.
        """
        self.number, self._method = number, method
        ours, theirs = socket.socketpair()
        lifeline, own_lifeline = (SharedFd(fd) for fd in os.pipe())
        self.channel, self._lifeline = Channel(ours), own_lifeline
        their_channel = Channel(theirs)
        context = WorkerContext(number, state, their_channel, bell, lifeline)
        tools, parcel = Parcel(context), Parcel(work[0], *work[1])
        self._process = multiprocessing.get_context(method).Process(  # type: ignore[attr-defined]
            target=run_worker, args=(tools, parcel, dict(os.environ)), name=f"worker-{number}"
        )
        _alive.add(self)
        try:
            with _one_at_a_time, _starting(method):
                self._process.start()
        except BaseException:
            self._close()
            raise
        finally:
            tools.sent()
            parcel.sent()
            their_channel.close()
            lifeline.close()
        self.begun_at = time.monotonic()
        self.pid: int = self._process.pid
        self._pidfd = _pidfd(self.pid)
        self.end_fd: int = self._process.sentinel if self._pidfd is None else self._pidfd.fd

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def exit_code(self) -> int | None:
        """Of a process that has ended; negative for a signal. None: nobody knows."""
        self._reap()
        code: int | None = self._process.exitcode
        return None if code == 255 and self._method == "forkserver" else code

    def end(self) -> None:
        """Kill what is left of it, and let go of it. May be called twice."""
        if self not in _alive:
            return
        self._process.kill()
        self._reap()
        with contextlib.suppress(ValueError):  # not even killed: the kernel holds it in a call, and will end it then
            self._process.close()
        if self._pidfd is not None:
            self._pidfd.close()
        self._close()

    def _reap(self) -> None:
        if self._pidfd is not None:
            wait_for(self._pidfd.fd, select.POLLIN, REAP_S)
        if self._process.exitcode is None:  # a fork server says a little later how its child ended
            self._process.join(REAP_S)

    def _close(self) -> None:
        _alive.discard(self)
        self.channel.close()
        self._lifeline.close()

    def forget(self) -> None:
        """In a forked process: close what only the parent may hold, or the other workers would not see its end."""
        self._close()


def describe_exit(code: int | None) -> tuple[str, str]:
    """What an exit code is called, and what may be done about it."""
    if code is None:
        return "an unknown exit code", ""
    if code >= 0:
        return f"exit code {code}", ""
    name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
    cure = "A crash like this comes from compiled code, such as an env's simulator: run the env alone."
    if code == -signal.SIGKILL:
        cure = "If nobody killed it, memory ran out: use fewer workers or smaller buffers."
    return f"{name} (exit code {code})", f" {cure}"


def _forget_all() -> None:
    for worker in list(_alive):
        worker.forget()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)


def start_method(asked: str | None) -> str:
    """The start method that was asked for, or the best that is there.

    Raises:
        ConfigurationError: there is no such one here.
    """
    if sys.platform == "win32":
        raise ConfigurationError(
            'worker processes need Linux or macOS. On Windows, use WSL, or vectorization="sync" and strategy="batch".'
        )
    there = [method for method in START_METHODS if method in multiprocessing.get_all_start_methods()]
    if asked is not None and asked not in there:
        raise ConfigurationError(f"start_method={asked!r}: one of {', '.join(there)}, or None for {there[0]}.")
    return asked or there[0]


@contextlib.contextmanager
def _starting(method: str) -> Iterator[None]:
    """Without this process's `__main__`, and deaf to Ctrl-C until the worker sees to that itself."""
    prepare = spawn.get_preparation_data
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        if method != "fork":
            # Of a script the parcel has what is needed. Run again in each worker, it would import Lightning there, and
            # without `if __name__ == "__main__":` start the training again.
            spawn.get_preparation_data = _without_main
        if method == "forkserver":
            _ensure_fork_server()
        yield
    finally:
        spawn.get_preparation_data = prepare
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _without_main(name: str, _prepare: Callable[[str], dict[str, Any]] = spawn.get_preparation_data) -> dict[str, Any]:
    return {key: value for key, value in _prepare(name).items() if not key.startswith("init_main")}


def _ensure_fork_server() -> None:
    """A fork server that has imported what workers need: each starts in a few hundredths of a second."""
    multiprocessing.set_forkserver_preload([__name__])
    before = os.environ.get("PYTHONPATH")
    # it does not take over `sys.path` in every version, and must not find another copy of this package
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _pidfd(pid: int) -> SharedFd | None:
    """Unlike multiprocessing's sentinel, it sees the end even if the worker's own children live on."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return SharedFd(os.pidfd_open(pid))
    except OSError:  # it has ended already, or the system has no such thing
        return None
