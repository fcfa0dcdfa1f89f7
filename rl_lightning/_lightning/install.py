"""Putting our loops in the place of Lightning's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.trainer.states import RunningStage, TrainerFn

from rl_lightning._lightning.checkpoint import RLCheckpointConnector
from rl_lightning._lightning.checkpoint_io import RLCheckpointIO
from rl_lightning._lightning.evaluation_loops import RLEvaluationLoop, RLPredictionLoop
from rl_lightning._lightning.fit_loop import RLFitLoop, RLTrainingEpochLoop
from rl_lightning._lightning.logger_connector import RLLoggerConnector
from rl_lightning._lightning.optimizers import allow_several_optimizers
from rl_lightning._lightning.signals import RLSignalConnector

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


def install_loops(trainer: Trainer) -> None:
    """Replace Lightning's loops by ours, keeping the limits that its constructor worked out."""
    stock, inference = trainer.fit_loop, trainer.validate_loop.inference_mode
    allow_several_optimizers(trainer.strategy)
    trainer._logger_connector = RLLoggerConnector(trainer)
    trainer._checkpoint_connector = RLCheckpointConnector(trainer)
    trainer._signal_connector = RLSignalConnector(trainer)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = RLCheckpointIO()
    trainer.fit_loop = RLFitLoop(trainer, min_epochs=stock.min_epochs, max_epochs=stock.max_epochs)
    trainer.fit_loop.user_min_epochs = stock.min_epochs
    max_steps = -1 if trainer.fast_dev_run else stock.max_steps  # a learning step may take many env steps
    trainer.fit_loop.epoch_loop = RLTrainingEpochLoop(trainer, min_steps=stock.min_steps, max_steps=max_steps)
    trainer.validate_loop = RLEvaluationLoop(trainer, TrainerFn.VALIDATING, RunningStage.VALIDATING, True, inference)
    trainer.test_loop = RLEvaluationLoop(trainer, TrainerFn.TESTING, RunningStage.TESTING, True, inference)
    trainer.predict_loop = RLPredictionLoop(trainer, inference_mode=inference)
