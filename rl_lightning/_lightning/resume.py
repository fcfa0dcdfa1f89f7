"""The state of a run, beside what Lightning saves: taken from the fit loop, and put back into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from rl_lightning.agents import ForeignAgent
from rl_lightning.memory.row_store import FOLDER
from rl_lightning.randomness import random_state
from rl_lightning.types import ConfigurationError, Transition, tree_map

if TYPE_CHECKING:
    from rl_lightning._lightning.fit_loop import RLFitLoop
    from rl_lightning.trainer import Trainer

_FORMAT = 1


def run_state(trainer: Trainer, directory: Path | None = None) -> dict[str, Any] | None:
    """What it takes to go on from here: tensors and plain data. None before the first `fit`.

    Args:
        trainer: of the run.
        directory: where the checkpoint goes, and beside it the rows of a large memory. None: it is not known, or not
            on this machine.
    """
    if trainer.memory is None:
        return None
    state = trainer.fit_loop.final_state or state_beside_memory(trainer)
    return {**state, "memory": _memory_state(trainer, directory)}


def state_beside_memory(trainer: Trainer) -> dict[str, Any]:
    """The small part of `run_state`, some of which is gone when `fit` is over."""
    loop, agent, strategy = trainer.fit_loop, trainer.lightning_module.agent, trainer.rl_strategy
    trainer.prove_exactness()
    random_before = loop.epoch_loop.val_loop.random_before
    connector = trainer._logger_connector
    is_foreign = isinstance(agent, ForeignAgent)
    return {
        "format": _FORMAT,
        "seed": trainer.seed,
        "random": random_state() if random_before is None else random_before,
        "loop": _loop_state(loop),
        "optimization": loop.optimization.state_dict(),
        "agent": {} if is_foreign else agent.run_state(),
        "gathering": None if is_foreign or loop.is_broken else strategy.state_dict(),
        "metrics": {name: value.item() for name, value in connector._callback_metrics.items() if value.numel() == 1},
        "progress_bar": {name: float(value) for name, value in connector._progress_bar_metrics.items()},
    }


FEW_BYTES = 10_000_000
"""Replay memories that take no more are part of the checkpoint; the rows of larger ones are in files beside it."""
MOST_BYTES = 500_000_000
"""Where that cannot be, larger ones are left out."""


def _memory_state(trainer: Trainer, directory: Path | None) -> dict[str, Any] | None:
    """What the agent learns from; None if it is no part of checkpoints."""
    memory = trainer.memory
    assert memory is not None
    if trainer.rl_strategy.learns_elsewhere or isinstance(trainer.lightning_module.agent, ForeignAgent):
        return None
    num_bytes = getattr(memory, "num_bytes", 0)
    if num_bytes > FEW_BYTES and trainer.row_store is not None and directory is not None:
        return trainer.row_store.save(directory) if trainer.is_global_zero else None
    if num_bytes > MOST_BYTES:
        rank_zero_warn(
            f"The memory has {num_bytes:_} bytes, and is left out of the checkpoint: above {MOST_BYTES:_} only a "
            "ReplayMemory is saved, and in a directory of this machine. A run that is resumed fills it anew before it "
            "learns on."
        )
        return None
    state: dict[str, Any] = memory.state_dict()
    return state


def _loop_state(loop: RLFitLoop) -> dict[str, Any]:
    return {
        "position": int(loop.position),
        "in_epoch": loop.in_epoch,
        "epoch_start": loop.epoch_start,
        "transition": _saved(loop.transition),
        "means": loop.means.state_dict(),
        "num_finished": loop.num_finished,
        "due": {name: getattr(loop, name) for name in _DUE},
        "last_eval": loop.last_eval,
        "last_log": [loop.last_log_step, loop.last_log_updates],
    }


_DUE = ("next_log", "next_batch_log", "next_eval")
"""Env steps at which something is due next. Where a checkpoint was saved between that step and the deed, it still is;
otherwise they follow from the clock and from the intervals, which may have been changed.
"""


def restore(loop: RLFitLoop, state: dict[str, Any], directory: Path | None) -> None:
    """Put back what `run_state` gave, once everything is set up; but for the random generators, which come last.

    Raises:
        ConfigurationError: it does not fit, or rows of the memory cannot be read.
    """
    trainer, saved = loop.trainer, state["loop"]
    agent, memory, strategy = trainer.lightning_module.agent, trainer.memory, trainer.rl_strategy
    assert memory is not None
    if state["memory"] is not None and not strategy.learns_elsewhere:
        if "segments" in state["memory"]:
            _load_rows(trainer, state["memory"], directory)
        else:
            memory.load_state_dict(state["memory"])
    _forget_what_came_later(loop, saved)
    agent.load_run_state(state["agent"])
    loop.optimization.load_state_dict(state["optimization"])
    lost = None
    if state["gathering"]:
        lost = strategy.load_state_dict(state["gathering"])
    elif not strategy.learns_elsewhere:
        lost = np.ones(trainer.num_train_envs, np.bool_)
    if lost is not None and hasattr(memory, "cut_episodes"):
        memory.cut_episodes(lost)
    loop.transition = _loaded(saved["transition"])
    loop.means.load_state_dict(saved["means"])
    loop.num_finished, loop.last_eval = saved["num_finished"], saved["last_eval"]
    if not state["gathering"]:
        loop.num_finished = strategy.episodes.num_finished  # nothing is known of those that ended before
    for name in _DUE:
        if saved["due"][name] <= loop.clock.env_steps:
            setattr(loop, name, saved["due"][name])
    loop.last_log_step, loop.last_log_updates = saved["last_log"]
    trainer._logger_connector.publish(state["metrics"])
    trainer._logger_connector._progress_bar_metrics.update(state["progress_bar"])


def _load_rows(trainer: Trainer, state: dict[str, Any], directory: Path | None) -> None:
    if trainer.row_store is None or directory is None:
        raise ConfigurationError(
            "The replay memory of this checkpoint is in files beside it, which can be loaded into a ReplayMemory, and "
            f"from a directory of this machine. Copy the checkpoint and the folder {FOLDER!r} there, side by side."
        )
    trainer.row_store.load(state, directory)


def _forget_what_came_later(loop: RLFitLoop, saved: dict[str, Any]) -> None:
    """Let TensorBoard drop what the run has logged after the checkpoint, in the same directory: it comes again."""
    step = loop.clock.env_steps
    first = step if saved["due"]["next_log"] <= step else step + 1
    for logger in loop.trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and loop.trainer.is_global_zero:
            event = Event(step=first, session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(event, first)


def _saved(transition: Transition | None) -> dict[str, Any] | None:
    if transition is None:
        return None
    return {name: _tensors(value) for name, value in transition._asdict().items()}


def _tensors(value: Any) -> Any:
    return None if value is None else tree_map(lambda array: torch.from_numpy(np.asarray(array)), value)


def _loaded(saved: dict[str, Any] | None) -> Transition | None:
    if saved is None:
        return None
    fields: Any = {
        name: None if value is None else tree_map(torch.Tensor.numpy, value) for name, value in saved.items()
    }
    return Transition(**fields)
