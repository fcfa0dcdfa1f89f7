"""`ModelCheckpoint` on the clock of env steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer import call

from rl_lightning._lightning.clock import next_multiple

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


class CrossingCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` whose `every_n_train_steps` fires when the clock crosses a multiple."""

    _next_save: int | float = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._next_save = next_multiple(trainer.global_step, self._every_n_train_steps)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self._every_n_train_steps
        if trainer.global_step >= self._next_save:
            self._next_save = next_multiple(trainer.global_step, every)
            self._every_n_train_steps = 1  # every step is a multiple of one: the parent saves now
        try:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        finally:
            self._every_n_train_steps = every


def saves_every_n_steps(checkpoint: ModelCheckpoint) -> int:
    """The `every_n_train_steps` of a checkpoint callback; 0 if it does not save by steps."""
    return int(checkpoint._every_n_train_steps)


def dump_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Everything a checkpoint holds, as it is now."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def write_checkpoint(trainer: Trainer, checkpoint: dict[str, Any], path: Any) -> None:
    """Save what was dumped earlier, with the callbacks' state of now: they have since seen the evaluation."""
    checkpoint["callbacks"] = call._call_callbacks_state_dict(trainer)
    trainer.strategy.save_checkpoint(checkpoint, path)
