"""Worker processes under supervision: none hangs unseen, dies unnamed or is left behind."""

from __future__ import annotations

import math
import multiprocessing.util
import os
import pickle
import select
import textwrap
import time
import warnings
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from rl_lightning.types import ConfigurationError, WorkerError, check_counts
from rl_lightning.workers.channel import DONE, FAILURE, MESSAGE, RING, Frame
from rl_lightning.workers.context import NOT_BEGUN, WAITS_FOR_PARENT, new_state
from rl_lightning.workers.process import WorkerProcess, describe_exit
from rl_lightning.workers.process import start_method as _start_method
from rl_lightning.workers.shared import SharedFd

START_TIMEOUT_S = 120.0
"""How long a process may take to begin, on a machine with much else to do; it takes seconds."""
_TERMINATE_S = 0.5
"""How long a process may take to end itself after SIGTERM."""


class Supervisor:
    """Starts worker processes, hears from them, and ends them. The loop it lives in::

        supervisor = Supervisor(num_workers, timeout_s=60.0)
        try:
            for number in range(num_workers):
                supervisor.start(number, work, block)      # work(context, block) in a process of its own
            while supervisor.running:
                for number, message in supervisor.poll(timeout_s=1.0):
                    ...
        finally:
            supervisor.stop()

    Workers import neither Lightning nor the script that started them; what they need of a script is sent to them.
    Whatever ends this process, they are killed then. Only one thread at a time may use a supervisor.

    Attributes:
        running: the numbers of the workers that are at work.
    """

    def __init__(self, num_workers: int, *, start_method: str | None = None, timeout_s: float | None = None) -> None:
        """
        Args:
            num_workers: how many at most; they are numbered from 0.
            start_method: "forkserver" starts quickly and safely, "spawn" takes seconds, "fork" may hang once torch has
                used several threads. None: forkserver where there is one, else spawn.
            timeout_s: a worker that gives no sign of life for so long has hung. None: it may take its time.
        Raises:
            ConfigurationError: no such start method, a time limit that is none, or Windows.
        """
        self._method = _start_method(start_method)
        check_counts(num_workers=num_workers)
        if timeout_s is not None and not timeout_s > 0.0:
            raise ConfigurationError(f"timeout_s={timeout_s!r}: it must be a number of seconds above 0, or None.")
        self.num_workers, self._timeout_s = num_workers, math.inf if timeout_s is None else timeout_s
        self.running: list[int] = []
        self._state = new_state(num_workers)
        self._work: dict[int, tuple[Callable[..., None], Any]] = {}
        self._processes: dict[int, WorkerProcess] = {}
        self._poller = select.poll()
        self._on_event: dict[int, Callable[[int], None]] = {}
        self._bell, self._bell_end = (SharedFd(fd) for fd in os.pipe())
        os.set_blocking(self._bell_end.fd, False)
        self._watch(self._bell.fd, self._hear_bell)
        self._rung = False
        self._inbox: list[tuple[int, Any]] = []
        self._failures: list[WorkerError] = []
        self._has_raised = False
        self._check_every_s = min(1.0, self._timeout_s / 4)
        self._next_check = 0.0
        self._pid = os.getpid()
        # unlike atexit's, this one runs before multiprocessing waits for every process that is left
        self._finalizer = multiprocessing.util.Finalize(self, _end_all, args=(self._processes,), exitpriority=10)

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each worker that is at work."""
        return {number: self._processes[number].pid for number in self.running}

    def start(self, number: int, function: Callable[..., None], *args: Any) -> None:
        """Call `function(context, *args)` in a new process, with a `WorkerContext`.

        Raises:
            ConfigurationError: a part of it cannot be sent to another process.
        """
        assert 0 <= number < self.num_workers and number not in self.running
        self._end(number)
        self._work[number] = function, args
        self._state["stop"][number, 0] = 0
        self._state["beat"][number, 0] = NOT_BEGUN
        process = WorkerProcess(self._method, number, self._state, self._bell_end, self._work[number])
        self._processes[number] = process
        self.running = sorted([*self.running, number])
        self._watch(process.channel.fileno(), lambda event: self._hear(process, event))
        self._watch(process.end_fd, lambda event: self._see_end(process))

    def restart(self, number: int) -> None:
        """End what is left of a worker and start the same again. Nothing that the old one sent will be heard."""
        self._end(number)
        self._inbox = [item for item in self._inbox if item[0] != number]
        self._failures = [error for error in self._failures if error.number != number]
        self._has_raised = False
        function, args = self._work[number]
        self.start(number, function, *args)

    def send(self, number: int, message: Any) -> None:
        """Send anything that can be pickled to a worker, for its `WorkerContext.messages`. Never waits for it."""
        self._post(number, MESSAGE, cloudpickle.dumps(message))

    def ring(self, number: int) -> None:
        """Wake a worker that waits in `WorkerContext.messages`: quicker than a message."""
        self._post(number, RING)

    def poll(self, timeout_s: float = 0.0) -> list[tuple[int, Any]]:
        """What the workers have sent: pairs (number, message), in the order in which each has sent them.

        Args:
            timeout_s: wait so long, unless something comes, somebody rings, or nobody is at work.
        Raises:
            WorkerError: a worker failed, died or hung; all that came before has been returned by then. It is not at
                work any more: `restart` it, or `stop`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._look(deadline - time.monotonic() if self.running else 0.0)
            inbox, self._inbox = self._inbox, []
            rung, self._rung = self._rung, False
            if self._failures and not inbox:
                self._has_raised = True
                raise self._failures.pop(0)
            if inbox or rung or not self.running or time.monotonic() >= deadline:
                return inbox

    def stop(self, grace_s: float = 5.0) -> None:
        """Ask every worker to end, and end those that do not: nothing of them is left. May be called twice.

        What goes wrong meanwhile is a warning, unless `poll` has raised an error already.

        Args:
            grace_s: how long they may take. What they send meanwhile comes with the next `poll`. 0: end them now.
        """
        if os.getpid() != self._pid or not self._finalizer.still_active():
            return
        late: list[WorkerProcess] = []
        try:
            late = self._ask_to_stop(grace_s)
        finally:
            self.running = []
            self._on_event.clear()
            self._finalizer()
            self._bell.close()
            self._bell_end.close()
        complaints = [f"while it was to stop, {error}" for error in self._failures]
        complaints += [f"{process} did not stop within {grace_s:g} s, and was ended." for process in late if grace_s]
        self._failures.clear()
        if complaints and not self._has_raised:
            warnings.warn("\n".join(complaints), RuntimeWarning, stacklevel=2)

    def _ask_to_stop(self, grace_s: float) -> list[WorkerProcess]:
        """Returns those that had to be told twice."""
        self._state["stop"][:, 0] = 1
        for process in self._processes.values():
            process.channel.end_sending()
        late = self._wait_for_ends(grace_s)
        self.running = []  # what now ends by a signal is no failure
        for process in late:
            process.terminate()
        self._wait_for_ends(_TERMINATE_S if late else 0.0)
        return late

    def _wait_for_ends(self, timeout_s: float) -> list[WorkerProcess]:
        deadline = time.monotonic() + timeout_s
        while True:
            left = [process for process in self._processes.values() if process.end_fd in self._on_event]
            if not left or time.monotonic() >= deadline:
                return left
            self._look(deadline - time.monotonic())

    def _end(self, number: int) -> None:
        process = self._processes.pop(number, None)
        if process is None:
            return
        self._unwatch(process.channel.fileno())
        self._unwatch(process.end_fd)
        process.end()
        self._is_out(number)

    def _is_out(self, number: int) -> None:
        self.running = [other for other in self.running if other != number]

    # ---- what is going on --------------------------------------------------------------------------------------------

    def _look(self, timeout_s: float) -> None:
        """Wait so long for anything to happen, and take note of it. Never on one worker alone, nor for ever."""
        wait_s = max(0.0, min(timeout_s, self._check_every_s))
        for fd, event in self._poller.poll(math.ceil(1000 * wait_s)) if self._on_event else ():
            on_event = self._on_event.get(fd)
            if on_event is not None:  # an earlier one may have ended the watch
                on_event(event)
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + self._check_every_s
            self._check_beats(now)

    def _watch(self, fd: int, on_event: Callable[[int], None]) -> None:
        self._on_event[fd] = on_event
        self._poller.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._on_event.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def _hear_bell(self, event: int) -> None:
        os.read(self._bell.fd, 1 << 12)
        self._rung = True

    def _hear(self, process: WorkerProcess, event: int = 0) -> None:
        if event & select.POLLOUT and process.channel.flush():
            self._poller.modify(process.channel.fileno(), select.POLLIN)
        for frame in process.channel.receive():
            self._take(process, frame)
        if process.channel.closed:
            self._unwatch(process.channel.fileno())

    def _take(self, process: WorkerProcess, frame: Frame) -> None:
        if frame.kind == MESSAGE:
            self._inbox.append((process.number, pickle.loads(frame.content)))
        elif frame.kind == DONE:
            self._is_out(process.number)
        elif frame.kind == FAILURE:
            text, cause = pickle.loads(frame.content)
            what = f"failed at env step {self._env_step(process):_}:\n{textwrap.indent(text.rstrip(), '  ')}"
            self._fail(process, what, cause=pickle.loads(cause) if cause else None)

    def _see_end(self, process: WorkerProcess) -> None:
        self._hear(process)
        self._unwatch(process.end_fd)
        code = process.exit_code()
        if process.number in self.running:
            self._fail(process, self._describe_end(process, code), code=code)

    def _check_beats(self, now: float) -> None:
        for number in self.running:
            process = self._processes[number]
            beat = float(self._state["beat"][number, 0])
            if beat == NOT_BEGUN and now - process.begun_at > START_TIMEOUT_S:
                process.kill()
                self._fail(process, f"did not begin within {START_TIMEOUT_S:g} s, and was killed.")
            elif beat != NOT_BEGUN and now - beat > self._timeout_s:
                process.kill()
                step = self._env_step(process)
                self._fail(
                    process,
                    f"hung at env step {step:_}: it gave no sign of life for {self._timeout_s:g} s, and was killed. If "
                    "its env can take so long, raise the time limit.",
                )

    def _fail(
        self, process: WorkerProcess, what: str, *, code: int | None = None, cause: BaseException | None = None
    ) -> None:
        self._is_out(process.number)
        error = WorkerError(f"{process} {what}", number=process.number, pid=process.pid, exit_code=code)
        error.__cause__ = cause
        self._failures.append(error)

    def _describe_end(self, process: WorkerProcess, code: int | None) -> str:
        name, cure = describe_exit(code)
        if self._state["beat"][process.number, 0] == NOT_BEGUN:
            return f"ended with {name} before it began; what it printed says why."
        return f"ended with {name} at env step {self._env_step(process):_}.{cure}"

    def _env_step(self, process: WorkerProcess) -> int:
        return int(self._state["env_step"][process.number, 0])

    def _post(self, number: int, kind: int, content: bytes = b"") -> None:
        if number not in self.running:
            return  # its end is or was reported by `poll`
        beat = self._state["beat"]
        if beat[number, 0] == WAITS_FOR_PARENT:
            beat[number, 0] = time.monotonic()  # from now on it owes a sign of life
        channel = self._processes[number].channel
        if not channel.send(kind, content):
            self._poller.modify(channel.fileno(), select.POLLIN | select.POLLOUT)


def _end_all(processes: dict[int, WorkerProcess]) -> None:
    for process in processes.values():
        process.kill()
    for process in processes.values():
        process.end()
