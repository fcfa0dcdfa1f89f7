"""Our own contenders: the whole `Trainer.fit`, with everything that it does by default."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from typing import Any

import pytorch_lightning as pl

from rl_lightning import Trainer
from rl_lightning.callbacks import BestAgent, Evaluation, StepHooks
from rl_lightning.strategies import AsyncStrategy
from rl_lightning.workers import SharedBlock


def fit(agent: Any, env: Any, steps: int, *, evaluates: bool = True, **arguments: Any) -> float:
    """Seconds of `Trainer.fit`: progress bar, TensorBoard logger, checkpoints, and evaluation at its defaults."""
    callbacks = [Evaluation(), BestAgent()] if evaluates else []
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(max_steps=steps, default_root_dir=root, callbacks=callbacks, **arguments)
        start = time.perf_counter()
        trainer.fit(agent, env)
        return time.perf_counter() - start


def fit_compiled(agent: Any, env: Any, steps: int, *, skip: int) -> float:
    """The same with `compile=True`, once it has compiled: after `skip` learning steps, scaled to all env steps."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ImportError("torch compiles with a C++ compiler, and there is none")
    watch = _Watch(skip)
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile=True")  # it says where it could not
        callbacks = [Evaluation(), BestAgent(), watch]
        trainer = Trainer(max_steps=steps, default_root_dir=root, callbacks=callbacks, compile=True)
        trainer.fit(agent, env)
        end = time.perf_counter()
    num_steps = trainer.global_step - watch.step
    if not watch.start or num_steps <= 0:
        raise ValueError(f"{steps} env steps are too few: nothing is left to time after {skip} learning steps.")
    return steps * (end - watch.start) / num_steps


def fit_async(agent: Any, env: Any, steps: int, num_workers: int) -> float:
    """Seconds of `Trainer.fit` with workers, from their first env step to the last; nothing is evaluated."""
    watch = _FirstStep()
    with tempfile.TemporaryDirectory() as root:
        strategy = AsyncStrategy(num_workers)
        trainer = Trainer(max_steps=steps, default_root_dir=root, callbacks=[StepHooks([watch])], strategy=strategy)
        trainer.fit(agent, env)
        return time.perf_counter() - watch.started["at"][0]


class _FirstStep:
    """A hook that notes when the workers took their first step: `perf_counter` is the same in all processes."""

    def __init__(self) -> None:
        self.started = SharedBlock({"at": ((1,), "f8")})

    def __call__(self, env: Any, agent: Any, step: int) -> None:
        if step == 1:
            self.started["at"][0] = time.perf_counter()


class _Watch(pl.Callback):
    """Notes when the first `skip` learning steps are done."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.start = 0.0
        self.step = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.start and trainer.num_updates >= self.skip:
            self.start, self.step = time.perf_counter(), trainer.global_step
