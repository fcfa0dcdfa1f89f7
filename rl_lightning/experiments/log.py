"""Episodes of training and evaluation, in the words of a `logging.Logger`."""

from __future__ import annotations

from collections import deque
from logging import Logger
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pytorch_lightning as pl

from rl_lightning._lightning import next_multiple
from rl_lightning.evaluation import EpisodeResult
from rl_lightning.types import Transition

if TYPE_CHECKING:
    from rl_lightning.module import RLModule
    from rl_lightning.trainer import Trainer


class EpisodeLog(pl.Callback):
    """Log every training episode, or every `interval` env steps the mean of the last ones.

    Args:
        logger: where to.
        outdir: named in each line.
        interval: env steps between two lines. None: one line an episode.
        window: over how many of the last finished episodes to average.
    """

    without_transition = True

    def __init__(self, logger: Logger, outdir: Path, *, interval: int | None = None, window: int = 1) -> None:
        self._logger, self._outdir, self._interval = logger, outdir, interval
        self._returns: deque[float] = deque(maxlen=window)
        self._num_episodes = 0
        self._next_line: int | float = float("inf")

    def on_train_start(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        self._num_episodes = trainer.num_episodes
        self._next_line = next_multiple(trainer.global_step, self._interval)

    def on_env_step_end(self, trainer: Trainer, pl_module: RLModule, transition: Transition) -> None:
        """Log what has ended, if it is time to."""
        ended = trainer.num_episodes - self._num_episodes
        if ended:
            self._num_episodes = trainer.num_episodes
            self._returns.extend(list(trainer.rl_strategy.episodes.recent_returns)[-ended:])
        if ended if self._interval is None else trainer.global_step >= self._next_line:
            self._next_line = next_multiple(trainer.global_step, self._interval)
            last = self._returns[-1] if self._returns else float("nan")
            mean = fmean(self._returns) if self._returns else float("nan")
            text = f"R:{last}" if self._interval is None else f"last_R:{last} average_R:{mean}"
            where = f"outdir:{self._outdir} step:{trainer.global_step} episode:{trainer.num_episodes}"
            self._logger.info("%s %s", where, text)
            self._logger.info("statistics:%s", trainer.agent_statistics)


class EvaluationLog(pl.Callback):
    """Log every evaluation, and each of its episodes that counts.

    It follows `Evaluation` among the callbacks: the evaluation's row is then written.

    Args:
        logger: where to.
        outdir: named in the line of the evaluation.
    """

    def __init__(self, logger: Logger, outdir: Path) -> None:
        self._logger, self._outdir = logger, outdir

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: RLModule,
        outputs: object,
        batch: EpisodeResult,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._logger.info("evaluation episode %s length:%s R:%s", batch.index, batch.length, batch.return_)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        assert trainer.last_evaluation is not None
        statistics = trainer.last_evaluation.statistics()
        self._logger.info("outdir:%s step:%s evaluation:%s", self._outdir, trainer.global_step, statistics)
