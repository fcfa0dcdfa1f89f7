"""Every worker learns, and steps parameters that all share: A3C (Mnih et al., 2016, arXiv:1602.01783)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rl_lightning.agents import Agent, ForeignAgent, as_agent
from rl_lightning.clipping import add_gradients, clip_and_step
from rl_lightning.denormals import without_denormals
from rl_lightning.metrics import Means
from rl_lightning.strategies.crew import Crew
from rl_lightning.strategies.sharing import Parts, own_copy
from rl_lightning.strategies.worker import Job, Worker
from rl_lightning.types import Batch, GradientStep, Metrics, NonFiniteError, Transition
from rl_lightning.workers import WorkerContext

if TYPE_CHECKING:
    from rl_lightning.learning_graph import LearningGraph

POLL_S = 0.02
"""How often, in seconds, the parent looks at what its workers do."""
_SETTLE_S = 0.001
"""After so long, in seconds, what one core has written is seen by all."""


@dataclass(frozen=True)
class LearningJob(Job):
    """What a worker that learns is told besides.

    Attributes:
        shared: what all learn.
        agent: the agent from elsewhere whose parts those are; None for ours, which are in `shared` as a whole.
        make_agent: makes the agent of worker i; None: copies of the one.
        owners: workers that learn the shared parts; the others learn their own.
        max_grad_norm, max_grad_value: how gradients are clipped; None: not.
        compile: whether to compile learning steps, of ours.
        block: also `is_learning` [num_workers] and `pause` [1] bool, `num_updates` [num_workers] int64,
            `learning_rates` [groups of all optimizers] float64.
    """

    shared: Parts
    agent: ForeignAgent | None
    make_agent: Callable[[int], Any] | None
    owners: int
    max_grad_norm: float | None
    max_grad_value: float | None
    compile: bool


def learn(context: WorkerContext, job: LearningJob) -> None:
    """The whole life of a worker."""
    kind = _ForeignLearner if job.agent is not None else _Learner
    kind(context, job).run()


class _Sharer(Worker):
    """Learns only while the parent does not want to copy what is shared."""

    job: LearningJob

    def __init__(self, context: WorkerContext, job: LearningJob, agent: Agent) -> None:
        super().__init__(context, job, agent)
        self._is_learning, self._pause = job.block["is_learning"], job.block["pause"]

    def begin_learning(self) -> None:
        """Wait until the parent does not copy."""
        self._is_learning[self.number] = True
        while self._pause[0] and not self.context.stopping:
            self._is_learning[self.number] = False
            self.context.beat()
            time.sleep(_SETTLE_S)
            self._is_learning[self.number] = True

    def end_learning(self) -> None:
        """What is shared is whole again."""
        self._is_learning[self.number] = False


class _Learner(_Sharer):
    """One of ours: gradients of its own parameters step the shared ones, whose numbers it then takes over."""

    def __init__(self, context: WorkerContext, job: LearningJob) -> None:
        shared = job.shared if context.number < job.owners else job.shared.shared_copy(packed=not job.compile)
        agent, self._pairs = own_copy(shared, _made(job, context.number, shared.modules["agent"]))
        agent.join_workers(context.number, len(job.seeds))
        super().__init__(context, job, agent)
        self._shared, self._block = shared, job.block
        self._rates = shared.learning_rates()
        self._memory = agent.make_memory(self.pool.num_envs)
        self._memory.rng = self.rng
        self._means, self._num_updates, self._loss = Means(), 0, float("nan")
        self._seen_updates = int(self._block["num_updates"].sum())
        self._graph = self._make_graph() if job.compile else None
        eagerly = partial(agent.update, step=_Step(self))
        self._update = without_denormals(eagerly if self._graph is None else self._learn_compiled)

    def _make_graph(self) -> LearningGraph:
        """What learns on the shared parameters themselves, in one go from first reading to last writing."""
        import torch._inductor.config

        from rl_lightning.learning_graph import LearningGraph  # seconds of imports, for those who compile

        torch._inductor.config.compile_threads = 1  # no processes of the compiler's own, which could outlive this one
        agent = self._shared.modules["agent"]
        assert isinstance(agent, Agent)
        agent.join_workers(self.number, len(self.job.seeds))
        job = self.job
        optimizers, max_norm, max_value = self._shared.optimizers, job.max_grad_norm, job.max_grad_value
        return LearningGraph(agent, optimizers, max_grad_norm=max_norm, max_grad_value=max_value)

    def take(self, transition: Transition) -> None:
        self._memory.add(transition)
        self.begin_learning()
        for batch in self._memory.batches():
            self._learn(batch)
        self.end_learning()

    def _learn(self, batch: Batch) -> None:
        counts = self._block["num_updates"]
        lag = int(counts.sum()) - self._seen_updates
        rates = self._block["learning_rates"].tolist()
        if rates != self._rates:
            self._rates = rates
            self._shared.set_learning_rates(rates)
        metrics = self._update(batch)
        counts[self.number] += 1
        self._seen_updates = int(counts.sum())
        self._num_updates += 1
        self._means.add({**metrics, "policy_lag": float(lag)})

    def _learn_compiled(self, batch: Batch) -> Metrics:
        assert self._graph is not None
        metrics, losses = self._graph(batch)
        for name, loss in losses.items():
            self._note(name, loss)
        _take_over([pair for pairs in self._pairs.values() for pair in pairs])
        return metrics

    def _note(self, name: str, loss: Tensor) -> None:
        self._loss = loss.item()
        if not math.isfinite(self._loss):
            raise NonFiniteError(
                f"the loss {name!r} is {self._loss} at env step {self.context.env_step:_}. Lower the learning rate, or "
                "clip gradients (Trainer(gradient_clip_val=0.5))."
            )

    def minimise(self, name: str, loss: Tensor, set_gradients: Callable[[], None]) -> None:
        """One step of the shared optimizer, by the gradients that own parameters then have."""
        self._note(name, loss)
        pairs, optimizer = self._pairs[name], self._shared.optimizers[name]
        for _, own in pairs:
            own.grad = None
        set_gradients()
        for shared, own in pairs:
            shared.grad = own.grad
        parameters = [shared for shared, _ in pairs]
        clip_and_step(optimizer, parameters, self.job.max_grad_norm, self.job.max_grad_value)
        _take_over(pairs)

    def report(self, **more: Any) -> None:
        if self._num_updates:
            more |= {"num_updates": self._num_updates, "metrics": self._means.flush(), "loss": self._loss}
            self._num_updates = 0
        super().report(**more)


@torch.no_grad()
def _take_over(pairs: Sequence[tuple[Parameter, Parameter]]) -> None:
    """Of each pair of a shared tensor and one's own, the shared numbers become one's own."""
    torch._foreach_copy_([own for _, own in pairs], [shared for shared, _ in pairs])


class _Step(GradientStep):
    """What a learner gives its agent's `update`."""

    def __init__(self, learner: _Learner) -> None:
        self._learner = learner

    def __call__(self, name: str, loss: Tensor) -> None:
        self._learner.minimise(name, loss, loss.backward)

    def takes_gradients(self, parameters: Sequence[Tensor]) -> bool:
        return True

    def with_gradients(
        self, name: str, loss: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> None:
        self._learner.minimise(name, loss, partial(add_gradients, parameters, gradients))


class _ForeignLearner(_Sharer):
    """One from elsewhere: it learns where it observes, on the shared attributes that it was given."""

    def __init__(self, context: WorkerContext, job: LearningJob) -> None:
        made = _made(job, context.number, None)
        agent = job.agent if made is None else made
        assert isinstance(agent, ForeignAgent) and job.agent is not None
        agent.observation_space, agent.action_space = job.agent.observation_space, job.agent.action_space
        shared = job.shared if context.number < job.owners else job.shared.shared_copy()
        for name, part in {**shared.modules, **shared.optimizers}.items():
            setattr(agent.foreign, name, part)
        if hasattr(agent.foreign, "process_idx"):
            agent.foreign.process_idx = context.number
        super().__init__(context, job, agent)

    def take(self, transition: Transition) -> None:
        agent = self.agent
        assert isinstance(agent, ForeignAgent)
        self.begin_learning()
        agent.observe(transition.next_obs, transition.reward, transition.terminated, transition.truncated)
        self.end_learning()


def _made(job: LearningJob, number: int, like: Any) -> Any:
    """The agent that `make_agent` makes for a worker, built as the shared one; None without `make_agent`."""
    if job.make_agent is None:
        return None
    agent = as_agent(job.make_agent(number))
    if like is not None:
        agent.observation_space, agent.action_space = like.observation_space, like.action_space
        agent.build(like.observation_space, like.action_space)
        agent.built = True
    return agent


class SharedLearning:
    """The parent's half: it counts, passes on learning rates, and copies what is shared when somebody wants to look.

    Args:
        crew: the workers.
        parts: the parent's own copy of what they learn.
        shared: what they learn.
        on_copy: called when the copy is fresh.
        start: the env step that training goes on from.
    """

    def __init__(self, crew: Crew, parts: Parts, shared: Parts, on_copy: Callable[[], object], start: int) -> None:
        self._crew, self._parts, self._shared, self._on_copy = crew, parts, shared, on_copy
        self._rates, self._pause = crew.block["learning_rates"], crew.block["pause"]
        self._seen = start  # not what the counter says: the workers are at it already

    def advance(self) -> tuple[None, int]:
        """Look at what the workers did; returns the env steps since the last time."""
        self._rates[:] = self._parts.learning_rates()
        self._crew.poll(POLL_S)
        return None, self._count()

    def finish(self) -> int:
        """Let the workers take their last steps; returns how many those were."""
        self._crew.finish()
        return self._count()

    def _count(self) -> int:
        seen, self._seen = self._seen, self._crew.counter.value
        return self._seen - seen

    def synchronize(self) -> None:
        """Copy what is shared, while nobody is changing it."""
        crew = self._crew
        self._pause[0] = True
        try:
            time.sleep(_SETTLE_S if crew.is_running else 0.0)
            while crew.is_running and crew.block["is_learning"].any():
                crew.poll(_SETTLE_S)
            self._parts.copy_(self._shared)
            self._on_copy()
        finally:
            self._pause[0] = False
