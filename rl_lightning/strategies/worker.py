"""What a worker of asynchronous training is, whatever its mode: envs of its own, stepped until it is told to stop."""

from __future__ import annotations

import cProfile
import functools
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl_lightning.agents import Agent, ForeignAgent
from rl_lightning.envs import EnvRecipe
from rl_lightning.strategies.gather import BatchStrategy
from rl_lightning.types import Transition
from rl_lightning.workers import Counter, SharedBlock, WorkerContext

REPORT_S = 0.05
"""About how often, in seconds, a worker says what it has learned and which episodes have ended."""


@dataclass(frozen=True)
class Job:
    """What every worker is told when it starts.

    Attributes:
        recipe: of its envs.
        make_env: makes the one env of worker i instead.
        seeds: one a worker: of its envs and its random generators.
        hooks: called as `hook(env, agent, step)` for every env step.
        counter: hands out the numbers of env steps.
        limit: workers stop at the env step of this number; infinity for never.
        profile_dir: where worker i writes a profile, `profile-{i}.out`; None: nowhere.
        block: `num_steps` [num_workers] int64, env steps each has taken; `num_restarts` [num_workers] int64, how often
            each was replaced; and what the mode adds.
    """

    recipe: EnvRecipe
    make_env: Callable[[int], Any] | None
    seeds: Sequence[int]
    hooks: Sequence[Callable[[Any, Any, int], object]]
    counter: Counter
    limit: float
    profile_dir: Path | None
    block: SharedBlock

    def recipe_of(self, number: int) -> EnvRecipe:
        """How worker `number` makes its envs."""
        if self.make_env is None:
            return self.recipe
        return EnvRecipe(functools.partial(self.make_env, number), max_episode_len=self.recipe.max_episode_len)


class Worker(ABC):
    """Steps its envs, counts every step, and calls the hooks. The loop::

        until stopped, or the last env step is taken:
            transition = strategy.advance()
            self.take(transition)               # learn from it, or hand it on
            count it, call the hooks

    Args:
        context: of this process.
        job: what it was told.
        agent: what acts.
    """

    def __init__(self, context: WorkerContext, job: Job, agent: Agent) -> None:
        self.context, self.job, self.agent = context, job, agent
        self.number = context.number
        path = [int(job.block["num_restarts"][self.number])]
        seed = job.seeds[self.number]
        if path != [0]:  # not the same episodes again
            seed = int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1)[0]) >> 2
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self._num_reported = 0
        self.pool = job.recipe_of(self.number).make()
        context.beat()
        try:
            self.strategy = BatchStrategy()
            self.strategy.setup(agent, self.pool, seed=seed, device=torch.device("cpu"), dtype=torch.float32)
        except BaseException:
            self.pool.close()
            raise

    @abstractmethod
    def take(self, transition: Transition) -> None:
        """What to do with one step of the envs."""

    def may_act(self) -> bool:
        """Whether to go on; called before the agent acts."""
        return not self.context.stopping

    def report(self, **more: Any) -> None:
        """Tell the parent which episodes have ended since the last time, and whatever else."""
        episodes = self.strategy.episodes
        num_new = episodes.num_finished - self._num_reported
        self._num_reported = episodes.num_finished
        if num_new or more:
            returns, lengths = list(episodes.recent_returns), list(episodes.recent_lengths)
            first = max(len(returns) - num_new, 0)
            news = {"num_finished": num_new, "returns": returns[first:], "lengths": lengths[first:]}
            self.context.send({**news, **more})

    def run(self) -> None:
        """Go on until the end; the envs are closed whatever happens."""
        directory = self.job.profile_dir
        try:
            if directory is None:
                self._run()
            else:
                profile = cProfile.Profile()
                profile.runcall(self._run)
                profile.dump_stats(str(directory / f"profile-{self.number}.out"))
        finally:
            self.pool.close()

    def _run(self) -> None:
        context, strategy, job, number = self.context, self.strategy, self.job, self.number
        num_steps, hooks, agent = job.block["num_steps"], job.hooks, self.agent
        given = agent.foreign if isinstance(agent, ForeignAgent) else agent
        next_report = time.monotonic() + REPORT_S
        while self.may_act():
            transition = strategy.advance()
            self.take(transition)
            taken = strategy.num_steps
            last = context.env_step = job.counter.take(taken)
            num_steps[number] += taken
            if hooks:
                for step in range(last - taken + 1, last + 1):
                    for hook in hooks:
                        hook(self.pool.env, given, step)
            context.beat()
            if last >= job.limit:
                break
            if time.monotonic() >= next_report:
                self.report()
                next_report = time.monotonic() + REPORT_S
        self.report()
