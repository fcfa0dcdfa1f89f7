"""Hooks of the functional interface (`rl_lightning.experiments`) among a Trainer's callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from rl_lightning.types import Transition

if TYPE_CHECKING:
    from rl_lightning.module import RLModule
    from rl_lightning.trainer import Trainer


class StepHooks(pl.Callback):
    """Call hooks for every env step, after the agent has learned from it.

    With several envs they are called once for each, numbered consecutively. Under `AsyncStrategy` they are sent to the
    workers, and called there, with the worker's env and agent; each number is used once.

    Args:
        hooks: each called as `hook(env, agent, step)`: the training env (or vector env), the agent as it was given to
            the Trainer, and the number of the step; the first is 1.
    """

    without_transition = True

    def __init__(self, hooks: Sequence[Callable[[Any, Any, int], object]]) -> None:
        self.hooks = list(hooks)
        self._last = 0
        self._env: Any = None
        self._agent: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        self._last = trainer.global_step
        self._env, self._agent = trainer.train_env, pl_module.given_agent

    def on_env_step_end(self, trainer: Trainer, pl_module: RLModule, transition: Transition) -> None:
        """Call the hooks."""
        if self._env is None:  # the workers do
            return
        last, self._last = self._last, trainer.global_step
        for step in range(last + 1, self._last + 1):
            for hook in self.hooks:
                hook(self._env, self._agent, step)


class EvaluationHooks(pl.Callback):
    """Call hooks after every evaluation, before a new best score is acknowledged.

    Args:
        hooks: each called as `hook(env=, agent=, evaluator=, step=, eval_stats=, agent_stats=, env_stats=)`: the
            evaluation env, the agent as it was given to the Trainer, an object with the best score so far as
            `max_score`, the env step, the evaluation's statistics as a dict, the agent's and the env's own as lists of
            pairs.
        evaluator: the object to hand on. None: these hooks themselves.
    Attributes:
        max_score: the best mean return of all evaluations before this one; -inf before the first.
    """

    def __init__(self, hooks: Sequence[Callable[..., object]], *, evaluator: Any = None) -> None:
        self.hooks = list(hooks)
        self.evaluator = self if evaluator is None else evaluator
        self.max_score = float("-inf")

    def on_validation_end(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        result = trainer.last_evaluation
        assert result is not None
        statistics = result.statistics()
        for hook in self.hooks:
            hook(
                env=trainer.eval_env,
                agent=pl_module.given_agent,
                evaluator=self.evaluator,
                step=trainer.global_step,
                eval_stats=statistics,
                agent_stats=list(trainer.agent_statistics.items()),
                env_stats=list(result.env_statistics.items()),
            )
        if statistics["mean"] > self.max_score:  # never, if it is NaN
            self.max_score = statistics["mean"]

    def state_dict(self) -> dict[str, Any]:
        return {"max_score": self.max_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.max_score = state_dict["max_score"]
