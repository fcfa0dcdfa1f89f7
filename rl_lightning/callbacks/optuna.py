"""Stop runs that Optuna finds hopeless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from rl_lightning.types import ConfigurationError

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


class OptunaPruner(pl.Callback):
    """Report each evaluation to Optuna, and end the trial if it should be pruned.

    `optuna.TrialPruned` then comes out of `Trainer.fit`; `study.optimize` takes it as it is meant. Scores, logs and the
    best agent of the pruned trial are kept.

    Args:
        trial: the `optuna.Trial` of this run.
        monitor: the score to report.
    Raises:
        ConfigurationError: Optuna is not installed.
    """

    def __init__(self, trial: Any, *, monitor: str = "eval/mean") -> None:
        check_optuna(type(self).__name__)
        self.trial = trial
        self.monitor = monitor

    def on_validation_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        score = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or trainer.state.fn != "fit" or score is None:
            return
        report(self.trial, score.item(), trainer.global_step)


def report(trial: Any, score: float, step: int) -> None:
    """Tell a trial its score at an env step.

    Raises:
        optuna.TrialPruned: it is not worth going on.
    """
    import optuna

    trial.report(score, step)
    if trial.should_prune():
        raise optuna.TrialPruned(f"pruned at env step {step:_} with a score of {score:.4g}")


def check_optuna(name: str) -> None:
    """Whether Optuna is there for the class `name`.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f'{name} needs Optuna: pip install "rl-lightning[optuna]".') from error
