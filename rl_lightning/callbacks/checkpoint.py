"""Checkpoints every so many env steps."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from rl_lightning._lightning import CrossingCheckpoint


class Checkpoint(CrossingCheckpoint):
    """`ModelCheckpoint` on the clock of env steps: `every_n_train_steps` fires when a multiple of it is crossed.

    With several envs or long rollouts the clock seldom falls on a multiple, which is where the stock one saves.

    Args:
        dirpath: where to save. None: `checkpoints/` in the run's log directory.
        filename: a template such as "{step}"; None: "{epoch}-{step}".
        monitor: the score that orders checkpoints. None: the newest is kept.
        mode: "max" if a higher score is better (the default, unlike Lightning's), "min" if a lower one is.
        save_top_k: how many of the best to keep; -1 for all, 0 for none.
        save_last: also keep `last.ckpt`, for `fit(ckpt_path="last")`.
        save_weights_only: leave out optimizers and callbacks; such a checkpoint cannot be resumed.
        every_n_train_steps: env steps between two checkpoints.
        every_n_epochs: epochs between two checkpoints.
        train_time_interval: time between two checkpoints.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        *,
        monitor: str | None = None,
        mode: str = "max",
        save_top_k: int = 1,
        save_last: bool | None = None,
        save_weights_only: bool = False,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=save_last,
            save_weights_only=save_weights_only,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
            # what falls due before the first evaluation then waits for it; by default it would be forgotten
            save_on_train_epoch_end=False if monitor is not None and monitor.startswith("eval/") else None,
        )
