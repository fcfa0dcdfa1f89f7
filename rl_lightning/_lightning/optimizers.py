"""Several optimizers at once, which Lightning's own loop could not tell apart and refuses; or none."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.core import optimizer as lightning_optimizer
from pytorch_lightning.strategies import Strategy

from rl_lightning.module import RLModule


def allow_several_optimizers(strategy: Strategy) -> None:
    """Let `configure_optimizers` return several: here the agent names the optimizer of each loss.

    `automatic_optimization = False`, Lightning's way, would switch off clipping, accumulation and schedulers.
    """
    # a partial of a module's function, for launchers that pickle the strategy
    strategy.setup_optimizers = partial(_setup_optimizers, strategy)  # type: ignore[method-assign]


def _setup_optimizers(strategy: Strategy, trainer: pl.Trainer) -> None:
    module = trainer.lightning_module
    if isinstance(module, RLModule) and not module.named_optimizers():  # the agent has its own; Lightning would warn
        strategy.optimizers, strategy.lr_scheduler_configs = [], []
        return
    check = lightning_optimizer._validate_multiple_optimizers_support
    lightning_optimizer._validate_multiple_optimizers_support = _accept
    try:
        type(strategy).setup_optimizers(strategy, trainer)
    finally:
        lightning_optimizer._validate_multiple_optimizers_support = check


def _accept(optimizers: list[Any], model: pl.LightningModule) -> None:
    """In the place of Lightning's check."""
