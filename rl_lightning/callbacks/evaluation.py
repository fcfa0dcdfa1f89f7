"""When and how training evaluates."""

from __future__ import annotations

import time
from array import array
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from rl_lightning.env_module import EnvLike
from rl_lightning.files import whole_file
from rl_lightning.types import ConfigurationError, check_counts

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer

_SCORES = ("mean", "median", "stdev", "max", "min")
_CHARTS = {
    "Aggregate Charts": {
        "mean w/ min-max": ["Margin", ["eval/mean", "eval/min", "eval/max"]],
        "mean +/- std": ["Margin", ["eval/mean", "extras/meanplusstdev", "extras/meanminusstdev"]],
    }
}
"""TensorBoard's custom scalars."""


class Evaluation(pl.Callback):
    """Evaluate the agent as Lightning's validation: in envs and with random streams of its own, acting greedily.

    It runs at the end of every epoch, or every `every_n_steps` env steps, and gives `eval/mean`, `eval/median`,
    `eval/stdev`, `eval/max`, `eval/min` and `eval/length_mean` to loggers and callbacks. Each evaluation adds a row to
    `scores.txt` (tab-separated) in the run's log directory, with the statistics that agent and env keep; loggers get
    those as `agent/<name>` and `env/<name>`, and TensorBoard draws two charts: the mean within min and max, and within
    one standard deviation. `Trainer.validate` and `Trainer.test` use its settings too.

    Args:
        num_episodes: episodes an evaluation. Vectorised evaluation counts the episodes that start first, not those that
            end first, so that short ones are not preferred.
        num_steps: env steps an evaluation, instead of `num_episodes` (which must then be None).
        every_n_steps: env steps of training between two evaluations. None: at the end of every epoch.
        max_episode_len: episodes are cut after so many env steps. None: as the env says.
        eval_at_start: also evaluate before the first step.
        eval_at_end: also evaluate after the last step, due or not.
        at_episode_end: an evaluation that is due waits for the end of the training episode. With one env, it may then
            run in the training env itself. Needs `every_n_steps`.
        in_background: evaluate a copy of the agent in a process of its own, while training goes on. The result belongs
            to the env step at which the copy was taken, and so does the agent that is saved for it; it arrives when it
            is ready, before the next evaluation begins. The one at the end of training is waited for. For agents of
            ours.
        seed: start every evaluation from the same episodes. None: each one draws fresh starts from the run's seed.
        env: envs to evaluate in. None: those of the `EnvModule`.
    Attributes:
        history: one dict an evaluation: the agent's own statistics, and `eval_score`, the mean return.
    Raises:
        ConfigurationError: not exactly one of `num_episodes` and `num_steps`, or a count below 1 or not whole.
    """

    def __init__(
        self,
        num_episodes: int | None = 10,
        *,
        num_steps: int | None = None,
        every_n_steps: int | None = None,
        max_episode_len: int | None = None,
        eval_at_start: bool = False,
        eval_at_end: bool = True,
        at_episode_end: bool = False,
        in_background: bool = False,
        seed: int | None = None,
        env: EnvLike | None = None,
    ) -> None:
        if (num_episodes is None) == (num_steps is None):
            raise ConfigurationError(
                f"Evaluation(num_episodes={num_episodes}, num_steps={num_steps}): give exactly one of them; "
                "the other must be None."
            )
        check_counts(num_episodes=num_episodes, num_steps=num_steps)
        check_counts(every_n_steps=every_n_steps, max_episode_len=max_episode_len)
        if at_episode_end and every_n_steps is None:
            raise ConfigurationError(
                "Evaluation(at_episode_end=True) needs every_n_steps: the env steps after which it is due."
            )
        if at_episode_end and in_background:
            raise ConfigurationError(
                "Evaluation(at_episode_end=True, in_background=True): what runs in the background waits for no "
                "episode. Leave one of them out."
            )
        self.num_episodes = num_episodes
        self.num_steps = num_steps
        self.every_n_steps = every_n_steps
        self.max_episode_len = max_episode_len
        self.eval_at_start = eval_at_start
        self.eval_at_end = eval_at_end
        self.at_episode_end = at_episode_end
        self.in_background = in_background
        self.seed = seed
        self.env = env
        self._start_history()
        self._scores: ScoreFile | None = None
        self._elapsed_before = 0.0
        self._started = time.monotonic()
        self._last: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        self._started = time.monotonic()
        if trainer.global_step == 0:
            self._start_history()
        directory = trainer.log_dir  # of all ranks: it is sent from the first
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        if directory is not None:
            self._scores = ScoreFile(Path(directory) / "scores.txt", up_to_step=trainer.global_step)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(_CHARTS)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        result = trainer.last_evaluation
        assert result is not None
        scores, agent = result.statistics(), trainer.agent_statistics
        self._last = {"step": trainer.global_step, "seed": result.seed, "mean": scores["mean"]}
        self.add_to_history({**agent, "eval_score": scores["mean"]})
        if self._scores is not None:
            row = {"steps": trainer.global_step, "episodes": trainer.num_episodes, "elapsed": self._elapsed()}
            row |= {name: scores[name] for name in _SCORES}
            for whose, statistics in (("agent", agent), ("env", result.env_statistics)):
                row |= {f"{whose}_{name}" if name in row else name: value for name, value in statistics.items()}
            self._scores.write(row)
        extras = {f"agent/{name}": value for name, value in agent.items()}
        extras |= {f"env/{name}": value for name, value in result.env_statistics.items()}
        extras["extras/meanplusstdev"] = scores["mean"] + scores["stdev"]
        extras["extras/meanminusstdev"] = scores["mean"] - scores["stdev"]
        for logger in trainer.loggers:
            numbers = {name: float(value) for name, value in extras.items() if isinstance(value, Real)}
            logger.log_metrics(numbers, step=trainer.global_step)

    def add_to_history(self, row: dict[str, Any]) -> None:
        """One more evaluation."""
        self.history.append(row)
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, Real)}
        if not self._blocks or self._blocks[-1][0] != list(numbers):
            self._blocks.append((list(numbers), array("d")))
        self._blocks[-1][1].extend(numbers.values())

    def _start_history(self) -> None:
        self.history: list[dict[str, Any]] = []
        # What checkpoints hold of it: the numbers of rows with the same names. As dicts a thousand would take 10 ms.
        self._blocks: list[tuple[list[str], array[float]]] = []

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        history = [(names, torch.frombuffer(numbers, dtype=torch.float64).clone()) for names, numbers in self._blocks]
        return {"elapsed": self._elapsed(), "last": dict(self._last), "history": history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._elapsed_before, self._last = state_dict["elapsed"], dict(state_dict["last"])
        self._start_history()
        for names, numbers in state_dict["history"]:
            for row in numbers.view(-1, len(names)).tolist():
                self.add_to_history(dict(zip(names, row, strict=True)))


class ScoreFile:
    """A tab-separated file of numbers with a header, one row an evaluation, each on disk as soon as it is written.

    Args:
        path: the file. A fresh run moves an older one out of the way (`scores-v1.txt`), a resumed one goes on in it.
        up_to_step: keep rows up to this env step; 0 for a fresh run.
    Raises:
        ConfigurationError: what should go on is something else.
    """

    def __init__(self, path: Path, *, up_to_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        if path.exists() and up_to_step == 0:
            path.rename(_free_name(path))
        rows = read_scores(path)
        self._columns = list(rows[0]) if rows else []
        self._rewrite([row for row in rows if int(row["steps"]) <= up_to_step])

    def write(self, row: dict[str, Any]) -> None:
        """Append one row. Columns that were not there before are nan in the rows before."""
        fresh = [name for name in row if name not in self._columns]
        if fresh:
            self._columns += fresh
            self._rewrite(read_scores(self._path))
        with self._path.open("a") as file:
            file.write(self._line(row))
            file.flush()

    def _line(self, row: dict[str, Any]) -> str:
        return "\t".join(str(row.get(name, "nan")) for name in self._columns) + "\n"

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        if not self._columns:
            return
        header = "\t".join(self._columns) + "\n"
        with whole_file(self._path) as temporary:
            temporary.write_text("".join([header, *map(self._line, rows)]))


def read_scores(path: Path) -> list[dict[str, str]]:
    """The rows of a `scores.txt`, as text by column; none if there is no such file.

    Raises:
        ConfigurationError: it is something else.
    """
    if not path.exists():
        return []
    try:
        header, *lines = [line.split("\t") for line in path.read_text().splitlines()] or [["steps", "mean"]]
        # the last line of a run that was killed may be cut off
        rows = [dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)]
        if missing := {"steps", "mean"}.difference(header):
            raise ValueError(f"there is no column {missing.pop()}")
        for row in rows:
            int(row["steps"]), float(row["mean"])
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is not of a run like this, with its steps and mean: {error}. Move it away, or choose another "
            "directory."
        ) from error
    return rows


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.stem}-v{number}{path.suffix}")).exists():
        number += 1
    return candidate
