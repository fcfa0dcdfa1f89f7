"""A worker's own side: what its function gets to talk to the parent, and how it begins and ends."""

from __future__ import annotations

import multiprocessing.util
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import torch

from rl_lightning.workers.channel import DONE, FAILURE, MESSAGE, RING, Channel, Frame, wait_for
from rl_lightning.workers.parcel import Parcel
from rl_lightning.workers.shared import SharedBlock, SharedFd

NOT_BEGUN, WAITS_FOR_PARENT = -1.0, float("inf")
"""In place of the time of the last heartbeat."""
LINE = 64
"""Bytes: what several processes write often lies so far apart that they do not slow each other down."""


def new_state(num_workers: int) -> SharedBlock:
    """What all workers and the parent see of each other: a row for each worker, of which the first element counts."""
    fields = {
        "beat": ((num_workers, LINE // 8), "f8"),  # time.monotonic(), which all processes share
        "env_step": ((num_workers, LINE // 8), "i8"),
        "stop": ((num_workers, LINE), "u1"),
    }
    return SharedBlock(fields)


class WorkerContext:
    """The first argument of a worker's function. The loop it lives in::

        def work(context, env, block):
            while not context.stopping:
                context.beat()
                ...                                     # step the env, write into the block
                context.env_step += 1
                context.ring()                          # the parent's `Supervisor.poll` returns

    Attributes:
        number: the worker's, from 0.
    """

    def __init__(self, number: int, state: SharedBlock, channel: Channel, bell: SharedFd, lifeline: SharedFd) -> None:
        self.number = number
        self._state, self._channel, self._bell, self._lifeline = state, channel, bell, lifeline
        self._attach()

    def _attach(self) -> None:
        # a memoryview takes a Python number in a third of numpy's time
        self._beat: Any = memoryview(self._state["beat"][self.number])
        self._env_step: Any = memoryview(self._state["env_step"][self.number])
        self._stop: Any = memoryview(self._state["stop"][self.number])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not isinstance(value, memoryview)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    @property
    def stopping(self) -> bool:
        """Whether the parent has asked for an end. If the parent is gone, so is this process."""
        return bool(self._stop[0])

    def beat(self) -> None:
        """Give a sign of life. Owed once in the supervisor's `timeout_s`, but not while waiting for the parent."""
        self._beat[0] = time.monotonic()

    @property
    def env_step(self) -> int:
        """How far the work has come; named in the error if it fails, even where this process is killed."""
        return int(self._env_step[0])

    @env_step.setter
    def env_step(self, step: int) -> None:
        self._env_step[0] = step

    def ring(self) -> None:
        """Wake the parent, whose `Supervisor.poll` then returns; for what it finds in shared memory."""
        try:
            os.write(self._bell.fd, b"\0")
        except BlockingIOError:
            return  # so many unheard rings are there that one more says nothing

    def send(self, message: Any) -> None:
        """Send anything that can be pickled to the parent, for `Supervisor.poll`. Waits while the parent is behind."""
        self._send(MESSAGE, _dumps(message))

    def messages(self, timeout_s: float | None = 0.0) -> list[Any]:
        """What the parent has sent since the last call, in order.

        Args:
            timeout_s: wait so long for a message, a ring, or the wish that this worker stop. None: for ever.
        Returns:
            The messages; none if the time is over, if the parent only rang, or if it wants an end (see `stopping`).
        """
        frames = self._channel.receive() if timeout_s == 0.0 else self._wait_for_frames(timeout_s)
        return [pickle.loads(frame.content) for frame in frames if frame.kind != RING]

    def _wait_for_frames(self, timeout_s: float | None) -> list[Frame]:
        channel = self._channel
        frames: list[Frame] = []
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._beat[0] = WAITS_FOR_PARENT
        while not frames and not channel.closed:  # what comes may be but a part of a large message
            if deadline is not None:
                left_s = deadline - time.monotonic()
                if left_s <= 0.0 or not wait_for(channel.fileno(), select.POLLIN, left_s):
                    break
            frames = channel.receive(wait=deadline is None)
        self.beat()
        return frames

    def _send(self, kind: int, content: bytes = b"") -> None:
        if self._channel.send(kind, content):
            return
        self._beat[0] = WAITS_FOR_PARENT
        while not self._channel.flush():
            wait_for(self._channel.fileno(), select.POLLOUT, None)
        self.beat()

    def report_end(self, error: BaseException | None) -> None:
        """Tell the parent that the work is done, or why it failed, and nothing more after that."""
        if error is None:
            self._send(DONE)
        else:
            self._send(FAILURE, _describe(error))
        self._channel.close()

    def die_with_parent(self) -> None:
        """See to it that this process is killed at the parent's end, whatever it does then.

        The parent holds the other end of the lifeline. On Linux the kernel kills as soon as that is closed, even inside
        a C call; elsewhere a thread does.
        """
        fd = self._lifeline.fd
        if sys.platform == "linux":
            import fcntl  # Windows, where all else can be imported, has none

            fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
            if wait_for(fd, select.POLLIN, 0.0):  # it died before this
                os.kill(os.getpid(), signal.SIGKILL)
        else:
            threading.Thread(target=_die_at_end_of, args=(fd,), daemon=True).start()


def _dumps(message: Any) -> bytes:
    try:
        return pickle.dumps(message)
    except (pickle.PicklingError, AttributeError, TypeError):  # lambdas, local classes, what a script defines
        content: bytes = cloudpickle.dumps(message)
        return content


def _describe(error: BaseException) -> bytes:
    """Its traceback as text, and the exception itself, pickled, if it can be sent."""
    text = "".join(traceback.format_exception(error))
    try:
        cause = _dumps(error)
        pickle.loads(cause)
    except Exception:  # some exceptions do not survive it, in ways of their own
        cause = b""
    return pickle.dumps((text, cause))


def _die_at_end_of(fd: int) -> None:
    os.read(fd, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def run_worker(tools: Parcel, work: Parcel, environ: dict[str, str]) -> None:
    """The main function of every worker process."""
    torch.set_num_threads(1)  # first: a forked process may hang in the threads that its parent had
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for name in os.environ.keys() - environ.keys():  # a fork server has what was there when it began
        del os.environ[name]
    os.environ.update(environ)
    (context,) = tools.open()
    context.die_with_parent()
    try:
        function, *args = work.open()
        context.beat()
        function(context, *args)
    except BaseException as error:
        context.report_end(error)
        _leave_at_exit(1)
    else:
        context.report_end(None)
        _leave_at_exit(0)


def _leave_at_exit(code: int) -> None:
    """Once multiprocessing has cleaned up: taking the interpreter down too costs a spawned process half a second."""
    multiprocessing.util.Finalize(None, _leave, args=(code,), exitpriority=-100)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
