"""Evaluation in a process of its own, while training goes on."""

from __future__ import annotations

import copy
import time
from typing import Any

from rl_lightning.agents import Agent
from rl_lightning.envs import EnvRecipe
from rl_lightning.evaluation import EpisodeResult, EvaluationResult, evaluate
from rl_lightning.strategies.sharing import Parts
from rl_lightning.workers import Supervisor, WorkerContext

_NAP_S = 0.01


class BackgroundEvaluator:
    """Evaluates a copy of an agent in another process.

    Args:
        agent: built; one of ours.
        recipe: of the envs to evaluate in.
    Attributes:
        is_busy: whether an evaluation is going on.
    """

    def __init__(self, agent: Agent, recipe: EnvRecipe) -> None:
        self._parts = Parts({"agent": agent}, {})
        self._copy = self._parts.shared_copy()
        self._supervisor = Supervisor(1)
        self._supervisor.start(0, _serve, self._copy, recipe)
        self.is_busy = False

    def start(self, **arguments: Any) -> None:
        """Evaluate the agent as it is now. `arguments`: those of `evaluate`."""
        assert not self.is_busy
        self._copy.copy_(self._parts)
        self._supervisor.send(0, arguments)
        self.is_busy = True

    def result(self, timeout_s: float = 0.0) -> tuple[EvaluationResult, list[EpisodeResult]] | None:
        """What the evaluation found, and its episodes; None while it goes on, after waiting so long.

        Raises:
            WorkerError: the process failed.
        """
        for _, found in self._supervisor.poll(timeout_s):
            self.is_busy = False
            return found  # type: ignore[no-any-return]
        return None

    def close(self) -> None:
        """End the process. May be called twice."""
        self._supervisor.stop()


def _serve(context: WorkerContext, shared: Parts, recipe: EnvRecipe) -> None:
    """The whole life of the process."""
    agent = copy.deepcopy(shared.modules["agent"])
    parts, pool = Parts({"agent": agent}, {}), recipe.make()
    try:
        while not context.stopping:
            for arguments in context.messages():
                parts.copy_(shared)
                episodes: list[EpisodeResult] = []
                result = evaluate(agent, pool, on_episode=episodes.append, **arguments)
                context.send((result, episodes))
            context.beat()
            time.sleep(_NAP_S)
    finally:
        pool.close()
