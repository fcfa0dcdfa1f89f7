"""The workers of asynchronous training, as their parent sees them."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

from rl_lightning.strategies.strategy import Episodes
from rl_lightning.strategies.worker import Job
from rl_lightning.types import WorkerError
from rl_lightning.workers import Supervisor

FINISH_S = 60.0
"""How long, in seconds, an env step or a learning step may take that is under way when training ends."""


class Crew:
    """Starts workers, listens to their reports, and replaces those that die, as often as it may.

    Args:
        function, job: what each worker runs: `function(context, job)`.
        num_workers: how many.
        start_method, timeout_s: as in `Supervisor`.
        max_restarts: how many deaths are mended before one ends the run.
        on_restart: called with the number of a worker that was replaced.
    Attributes:
        episodes: what the workers have said of theirs.
        reports: what they have said that nobody has read.
        num_restarts: workers replaced so far.
    """

    def __init__(
        self,
        function: Callable[..., None],
        job: Job,
        num_workers: int,
        *,
        start_method: str | None,
        timeout_s: float | None,
        max_restarts: int,
        on_restart: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.job, self.block, self.counter = job, job.block, job.counter
        self.episodes = Episodes(num_workers)
        self.reports: deque[dict[str, Any]] = deque()
        self.num_restarts = 0
        self._max_restarts, self._on_restart = max_restarts, on_restart
        self._supervisor = Supervisor(num_workers, start_method=start_method, timeout_s=timeout_s)
        try:
            for number in range(num_workers):
                self._supervisor.start(number, function, job)
        except BaseException:
            self._supervisor.stop()
            raise

    @property
    def is_running(self) -> bool:
        """Whether any of them still is."""
        return bool(self._supervisor.running)

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each that is at work."""
        return self._supervisor.pids

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take in what they have sent, waiting for it at most so long.

        Raises:
            WorkerError: one has died, failed or hangs, and may not be replaced.
        """
        try:
            messages = self._supervisor.poll(timeout_s)
        except WorkerError as error:
            if self.num_restarts == self._max_restarts:
                raise
            assert error.number is not None
            self.num_restarts += 1
            self.block["num_restarts"][error.number] += 1
            text = f"{error}\nIt is replaced, which may happen {self._max_restarts - self.num_restarts} more times."
            warnings.warn(text, stacklevel=2)
            self._supervisor.restart(error.number)
            self._on_restart(error.number)
            return
        for _, report in messages:
            self.episodes.include(report.pop("returns"), report.pop("lengths"), report.pop("num_finished"))
            if report:
                self.reports.append(report)

    def finish(self) -> None:
        """Let each end its step and report, and wait for that: at the limit they end by themselves."""
        at_limit = self.counter.value >= self.job.limit
        while at_limit and self.is_running:
            self.poll(0.1)
        self._supervisor.stop(FINISH_S)
        self.poll()

    def close(self) -> None:
        """End them, soon. May be called twice."""
        with warnings.catch_warnings():
            # where this ends anything, something else has failed, which is what should be read
            warnings.simplefilter("ignore", RuntimeWarning)
            self._supervisor.stop()
