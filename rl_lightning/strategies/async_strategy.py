"""Gathering in other processes, which do not wait for each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from rl_lightning.agents import Agent, ForeignAgent
from rl_lightning.agents.acting import make_actor
from rl_lightning.envs import EnvPool, EnvRecipe
from rl_lightning.memory import Memory, ReplayMemory, RolloutMemory
from rl_lightning.strategies.actor_learner import QUEUE_SIZE, ActingJob, ActorLearner, act, fields_of, queue_fields
from rl_lightning.strategies.crew import Crew
from rl_lightning.strategies.shared_learning import LearningJob, SharedLearning, learn
from rl_lightning.strategies.sharing import Parts, share_acting_buffers
from rl_lightning.strategies.strategy import Episodes, Strategy
from rl_lightning.types import Batch, ConfigurationError, Transition, check_counts
from rl_lightning.workers import Counter, SharedBlock

MODES = ("shared", "actor_learner")


@dataclass(frozen=True)
class AsyncPlan:
    """What asynchronous training has to know of the run that it is part of.

    Attributes:
        recipe: of each worker's envs.
        optimizers: those that the parent would step, by name.
        start, limit: env steps: the first number is `start + 1`; workers stop at `limit`.
        max_grad_norm, max_grad_value: how gradients are clipped; None: not.
        hooks: called in the workers for each env step, as `hook(env, agent, step)`.
        compile: whether workers that learn compile their learning steps.
        num_updates: how many learning steps have been taken by now.
    """

    recipe: EnvRecipe
    optimizers: Mapping[str, Optimizer]
    start: int
    limit: float
    max_grad_norm: float | None
    max_grad_value: float | None
    hooks: Sequence[Callable[[Any, Any, int], object]]
    compile: bool
    num_updates: Callable[[], int]


class AsyncStrategy(Strategy):
    """Workers in processes of their own step envs of their own, and never wait for each other.

    `mode="shared"`: every worker also learns, and steps parameters and optimizer state that all of them share, without
    locks (A3C, Mnih et al., 2016; Hogwild, Niu et al., 2011). The Trainer's part is the rest: schedules, evaluation,
    logs, checkpoints. One of Lightning's batches is then what the workers report about twenty times a second, of one or
    more learning steps, and `on_env_step` has no transition to show. `Trainer(compile=True)` compiles each worker's
    learning steps.

    `mode="actor_learner"`: workers act with the newest parameters and send what happens through shared memory; the
    Trainer learns from it (Ape-X, Horgan et al., 2018; IMPALA, Espeholt et al., 2018), with everything else as in batch
    training. For replay agents, and on-policy ones that correct for the lag (`A2C(v_trace=True)`).

    The clock counts every env step of every worker once. Training passes `max_steps` by at most the number of envs of
    all workers less one. A worker that fails ends the run with a `WorkerError`, after a checkpoint was saved, or is
    replaced. No process outlives the run, however it ends.

    Runs with one seed are alike, not the same: which worker is first is not the seed's to decide.

    Args:
        num_workers: processes, each with `num_envs` envs of the env module.
        mode: "shared" or "actor_learner".
        max_policy_lag: actor_learner: how many learning steps may lie between acting and the arrival at the learner.
            Workers then wait for the learner, and it for the slowest of them. None: a worker is at most 32 steps of its
            envs ahead, and replay does not wait for the slowest.
        use_shared_memory: shared: False lets each worker learn for itself; the agent that is evaluated, saved and
            returned is then worker 0's.
        make_env: shared or not, makes the env of worker i instead of the env module: `make_env(i)`.
        make_agent: shared: makes the agent of worker i, whose parameters are then the shared ones: `make_agent(i)`.
        seeds: one for each worker. None: they follow from the run's seed.
        start_method: "forkserver", "spawn" or "fork". None: whichever is safe and fast. Forking a process whose torch
            has started threads can deadlock.
        worker_timeout_s: a worker that shows no sign of life for so long has failed, and is killed; longer than any env
            step or learning step takes. None: none is.
        restart_workers: how many workers that fail are replaced before one ends the run. A replaced worker's episode is
            truncated.
    Attributes:
        seeds: of the workers, in the run that is going on.
        worker_steps: env steps that each worker has taken [num_workers].
        worker_pids: process id of each worker that is at work.
        num_restarts: workers replaced in the run.
        profile_dir: where each worker i writes a profile, `profile-{i}.out`; None: nowhere.
    Raises:
        ConfigurationError: arguments that cannot mean anything, or not together.
    """

    plan: AsyncPlan
    """Set by the Trainer before `setup`."""

    profile_dir: Path | None = None
    _run: SharedLearning | ActorLearner | None = None
    _crew: Crew | None = None

    def __init__(
        self,
        num_workers: int = 2,
        *,
        mode: str = "shared",
        max_policy_lag: int | None = None,
        use_shared_memory: bool = True,
        make_env: Callable[[int], Any] | None = None,
        make_agent: Callable[[int], Any] | None = None,
        seeds: Sequence[int] | None = None,
        start_method: str | None = None,
        worker_timeout_s: float | None = None,
        restart_workers: int = 0,
    ) -> None:
        check_counts(num_workers=num_workers, max_policy_lag=max_policy_lag)
        if mode not in MODES:
            raise ConfigurationError(f"AsyncStrategy(mode={mode!r}): one of {', '.join(MODES)}.")
        if seeds is not None and len(seeds) != num_workers:
            raise ConfigurationError(f"AsyncStrategy(seeds={seeds}): {num_workers} workers need as many seeds.")
        if mode == "shared" and max_policy_lag is not None:
            raise ConfigurationError(
                f"AsyncStrategy(mode='shared', max_policy_lag={max_policy_lag}): workers that learn by themselves "
                "cannot be kept together. Use mode='actor_learner', or leave it out."
            )
        if mode == "actor_learner" and (make_agent is not None or not use_shared_memory):
            raise ConfigurationError(
                "AsyncStrategy(mode='actor_learner'): the workers act for the one agent that learns; make_agent and "
                "use_shared_memory are for mode='shared'."
            )
        self.num_workers = num_workers
        self.mode = mode
        self.max_policy_lag = max_policy_lag
        self.use_shared_memory = use_shared_memory
        self.make_env = make_env
        self.make_agent = make_agent
        self.given_seeds = seeds
        self.start_method = start_method
        self.worker_timeout_s = worker_timeout_s
        self.restart_workers = restart_workers
        self.episodes = Episodes(num_workers)
        self.num_steps = 0
        self.seeds: list[int] = []

    @property
    def learns_elsewhere(self) -> bool:
        return self.mode == "shared"

    # ---- before --------------------------------------------------------------------------------------------------

    def make_memory(self, agent: Agent, memory: Memory | None, num_envs: int) -> Memory:
        """In shared mode each worker has its own."""
        if self.mode == "actor_learner":
            self._memory = agent.make_memory(self.num_workers * num_envs) if memory is None else memory
            return self._memory
        if memory is not None:
            raise ConfigurationError(
                "RLModule(memory=...) cannot be shared by the workers of AsyncStrategy(mode='shared'): each makes its "
                "own with the agent's make_memory. Leave it out, or use mode='actor_learner'."
            )
        self._reports = _Reports()
        return self._reports

    def setup(self, agent: Agent, pool: EnvPool, *, seed: int | None, device: torch.device, dtype: torch.dtype) -> None:
        """Start the workers. `pool` is one worker's envs, to see what they are like; it is closed."""
        seeds = np.random.SeedSequence(seed).generate_state(self.num_workers) >> 2
        self.seeds = [int(number) for number in (seeds if self.given_seeds is None else self.given_seeds)]
        try:
            template = self._template(agent, pool, device, dtype) if self.mode == "actor_learner" else None
        finally:
            pool.close()
        if template is None:
            self._start_learners(agent)
        else:
            self._start_actors(agent, template)

    def _common(self, fields: dict[str, tuple[tuple[int, ...], Any]]) -> dict[str, Any]:
        """What a job of either mode holds."""
        plan, number = self.plan, (self.num_workers,)
        return {
            "recipe": plan.recipe,
            "make_env": self.make_env,
            "seeds": self.seeds,
            "hooks": list(plan.hooks),
            "counter": Counter(plan.start),
            "limit": plan.limit,
            "profile_dir": self.profile_dir,
            "block": SharedBlock({"num_steps": (number, np.int64), "num_restarts": (number, np.int64), **fields}),
        }

    def _start_learners(self, agent: Agent) -> None:
        plan, number = self.plan, (self.num_workers,)
        foreign = agent if isinstance(agent, ForeignAgent) else None
        parts = Parts.of(agent, plan.optimizers)
        shared = parts.shared_copy(packed=not plan.compile)
        for name in agent.tunables:  # what callbacks set here, the workers have at once
            agent._buffers[name] = shared.modules["agent"]._buffers[name]
        fields: dict[str, tuple[tuple[int, ...], Any]] = {
            "is_learning": (number, np.bool_),
            "pause": ((1,), np.bool_),
            "num_updates": (number, np.int64),
            "learning_rates": ((max(1, len(parts.learning_rates())),), np.float64),
        }
        job = LearningJob(
            **self._common(fields),
            shared=shared,
            agent=foreign,
            make_agent=self.make_agent,
            owners=self.num_workers if self.use_shared_memory else 1,
            max_grad_norm=plan.max_grad_norm,
            max_grad_value=plan.max_grad_value,
            compile=plan.compile,
        )
        self._crew = self._hire(learn, job)
        # one from elsewhere may act with a copy of its own
        on_copy = getattr(getattr(foreign, "foreign", None), "sync_parameters", lambda: None)
        self._run = SharedLearning(self._crew, parts, shared, on_copy, plan.start)
        self._reports.source = self._crew.reports

    def _start_actors(self, agent: Agent, template: Transition) -> None:
        parts = Parts({"agent": agent}, {})
        published = parts.shared_copy()
        share_acting_buffers(published.modules["agent"], agent)
        size = self._queue_size(len(template.reward))
        fields = queue_fields(template, self.num_workers, size)
        job = ActingJob(
            **self._common(fields),
            published=published,
            queue_size=size,
            field_names=list(fields_of(template)),
        )
        self._crew = self._hire(act, job)
        memory = self._memory
        self._run = ActorLearner(
            self._crew,
            parts,
            published,
            template,
            waits_for_all=isinstance(memory, RolloutMemory) or self.max_policy_lag is not None,
            cut_episodes=getattr(memory, "cut_episodes", lambda: None),
            num_updates=self.plan.num_updates,
        )

    def _hire(self, function: Callable[..., None], job: LearningJob | ActingJob) -> Crew:
        crew = Crew(
            function,
            job,
            self.num_workers,
            start_method=self.start_method,
            timeout_s=self.worker_timeout_s,
            max_restarts=self.restart_workers,
            on_restart=self._on_restart,
        )
        crew.episodes.num_finished, self.episodes = self.episodes.num_finished, crew.episodes
        return crew

    def _queue_size(self, num_envs: int) -> int:
        """Steps that a worker may be ahead so that at most `max_policy_lag` learning steps take place meanwhile."""
        lag, memory = self.max_policy_lag, self._memory
        if lag is None:
            return QUEUE_SIZE
        if isinstance(memory, RolloutMemory):
            stride, burst = memory.stride, memory.num_epochs * memory.num_minibatches
        elif isinstance(memory, ReplayMemory):
            stride, burst = memory.update_every, math.ceil(memory.update_every * memory.updates_per_step)
        else:
            raise ConfigurationError(
                f"AsyncStrategy(max_policy_lag={lag}): how often {type(memory).__name__} makes batches is not known. "
                "Use a ReplayMemory or a RolloutMemory, or leave it out."
            )
        row = num_envs * self.num_workers
        size = lag // burst * stride // row
        if size < 1:
            raise ConfigurationError(
                f"AsyncStrategy(max_policy_lag={lag}) cannot be kept: one step of {row} envs is followed by up to "
                f"{math.ceil(row / stride) * burst} learning steps. Give at least as many, or fewer envs or updates."
            )
        return size

    def _template(self, agent: Agent, pool: EnvPool, device: torch.device, dtype: torch.dtype) -> Transition:
        """A transition of one worker's envs, as to shapes and dtypes."""
        with torch.random.fork_rng(devices=[]):
            obs = pool.reset(0)
            action, extras = make_actor(agent, pool, explore=True, device=device, dtype=dtype)(obs)
        number = pool.num_envs
        nothing, no = np.zeros(number, np.float32), np.zeros(number, np.bool_)
        return Transition(obs, action, nothing, obs, no, no, extras, ~no)

    def _on_restart(self, number: int) -> None:
        if isinstance(self._run, ActorLearner):
            self._run.on_restart(number)

    # ---- while it runs -------------------------------------------------------------------------------------------

    def advance(self) -> Transition | None:
        """The next row of all workers' envs; in shared mode None, after a fiftieth of a second or less."""
        assert self._run is not None
        transition, self.num_steps = self._run.advance()
        return transition

    def finish(self) -> int:
        return 0 if self._run is None else self._run.finish()

    def synchronize(self) -> None:
        if self._run is not None:
            self._run.synchronize()

    def check(self) -> None:
        if self._crew is not None:
            self._crew.poll()

    def metrics(self) -> dict[str, float]:
        return self._run.metrics() if isinstance(self._run, ActorLearner) else {}

    @property
    def num_restarts(self) -> int:
        """Workers replaced in this run."""
        return 0 if self._crew is None else self._crew.num_restarts

    @property
    def worker_steps(self) -> list[int]:
        """Env steps that each worker has taken."""
        return [] if self._crew is None else self._crew.block["num_steps"].tolist()

    @property
    def worker_pids(self) -> dict[int, int]:
        """The process id of each worker that is at work."""
        return {} if self._crew is None else self._crew.pids

    def teardown(self) -> None:
        """End the workers. What they have learned is in the agent."""
        if self._crew is not None:
            self._crew.close()


class _Reports:
    """In the place of a memory where the workers have their own: its batches are what they report."""

    source: Any = ()

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def add(self, transition: Transition | None) -> None:
        """There is none."""

    def batches(self) -> Iterator[Batch]:
        """The reports that nobody has read."""
        while self.source:
            yield self.source.popleft()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was saved."""
