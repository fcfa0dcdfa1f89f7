"""Stop when the agent is good enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


class SuccessfulScore(pl.Callback):
    """Stop training when the best evaluation so far has reached a score.

    Args:
        score: the score to reach, in the env's own units.
        monitor: which statistic of the evaluation.
    Attributes:
        best: the best score so far; None before the first evaluation.
    """

    def __init__(self, score: float, *, monitor: str = "eval/mean") -> None:
        self.score = score
        self.monitor = monitor
        self.best: float | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or trainer.state.fn != "fit" or value is None:
            return
        current = value.item()
        if self.best is None or current > self.best:
            self.best = current
        if self.best >= self.score:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
