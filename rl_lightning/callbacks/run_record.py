"""Write down what is needed to repeat a run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.cli import SaveConfigCallback

from rl_lightning.envs import EnvRecipe
from rl_lightning.records import described, record_run
from rl_lightning.strategies import AsyncStrategy

if TYPE_CHECKING:
    from rl_lightning.module import RLModule
    from rl_lightning.trainer import Trainer


class RunRecord(pl.Callback):
    """Record a run in its log directory, so that it can be repeated from there.

    `args.txt` holds the seed, the arguments of Trainer, callbacks, `fit`, agent, memory and envs, and the config if
    there is one; those of callbacks and other objects as far as they keep them as attributes. The other files are the
    command, harmless environment variables, the versions of all packages, the time of each start, and the state of the
    git repository: see `rl_lightning.records.record_run`. Under `AsyncStrategy`, `seeds.txt` has a line each start: the
    env step, and the seeds of the workers.

    Args:
        directory: where. None: the run's log directory.
        everything_of_environ: write down all environment variables, secrets included.
    """

    def __init__(self, directory: str | Path | None = None, *, everything_of_environ: bool = False) -> None:
        self.directory = directory
        self.everything_of_environ = everything_of_environ
        self._directory: Path | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        directory = self.directory or trainer.log_dir  # of all ranks: it is sent from the first
        if directory is None or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        record_run(directory, _arguments(trainer, pl_module), everything_of_environ=self.everything_of_environ)
        self._directory = Path(directory)

    def on_train_start(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        strategy = trainer.rl_strategy
        if self._directory is not None and isinstance(strategy, AsyncStrategy):
            with (self._directory / "seeds.txt").open("a") as file:
                file.write(f"{trainer.global_step}\t{' '.join(map(str, strategy.seeds))}\n")


def _arguments(trainer: Trainer, module: RLModule) -> dict[str, Any]:
    agent = module.agent
    arguments: dict[str, Any] = {
        "seed": trainer.seed,
        "trainer": described(trainer.init_args),
        "fit": {**trainer.fit_args, "ckpt_path": trainer.ckpt_path},  # "last" and "best" as what they stood for
        "agent": {"class": type(agent).__name__, "init_args": described(agent.init_args)},
        "memory": described(module.memory),
        "env": _recipe(trainer.train_recipe),
    }
    if trainer.enable_validation:
        arguments["eval_env"] = _recipe(trainer.eval_recipe)
    for callback in trainer.callbacks:
        if isinstance(callback, SaveConfigCallback):
            arguments["config"] = callback.config.as_dict()
    return arguments


def _recipe(recipe: EnvRecipe) -> dict[str, Any]:
    return {field.name: described(getattr(recipe, field.name)) for field in fields(recipe)}
