"""When and how training evaluates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from rl_lightning.env_module import EnvLike
from rl_lightning.types import ConfigurationError

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer

_SCORES = ("mean", "median", "stdev", "max", "min")


class Evaluation(pl.Callback):
    """Evaluate the agent as Lightning's validation: in envs and with random streams of its own, acting greedily.

    It runs at the end of every epoch, or every `every_n_steps` env steps, and gives `eval/mean`, `eval/median`,
    `eval/stdev`, `eval/max`, `eval/min` and `eval/length_mean` to loggers and callbacks. Each evaluation adds a row to
    `scores.txt` (tab-separated) in the run's log directory. `Trainer.validate` and `Trainer.test` use its settings too.

    Args:
        num_episodes: episodes an evaluation. Vectorised evaluation counts the episodes that start first, not those that
            end first, so that short ones are not preferred.
        num_steps: env steps an evaluation, instead of `num_episodes` (which must then be None).
        every_n_steps: env steps of training between two evaluations. None: at the end of every epoch.
        max_episode_len: episodes are cut after so many env steps. None: as the env says.
        eval_at_start: also evaluate before the first step.
        seed: start every evaluation from the same episodes. None: each one draws fresh starts from the run's seed.
        env: envs to evaluate in. None: those of the `EnvModule`.
    Raises:
        ConfigurationError: not exactly one of `num_episodes` and `num_steps`, or a number below 1.
    """

    def __init__(
        self,
        num_episodes: int | None = 10,
        *,
        num_steps: int | None = None,
        every_n_steps: int | None = None,
        max_episode_len: int | None = None,
        eval_at_start: bool = False,
        seed: int | None = None,
        env: EnvLike | None = None,
    ) -> None:
        if (num_episodes is None) == (num_steps is None):
            raise ConfigurationError(
                f"Evaluation(num_episodes={num_episodes}, num_steps={num_steps}): give exactly one of them; "
                "the other must be None."
            )
        for name, value in {
            "num_episodes": num_episodes,
            "num_steps": num_steps,
            "every_n_steps": every_n_steps,
            "max_episode_len": max_episode_len,
        }.items():
            if value is not None and value < 1:
                raise ConfigurationError(f"Evaluation({name}={value}) must be at least 1.")
        self.num_episodes = num_episodes
        self.num_steps = num_steps
        self.every_n_steps = every_n_steps
        self.max_episode_len = max_episode_len
        self.eval_at_start = eval_at_start
        self.seed = seed
        self.env = env
        self._scores: ScoreFile | None = None
        self._elapsed_before = 0.0
        self._started = time.monotonic()
        self._last: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        self._started = time.monotonic()
        directory = trainer.log_dir
        if trainer.is_global_zero and directory is not None and not trainer.fast_dev_run:
            self._scores = ScoreFile(Path(directory) / "scores.txt", up_to_step=trainer.global_step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        result = trainer.last_evaluation
        assert result is not None
        statistics = result.statistics()
        self._last = {"step": trainer.global_step, "seed": result.seed, "mean": statistics["mean"]}
        if self._scores is not None:
            row = {"steps": trainer.global_step, "episodes": trainer.num_episodes, "elapsed": self._elapsed()}
            self._scores.write(row | {name: statistics[name] for name in _SCORES})

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self._elapsed(), "last": dict(self._last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._elapsed_before, self._last = state_dict["elapsed"], dict(state_dict["last"])


class ScoreFile:
    """A tab-separated file of numbers with a header, one row an evaluation, each on disk as soon as it is written.

    Args:
        path: the file. A fresh run moves an older one out of the way (`scores-v1.txt`), a resumed one goes on in it.
        up_to_step: keep rows up to this env step; 0 for a fresh run.
    """

    def __init__(self, path: Path, *, up_to_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        if not path.exists():
            return
        if up_to_step == 0:
            path.rename(_free_name(path))
            return
        header, *rows = path.read_text().splitlines()
        kept = [row for row in rows if int(row.split("\t")[0]) <= up_to_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("\n".join([header, *kept]) + "\n")
        temporary.replace(path)

    def write(self, row: dict[str, float]) -> None:
        """Append one row; the first one decides the columns."""
        new = not self._path.exists()
        with self._path.open("a") as file:
            if new:
                file.write("\t".join(row) + "\n")
            file.write("\t".join(str(value) for value in row.values()) + "\n")


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.stem}-v{number}{path.suffix}")).exists():
        number += 1
    return candidate
