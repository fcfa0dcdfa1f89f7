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


def fit_async(agent: Any, env: Any, steps: int, num_workers: int, *, compile: bool = False) -> float:
    """Seconds of `Trainer.fit` with workers, once each has taken some steps, scaled to all; nothing is evaluated."""
    watch = _Started()
    with tempfile.TemporaryDirectory() as root:
        strategy = AsyncStrategy(num_workers)
        hooks = StepHooks([watch])
        trainer = Trainer(max_steps=steps, default_root_dir=root, callbacks=[hooks], strategy=strategy, compile=compile)
        trainer.fit(agent, env)
        end, all_steps = time.perf_counter(), trainer.global_step
    start, step = watch.last()
    return steps * (end - start) / (all_steps - step)


class _Started:
    """A hook that notes when each worker has taken its 20th step: `perf_counter` is the same in all processes."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._noted = SharedBlock({"time": ((4096,), "f8"), "step": ((4096,), "i8")})

    def __call__(self, env: Any, agent: Any, step: int) -> None:
        self._num_steps += 1
        if self._num_steps == 20:
            place = os.getpid() % 4096
            self._noted["time"][place], self._noted["step"][place] = time.perf_counter(), step

    def last(self) -> tuple[float, int]:
        """Of the worker that was the last: the time, and the env step."""
        place = self._noted["time"].argmax()
        return float(self._noted["time"][place]), int(self._noted["step"][place])


class _Watch(pl.Callback):
    """Notes when the first `skip` learning steps are done."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.start = 0.0
        self.step = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.start and trainer.num_updates >= self.skip:
            self.start, self.step = time.perf_counter(), trainer.global_step
