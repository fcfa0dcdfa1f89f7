"""Values that change as training goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytorch_lightning as pl

from rl_lightning.types import ConfigurationError, Transition

if TYPE_CHECKING:
    from rl_lightning.module import RLModule
    from rl_lightning.trainer import Trainer


class LinearInterpolation(pl.Callback):
    """Move a value in a straight line from `start_value` to `stop_value`, by env steps; then it stays there.

    It is a function of `trainer.global_step` alone, so that a resumed run goes on where it was.

    Args:
        target: "learning_rate" (of every optimizer), or one of the agent's own values: "epsilon", "entropy_weight",
            "clip_range", ...
        start_value: at env step 0.
        stop_value: at env step `total_steps` and after.
        total_steps: env steps from start to stop. None: the Trainer's `max_steps`.
    """

    def __init__(self, target: str, *, start_value: float, stop_value: float, total_steps: int | None = None) -> None:
        if total_steps is not None and total_steps < 1:
            raise ConfigurationError(f"LinearInterpolation(total_steps={total_steps}) must be at least 1 env step.")
        self.target = target
        self.start_value = start_value
        self.stop_value = stop_value
        self.total_steps = total_steps
        self.from_agent = False

    without_transition = True

    @property
    def state_key(self) -> str:
        return self._generate_state_key(target=self.target)

    def value(self, step: int) -> float:
        """The value at an env step."""
        assert self._total is not None
        if step >= self._total:
            return self.stop_value
        return self.start_value + (self.stop_value - self.start_value) * step / self._total

    def setup(self, trainer: Trainer, pl_module: RLModule, stage: str) -> None:  # type: ignore[override]
        """Find the value before training.

        Raises:
            ConfigurationError: the agent has no such value, or there is no number of steps to interpolate over.
        """
        if stage != "fit":
            return
        if pl_module.agent.learns_by_itself:
            raise ConfigurationError(
                f"LinearInterpolation(target={self.target!r}) does not reach {type(pl_module.given_agent).__name__}, "
                "which learns by itself. Use StepHooks([LinearInterpolationHook(total_steps, start_value, stop_value, "
                "setter)]), whose setter puts the value where it belongs."
            )
        if self.target != "learning_rate" and self.target not in pl_module.agent.tunables:
            known = ", ".join([*pl_module.agent.tunables, "learning_rate"])
            raise ConfigurationError(
                f"LinearInterpolation(target={self.target!r}): {type(pl_module.agent).__name__} has no such value. "
                f"It has: {known}."
            )
        self._total = self.total_steps or trainer.max_steps
        if self._total < 1:
            raise ConfigurationError(
                f"LinearInterpolation(target={self.target!r}) needs total_steps, because the Trainer has no max_steps."
            )

    def on_train_start(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        self._set = self._setter(trainer, pl_module)
        self._done = False
        self._set(self.value(trainer.global_step))

    def on_env_step(self, trainer: Trainer, pl_module: RLModule, transition: Transition) -> None:
        """Set the value for the next step."""
        if not self._done:
            step = trainer.global_step
            self._set(self.value(step))
            self._done = step >= self._total

    def _setter(self, trainer: Trainer, pl_module: RLModule) -> Callable[[float], object]:
        if self.target != "learning_rate":
            return getattr(pl_module.agent, self.target).fill_
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]

        def set_learning_rate(value: float) -> None:
            for group in groups:
                group["lr"] = value

        return set_learning_rate
