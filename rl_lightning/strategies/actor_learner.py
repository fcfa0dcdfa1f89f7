"""Workers act, the parent learns: IMPALA (Espeholt et al., 2018, arXiv:1802.01561) and Ape-X (Horgan et al., 2018,
arXiv:1803.00933).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl_lightning.agents import Agent
from rl_lightning.strategies.crew import Crew
from rl_lightning.strategies.sharing import Parts, share_acting_buffers
from rl_lightning.strategies.worker import Job, Worker
from rl_lightning.types import Array, Transition
from rl_lightning.workers import WorkerContext

QUEUE_SIZE = 32
"""Steps of its envs that a worker may be ahead of the learner, where nothing else is asked for."""
_NAP_S = 0.0002
_CHECK_S = 0.02
_PUBLISH_S = 0.05


@dataclass(frozen=True)
class ActingJob(Job):
    """What a worker that acts is told besides.

    Attributes:
        published: the agent as the learner last published it.
        queue_size: steps of its envs that it may be ahead of the learner.
        field_names: those of `fields_of`.
        block: also `head` and `tail` [num_workers] int64, steps that each worker has put in and that were taken out;
            `sequence` [1] int64, odd while the learner publishes; `version` [1] int64, its learning steps by then;
            `waiting` [1] bool, whether the learner wants to hear of a step;
            `acted_with` [num_workers, queue_size] int64, the version that each step was acted with; and each field of
            the transitions, [num_workers, queue_size, num_envs, ...].
    """

    published: Parts
    queue_size: int
    field_names: Sequence[str]


def act(context: WorkerContext, job: ActingJob) -> None:
    """The whole life of a worker."""
    _Actor(context, job).run()


class _Actor(Worker):
    """Acts with the newest parameters, and puts what happens into its queue."""

    job: ActingJob

    def __init__(self, context: WorkerContext, job: ActingJob) -> None:
        published = job.published.modules["agent"]
        agent = copy.deepcopy(published)
        assert isinstance(agent, Agent)
        share_acting_buffers(published, agent)
        agent.join_workers(context.number, len(job.seeds))
        self._parts, self._fetched, self._version = Parts({"agent": agent}, {}), -1, 0
        block, number = job.block, context.number
        self._head, self._tail, self._sequence = block["head"], block["tail"], block["sequence"]
        self._waiting = block["waiting"]
        self._acted_with = block["acted_with"][number]
        self._fields = {name: block[name][number] for name in job.field_names}
        self._next_head = int(self._head[number])
        super().__init__(context, job, agent)

    def may_act(self) -> bool:
        """Wait until there is room in the queue, and take the newest parameters."""
        while self._next_head - self._tail[self.number] >= self.job.queue_size and not self.context.stopping:
            self.context.beat()
            self.report()
            time.sleep(_NAP_S)
        self._fetch()
        return not self.context.stopping

    def _fetch(self) -> None:
        while not self.context.stopping:
            before = int(self._sequence[0])
            if before == self._fetched:
                return
            if before % 2 == 0:
                self._parts.copy_(self.job.published)
                version = int(self.job.block["version"][0])
                if self._sequence[0] == before:
                    self._fetched, self._version = before, version
                    return
            time.sleep(0)

    def take(self, transition: Transition) -> None:
        slot = self._next_head % self.job.queue_size
        for name, array in fields_of(transition).items():
            self._fields[name][slot] = array
        self._acted_with[slot] = self._version
        self._next_head += 1
        self._head[self.number] = self._next_head
        if self._waiting[0]:
            self.context.ring()


class ActorLearner:
    """The parent's half: it takes the workers' steps out of their queues, and publishes what it has learned.

    A row of all workers' envs is put together as soon as each has a step ready. Where a worker is slow and another's
    queue is half full, the row goes on without the slow one, whose envs are not `valid` in it.

    Args:
        crew: the workers.
        parts: the agent that learns.
        published: the copy of it that they act with.
        template: a transition of one worker's envs.
        waits_for_all: no row goes on without one of them.
        cut_episodes: tells the memory that a worker was replaced, and its episode with it.
        num_updates: how many learning steps have been taken by now.
    """

    def __init__(
        self,
        crew: Crew,
        parts: Parts,
        published: Parts,
        template: Transition,
        *,
        waits_for_all: bool,
        cut_episodes: Callable[[], None],
        num_updates: Callable[[], int],
    ) -> None:
        self._crew, self._parts, self._published = crew, parts, published
        self._waits_for_all, self._cut_episodes, self._num_updates = waits_for_all, cut_episodes, num_updates
        block, job = crew.block, crew.job
        assert isinstance(job, ActingJob)
        self._head, self._tail, self._acted_with = block["head"], block["tail"], block["acted_with"]
        self._sequence, self._version, self._waiting = block["sequence"], block["version"], block["waiting"]
        self._fields = {name: block[name] for name in job.field_names}
        self._num_workers, self._size = self._acted_with.shape
        self._workers = np.arange(self._num_workers)
        self._template = template
        self._cuts = np.full(self._num_workers, -1)  # where in its queue a replaced worker's steps begin
        self._lag_sum, self._lag_max, self._num_lags = 0, 0, 0
        self._next_check = self._next_publish = time.monotonic()

    def advance(self) -> tuple[Transition | None, int]:
        """The next row of all workers' envs, and how many env steps it holds; None once there will be none."""
        self._publish()
        ready = self._ready()
        if ready is None:
            return None, 0
        if (fresh := self._cuts == self._tail).any():
            self._cuts[fresh] = -1
            if self._waits_for_all:
                self._cut_episodes()
            else:
                ready &= ~fresh  # a row without it parts what came before from what comes next
        slots = self._tail % self._size
        row = {name: queue[self._workers, slots] for name, queue in self._fields.items()}
        self._note_lag(self._acted_with[self._workers, slots][ready])
        valid = row.pop("field/valid")
        self._tail += ready
        valid &= ready[:, None]
        if not valid.all():
            for name in ("field/reward", "field/terminated", "field/truncated"):
                row[name][~valid] = 0
        transition = transition_of(row, self._template, valid.reshape(-1))
        return transition, int(valid.sum())

    def _ready(self) -> NDArray[np.bool_] | None:
        """Which workers' steps make the next row [num_workers]; None where no step will come any more."""
        while True:
            if time.monotonic() >= self._next_check:
                self._crew.poll()
                self._next_check = time.monotonic() + _CHECK_S
            pending = self._head - self._tail
            ready: NDArray[np.bool_] = pending > 0
            if ready.all():
                return ready
            if not self._waits_for_all and pending.max() >= (self._size + 1) // 2:
                return ready
            if not self._crew.is_running:
                return ready if ready.any() else None
            self._publish()
            self._waiting[0] = True
            if (self._head - self._tail == pending).all():
                self._crew.poll(_CHECK_S)  # until one rings
            self._waiting[0] = False

    def _publish(self) -> None:
        """Let the workers have what was learned since; now and then also what else has changed, such as epsilon."""
        num_updates, now = self._num_updates(), time.monotonic()
        if num_updates == self._version[0] and now < self._next_publish:
            return
        self._next_publish = now + _PUBLISH_S
        self._sequence += 1
        self._published.copy_(self._parts)
        self._version[0] = num_updates
        self._sequence += 1

    def _note_lag(self, acted_with: NDArray[np.int64]) -> None:
        lags = self._num_updates() - acted_with
        self._lag_sum += int(lags.sum())
        self._lag_max = max(self._lag_max, int(lags.max()))
        self._num_lags += len(lags)

    def on_restart(self, number: int) -> None:
        """A worker was replaced: what it does from now on does not follow from what it did before."""
        self._cuts[number] = self._head[number]

    def metrics(self) -> dict[str, float]:
        """Learning steps between acting and arriving here, since the last time: mean and largest."""
        if not self._num_lags:
            return {}
        metrics = {"policy_lag": self._lag_sum / self._num_lags, "policy_lag_max": float(self._lag_max)}
        self._lag_sum = self._lag_max = self._num_lags = 0
        return metrics

    def finish(self) -> int:
        """Let the workers take their last steps; returns how many nobody has learned from."""
        self._crew.finish()
        left = 0
        for worker, (tail, head) in enumerate(zip(self._tail.tolist(), self._head.tolist(), strict=True)):
            for step in range(tail, head):
                left += int(self._fields["field/valid"][worker, step % self._size].sum())
        self._tail[:] = self._head
        return left

    def synchronize(self) -> None:
        """The parent's agent is the one that learns: there is nothing to copy."""


def fields_of(transition: Transition) -> dict[str, Array]:
    """A transition as arrays by name, each [K, ...]."""
    valid = np.ones(len(transition.reward), np.bool_) if transition.valid is None else transition.valid
    named = {**transition._asdict(), **transition.extras, "valid": valid}
    del named["extras"]
    fields: dict[str, Array] = {}
    for name, value in named.items():
        if isinstance(value, dict):
            fields |= {f"field/{name}/{path}": leaf for path, leaf in value.items()}
        else:
            fields[f"field/{name}"] = np.asarray(value)
    return fields


def transition_of(row: dict[str, Array], template: Transition, valid: NDArray[np.bool_]) -> Transition:
    """The transition of all workers' envs, from arrays by name, each [num_workers, K, ...]."""

    def take(name: str, like: Any) -> Any:
        if isinstance(like, dict):
            return {path: take(f"{name}/{path}", leaf) for path, leaf in like.items()}
        array = row[f"field/{name}"]
        return array.reshape(-1, *array.shape[2:])

    fields = {name: take(name, like) for name, like in template._asdict().items() if name not in ("extras", "valid")}
    extras = {name: take(name, extra) for name, extra in template.extras.items()}
    return Transition(**fields, extras=extras, valid=None if valid.all() else valid)


def queue_fields(template: Transition, num_workers: int, queue_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """What `ActingJob.block` holds, for `SharedBlock`."""
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        "head": ((num_workers,), np.int64),
        "tail": ((num_workers,), np.int64),
        "sequence": ((1,), np.int64),
        "version": ((1,), np.int64),
        "waiting": ((1,), np.bool_),
        "acted_with": ((num_workers, queue_size), np.int64),
    }
    for name, array in fields_of(template).items():
        fields[name] = (num_workers, queue_size, *array.shape), array.dtype
    return fields
