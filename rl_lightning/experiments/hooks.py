"""What may be called after every step, and after every evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from rl_lightning.callbacks.optuna import check_optuna, report
from rl_lightning.types import ConfigurationError


class StepHook(ABC):
    """Called after every env step of training. Any callable with these arguments will do as well."""

    @abstractmethod
    def __call__(self, env: Any, agent: Any, step: int) -> None:
        """Called with the training env (or vector env), the agent, and the number of the step, which starts at 1."""


class LinearInterpolationHook(StepHook):
    """Move a value in a straight line from `start_value` at step 1 to `stop_value` at `total_steps`; there it stays.

    Args:
        total_steps: env steps.
        start_value: at step 1 and before.
        stop_value: at `total_steps` and after.
        setter: `setter(env, agent, value)` puts the value where it belongs.
    Raises:
        ConfigurationError: `total_steps` is below 1.
    """

    def __init__(
        self, total_steps: int, start_value: float, stop_value: float, setter: Callable[[Any, Any, float], object]
    ) -> None:
        if total_steps < 1:
            raise ConfigurationError(f"LinearInterpolationHook(total_steps={total_steps}) must be at least 1 env step.")
        self.total_steps = total_steps
        self.start_value = start_value
        self.stop_value = stop_value
        self.setter = setter

    def __call__(self, env: Any, agent: Any, step: int) -> None:
        self.setter(env, agent, self._value(step))

    def _value(self, step: int) -> float:
        if step >= self.total_steps:
            return self.stop_value
        part = max(0, step - 1) / (self.total_steps - 1)
        return self.start_value + (self.stop_value - self.start_value) * part


class EvaluationHook(ABC):
    """Called after every evaluation, before a new best score is acknowledged.

    Attributes:
        support_train_agent: whether it works in `train_agent_with_evaluation`.
        support_train_agent_batch: in `train_agent_batch_with_evaluation`.
        support_train_agent_async: in `train_agent_async`.
    """

    support_train_agent = False
    support_train_agent_batch = False
    support_train_agent_async = False

    @abstractmethod
    def __call__(
        self,
        env: Any,
        agent: Any,
        evaluator: Any,
        step: int,
        eval_stats: dict[str, float],
        agent_stats: list[tuple[str, float]],
        env_stats: list[tuple[str, float]],
    ) -> None:
        """Called with what was evaluated, and what came out.

        Args:
            env: the evaluation env, or vector env.
            agent: the agent.
            evaluator: who evaluated; its `max_score` is the best score of all evaluations before this one.
            step: env steps of training so far.
            eval_stats: `EvaluationResult.statistics()`.
            agent_stats: what the agent counts of itself.
            env_stats: what the env counted during the evaluation.
        """


class OptunaPrunerHook(EvaluationHook):
    """Report each mean return to Optuna, and end the trial (`optuna.TrialPruned`) if it should be pruned.

    Args:
        trial: the `optuna.Trial` of this run.
    Raises:
        ConfigurationError: Optuna is not installed.
    """

    support_train_agent = True
    support_train_agent_batch = True

    def __init__(self, trial: Any) -> None:
        check_optuna(type(self).__name__)
        self.trial = trial

    def __call__(
        self,
        env: Any,
        agent: Any,
        evaluator: Any,
        step: int,
        eval_stats: dict[str, float],
        agent_stats: list[tuple[str, float]],
        env_stats: list[tuple[str, float]],
    ) -> None:
        report(self.trial, eval_stats["mean"], step)
