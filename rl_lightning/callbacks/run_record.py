"""Write down what is needed to repeat a run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.cli import SaveConfigCallback

from rl_lightning.records import record_run

if TYPE_CHECKING:
    from rl_lightning.module import RLModule
    from rl_lightning.trainer import Trainer


class RunRecord(pl.Callback):
    """Record a run in its log directory, so that it can be repeated from there.

    `args.txt` holds the seed, the arguments of Trainer, agent and envs, and the config if there is one. The other files
    are the command, harmless environment variables, the versions of all packages, the time of each start, and the state
    of the git repository: see `rl_lightning.records.record_run`.

    Args:
        directory: where. None: the run's log directory.
        everything_of_environ: write down all environment variables, secrets included.
    """

    def __init__(self, directory: str | Path | None = None, *, everything_of_environ: bool = False) -> None:
        self.directory = directory
        self.everything_of_environ = everything_of_environ

    def on_fit_start(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        directory = self.directory or trainer.log_dir  # of all ranks: it is sent from the first
        if directory is None or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        record_run(directory, _arguments(trainer, pl_module), everything_of_environ=self.everything_of_environ)


def _arguments(trainer: Trainer, module: RLModule) -> dict[str, Any]:
    recipe, agent = trainer.train_recipe, module.agent
    arguments: dict[str, Any] = {
        "seed": trainer.seed,
        "trainer": trainer.init_args,
        "agent": {"class": type(agent).__name__, "init_args": agent.init_args},
        "env": {field.name: getattr(recipe, field.name) for field in fields(recipe)},
    }
    for callback in trainer.callbacks:
        if isinstance(callback, SaveConfigCallback):
            arguments["config"] = callback.config.as_dict()
    return arguments
