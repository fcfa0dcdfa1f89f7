"""What checkpoints hold, and `ModelCheckpoint` on the clock of env steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from rl_lightning._lightning.clock import next_multiple
from rl_lightning._lightning.resume import run_state
from rl_lightning.files import whole_file
from rl_lightning.memory.row_store import check_rows
from rl_lightning.types import ConfigurationError

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


RUN_KEY = "rl_lightning_run"
"""Where in a checkpoint the state of the run is: what it takes to go on as if nothing had happened."""


class RLCheckpointConnector(_CheckpointConnector):
    """Checkpoints that hold the run besides: envs, memory, random generators, and how far the loop has come."""

    trainer: Trainer
    directory: Path | None = None
    """Where the checkpoint goes that is being saved, if that is a directory of this machine."""

    def dump_checkpoint(self, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint: dict[str, Any] = super().dump_checkpoint(weights_only)
        state = None if weights_only else run_state(self.trainer, self.directory)
        if state is not None:
            checkpoint[RUN_KEY] = state
        return checkpoint

    def _select_ckpt_path(
        self, state_fn: TrainerFn, ckpt_path: Any, model_provided: bool, model_connected: bool
    ) -> Any:
        if ckpt_path == "auto":
            ckpt_path = newest_checkpoint(self.trainer)
        return super()._select_ckpt_path(state_fn, ckpt_path, model_provided, model_connected)

    def restore_training_state(self) -> None:
        super().restore_training_state()
        if self.trainer.state.fn == TrainerFn.FITTING:
            path = self.trainer.ckpt_path
            self.trainer.resume(self._loaded_checkpoint.get(RUN_KEY), None if path is None else local_directory(path))


def newest_checkpoint(trainer: Trainer) -> str | None:
    """The newest checkpoint of this run, or of the last one with the same root directory; None if there is none.

    Those that cannot be read are left out, with a warning. Where it lies in a logger's directory `version_N`, the
    logger goes on there.
    """
    given = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    own = [Path(directory) for directory in given if directory]
    for directory in own or _log_directories(trainer):
        for path in sorted(directory.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True):
            try:
                checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(path, map_location="cpu")
                check_rows(memory_of(checkpoint), directory)
            except ConfigurationError as error:
                rank_zero_warn(f"{error}. An older one is taken in its place.")
                continue
            if "optimizer_states" in checkpoint:
                if not own:
                    _go_on_in(trainer, directory.parent)
                return str(path)
    return None


@contextmanager
def saving_to(trainer: Trainer, path: Any) -> Iterator[None]:
    """While a checkpoint is saved: what is large lies beside it, and is removed there when no checkpoint needs it."""
    connector, directory = trainer._checkpoint_connector, local_directory(path)
    assert isinstance(connector, RLCheckpointConnector)
    connector.directory = directory
    try:
        yield
    finally:
        connector.directory = None
    if trainer.row_store is not None and directory is not None and trainer.is_global_zero:
        with suppress(OSError):  # what cannot be removed stays until next time
            trainer.row_store.clean(directory, memory_in, written=directory / Path(path).name)


def memory_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the replay memory whose rows are beside it; {} if there are none."""
    memory: dict[str, Any] = (checkpoint.get(RUN_KEY) or {}).get("memory") or {}
    return memory if "segments" in memory else {}


def memory_in(path: Path) -> dict[str, Any]:
    """The same of a file, without reading all of it; {} too, if it is none that somebody could go on from.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return memory_of(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
    except OSError:
        raise
    except Exception:  # torch raises whatever the bytes lead it to
        return {}


def local_directory(path: Any) -> Path | None:
    """Where a checkpoint is, absolute; None if that is not on this machine."""
    return None if "://" in str(path) else Path(path).absolute().parent


def _log_directories(trainer: Trainer) -> list[Path]:
    """Where runs with this root directory have saved, the last one first."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]
    roots = [Path(logger.root_dir) for logger in loggers] or [Path(trainer.default_root_dir)]
    found = [path for root in roots for path in root.glob("version_*/checkpoints")]
    numbered = [path for path in found if path.parent.name.removeprefix("version_").isdigit()]
    numbered.sort(key=lambda path: int(path.parent.name.removeprefix("version_")), reverse=True)
    return [*numbered, *(root / "checkpoints" for root in roots)]


def _go_on_in(trainer: Trainer, directory: Path) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger) and directory.name.startswith("version_"):
            logger._version = int(directory.name.removeprefix("version_"))


class CrossingCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` whose `every_n_train_steps` fires when the clock crosses a multiple."""

    _next_save: int | float = 0
    _asked_for: int | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._next_save = next_multiple(trainer.global_step, self._every_n_train_steps)
        self._asked_for = self._every_n_train_steps

    @property
    def state_key(self) -> str:
        """Also while it saves, or a resumed run would not know its state again."""
        now = self._every_n_train_steps
        self._every_n_train_steps = now if self._asked_for is None else self._asked_for
        try:
            return super().state_key
        finally:
            self._every_n_train_steps = now

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self._every_n_train_steps
        if trainer.global_step >= self._next_save:
            self._next_save = next_multiple(trainer.global_step, every)
            self._every_n_train_steps = 1  # every step is a multiple of one: the parent saves now
        try:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        finally:
            self._every_n_train_steps = every

    @staticmethod
    def _link_checkpoint(trainer: Any, filepath: str, linkpath: str) -> None:
        """Let the link lead to the newer file at once: Lightning's own is away for a moment."""
        if trainer.is_global_zero and Path(linkpath).is_symlink():
            with whole_file(Path(linkpath)) as fresh:
                fresh.unlink(missing_ok=True)  # of a process killed here, which had the same number
                fresh.symlink_to(os.path.relpath(filepath, fresh.parent))
            trainer.strategy.barrier()
        else:
            ModelCheckpoint._link_checkpoint(trainer, filepath, linkpath)


def saves_every_n_steps(checkpoint: ModelCheckpoint) -> int:
    """The `every_n_train_steps` of a checkpoint callback; 0 if it does not save by steps."""
    return int(checkpoint._every_n_train_steps)


def dump_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Everything a checkpoint holds, as it is now, but for the run: training goes on before this is saved."""
    return _CheckpointConnector.dump_checkpoint(trainer._checkpoint_connector, weights_only=False)


def write_checkpoint(trainer: Trainer, checkpoint: dict[str, Any], path: Any) -> None:
    """Save what was dumped earlier, with the callbacks' state of now: they have since seen the evaluation."""
    checkpoint["callbacks"] = call._call_callbacks_state_dict(trainer)
    trainer.strategy.save_checkpoint(checkpoint, path)
