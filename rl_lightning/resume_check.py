"""A proof that an experiment resumes exactly: run it straight and interrupted, and compare what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from rl_lightning._lightning import run_state
from rl_lightning.callbacks import Evaluation
from rl_lightning.env_module import EnvModule
from rl_lightning.module import RLModule
from rl_lightning.trainer import Trainer
from rl_lightning.types import ConfigurationError


def check_resume(make: Callable[[Path], tuple[Trainer, RLModule, EnvModule]], directory: Path) -> str | None:
    """Train straight; train again from a checkpoint of the half of it; compare the ends, bit for bit.

    Args:
        make: the experiment, made anew each time, with `max_steps`, and with its files in the directory that it gets.
        directory: an empty one.
    Returns:
        None where both ends are the same; else where they differ first, such as "memory.table.rows.reward".
    Raises:
        ConfigurationError: training ended before the half of `max_steps`.
    """
    ends: list[dict[str, Any]] = []
    checkpoint = directory / "half.ckpt"
    for name in ("straight", "resumed"):
        trainer, module, data = make(directory / name)
        saver = _SaveOnce(checkpoint, trainer.max_steps // 2)
        resumes = bool(ends)
        if not resumes:
            trainer.callbacks.append(saver)
        trainer.fit(module, data, ckpt_path=checkpoint if resumes else None)
        if not checkpoint.exists():
            raise ConfigurationError(
                f"training ended at env step {trainer.global_step:_}, before the {saver.step:_} at which it was to be "
                "saved. Ask for fewer steps, or leave out what ends training early."
            )
        ends.append(final_state(trainer))
    return first_difference(ends[0], ends[1])


def final_state(trainer: Trainer) -> dict[str, Any]:
    """All that is known when `fit` is over, but for times."""
    run = run_state(trainer) or {}
    evaluations = [callback.history for callback in trainer.callbacks if isinstance(callback, Evaluation)]
    return {
        "weights": dict(trainer.lightning_module.agent.state_dict()),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "clock": dict(vars(trainer.fit_loop.clock)),
        "evaluations": evaluations,
        **{name: part for name, part in run.items() if name not in ("metrics", "progress_bar")},
    }


def first_difference(one: Any, other: Any, path: str = "") -> str | None:
    """Where two nested states differ first: tensors and numbers bit for bit, NaN being like NaN."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return path
        a, b = (tensor.detach().cpu().numpy() for tensor in (one, other))
        return None if np.array_equal(a, b, equal_nan=True) else path
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{path}: only one has {', '.join(sorted(map(str, one.keys() ^ other.keys())))}"
        pairs = [(f"{path}.{key}".lstrip("."), one[key], other[key]) for key in one]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{path}: {len(one)} and {len(other)} items"
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other or (one != one and other != other) else f"{path}: {one} and {other}"
    return next((found for name, a, b in pairs if (found := first_difference(a, b, name)) is not None), None)


class _SaveOnce(pl.callbacks.Checkpoint):
    """Save as soon as the clock has reached a step, in the middle of whatever goes on."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_env_step(self, trainer: Trainer, pl_module: RLModule, transition: Any) -> None:
        if trainer.global_step >= self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)
