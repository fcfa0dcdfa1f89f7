"""Stock callbacks that take batches or `global_step` for something else than they are here, put right."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar, WeightAveraging

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


def on_our_clock(callback: pl.Callback, hook: Callable[..., Any], trainer: Trainer) -> Callable[..., Any]:
    """The callback's `on_train_batch_end` as our loop calls it."""
    if isinstance(callback, WeightAveraging):
        return _by_optimizer_steps(hook, trainer)
    if isinstance(callback, ProgressBar) and not isinstance(trainer.limit_train_batches, int):
        every = callback.refresh_rate if isinstance(callback, TQDMProgressBar) else 1
        return _by_env_steps(hook, trainer, max(1, every))
    return hook


def _by_optimizer_steps(hook: Callable[..., Any], trainer: Trainer) -> Callable[..., Any]:
    """`WeightAveraging` takes `global_step` for optimizer steps: of several on one env step it would see the first."""
    clock = trainer.fit_loop.clock
    last = clock.num_optimizer_steps

    def run(*args: Any) -> None:
        nonlocal last
        if clock.num_optimizer_steps == last:
            return
        last = clock.num_optimizer_steps
        env_steps, clock.env_steps = clock.env_steps, last
        try:
            hook(*args)
        finally:
            clock.env_steps = env_steps

    return run


def _by_env_steps(hook: Callable[..., Any], trainer: Trainer, every: int) -> Callable[..., Any]:
    """Progress bars show env steps, of which an epoch has a known number; those of learning steps nobody knows.

    Args:
        every: how many between two redraws; the bar itself would redraw only where the clock falls on a multiple.
    """
    loop = trainer.fit_loop
    last = (0, 0)

    def run(outputs: Any, batch: Any, batch_idx: int) -> None:
        nonlocal last
        done = min(loop.clock.env_steps - loop.epoch_start, int(loop.max_batches))
        shown = done if done == loop.max_batches else done // every * every
        if shown and last != (loop.epoch_start, shown):
            last = (loop.epoch_start, shown)
            hook(outputs, batch, shown - 1)

    return run
