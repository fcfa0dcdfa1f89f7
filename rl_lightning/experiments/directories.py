"""The directories that a run leaves: of the agent now and then, at the end, at its best, and when something failed."""

from __future__ import annotations

import os
import shutil
import tempfile
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from rl_lightning._lightning import next_multiple
from rl_lightning.callbacks import BestAgent
from rl_lightning.callbacks.evaluation import read_scores
from rl_lightning.files import sync
from rl_lightning.types import ConfigurationError, check_counts

if TYPE_CHECKING:
    from rl_lightning.module import RLModule
    from rl_lightning.trainer import Trainer

CHECKPOINT_FILE, SCORE_FILE = "agent.ckpt", "score.txt"
_REPLACED = ".replaced-"
"""What the name of a directory begins with while another takes its place."""


def save_agent(trainer: Trainer, directory: Path, score: float | None = None) -> None:
    """Save the agent as a directory, which is complete once it has its name.

    An agent that has `save(dirname)` writes itself there. Otherwise the directory holds a checkpoint, `agent.ckpt`,
    that `Trainer.fit(ckpt_path=...)` can go on from. `score.txt` holds the score, if one is given. A directory of that
    name is replaced: after an error it is as it was, and if the process is killed meanwhile, `put_back` finds it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory.parent))
    try:
        fresh, agent = workplace / directory.name, trainer.lightning_module.given_agent
        trainer.synchronize()
        if hasattr(agent, "save"):
            agent.save(str(fresh))
            fresh.mkdir(exist_ok=True)
        else:
            trainer.save_checkpoint(fresh / CHECKPOINT_FILE, weights_only=False)
        if score is not None:
            (fresh / SCORE_FILE).write_text(f"{score!r}\n")
        for path in [*fresh.rglob("*"), fresh]:
            sync(path)
        _give_name(fresh, directory)
        if not hasattr(agent, "save"):
            trainer.moved_checkpoints(fresh, directory)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def put_back(outdir: Path) -> None:
    """Give directories that were being replaced when their process was killed their names back."""
    for old in outdir.glob(f"{_REPLACED}*"):
        _put_back(outdir / old.name.removeprefix(_REPLACED))


def _put_back(directory: Path) -> None:
    old = _name_meanwhile(directory)
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)  # the new one has its name already, or nothing was replaced
    elif old.exists():
        os.replace(old, directory)


def _name_meanwhile(directory: Path) -> Path:
    return directory.with_name(_REPLACED + directory.name)


def _give_name(fresh: Path, directory: Path) -> None:
    _put_back(directory)
    try:
        if directory.exists():
            os.replace(directory, _name_meanwhile(directory))
        os.replace(fresh, directory)
        sync(directory.parent)
    finally:
        _put_back(directory)


class AgentDirectories(pl.Callback):
    """Save the agent every so often, at the end (`{t}_finish`), and when training fails (`{t}_except`).

    t is how many env steps the agent has taken that is saved: with several envs, always all those of a vector step.

    Args:
        outdir: where.
        logger: what is told of every saved agent.
        checkpoint_freq: a `{t}_checkpoint` is saved when a multiple of it is reached or passed; None for none.
    Attributes:
        exception: what ended training, if something did.
    """

    saves_on_exception = True

    def __init__(self, outdir: Path, logger: Logger, checkpoint_freq: int | None = None) -> None:
        check_counts(checkpoint_freq=checkpoint_freq)
        self.exception: BaseException | None = None
        self._outdir, self._logger, self._freq = outdir, logger, checkpoint_freq
        self._trainer: Trainer | None = None
        self._next: int | float = float("inf")

    def on_train_start(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        self._trainer = trainer
        self._next = next_multiple(trainer.global_step, self._freq)

    def checkpoint(self, env: Any, agent: Any, step: int) -> None:
        """A step hook: save the agent if it is time to, at the last of the env steps that it has just taken."""
        assert self._trainer is not None
        if step >= self._next and step == self._trainer.global_step:
            self._next = next_multiple(step, self._freq)
            self._save(f"{step}_checkpoint")

    def on_train_end(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        self._save(f"{trainer.global_step}_finish")

    def on_exception(self, trainer: Trainer, pl_module: RLModule, exception: BaseException) -> None:  # type: ignore[override]
        self.exception = exception
        if self._trainer is None:
            return  # nothing has been learned
        try:
            self._save(f"{trainer.global_step}_except")
        except Exception:  # what ended training is what must be raised
            self._logger.exception("Could not save the agent after training failed")

    def _save(self, name: str) -> None:
        assert self._trainer is not None
        save_agent(self._trainer, self._outdir / name)
        self._logger.info("Saved the agent to %s", self._outdir / name)


class CheckpointsBetweenSteps(pl.Callback):
    """Calls the step hook `AgentDirectories.checkpoint` where the next step would begin.

    Args:
        directories: whose.
    """

    def __init__(self, directories: AgentDirectories) -> None:
        self._directories = directories

    def on_env_step_start(self, trainer: Trainer, pl_module: RLModule) -> None:
        """Save the agent if it is time to."""
        self._directories.checkpoint(None, None, trainer.global_step)


class BestDirectory(BestAgent):
    """`BestAgent` as the directory `best`, with its score in `score.txt`.

    Args:
        outdir: where.
        logger: what is told of every new best.
        saves: whether to save it; False only keeps count.
    Attributes:
        max_score: the best score so far, also of the run's earlier parts; -inf before the first.
    """

    def __init__(self, outdir: Path, logger: Logger, *, saves: bool = True) -> None:
        super().__init__(dirpath=outdir)
        self._outdir, self._logger, self._saves = outdir, logger, saves
        self.max_score = float("-inf")

    def go_on(self, step_offset: int) -> None:
        """Start from the best score that the run in `outdir` has reached: by this env step, or by its agent `best`.

        Raises:
            ConfigurationError: it is not known how good `best` is.
        """
        rows = [row for row in read_scores(self._outdir / "scores.txt") if int(row["steps"]) <= step_offset]
        scores = [float(row["mean"]) for row in rows]
        best = self._outdir / self.filename
        if (best / SCORE_FILE).exists() or (self._saves and best.exists()):
            scores.append(_read_score(best))
        self.max_score = max((score for score in scores if score == score), default=float("-inf"))

    def _is_better(self, score: Any) -> bool:
        return score.item() > self.max_score  # never, if it is NaN

    def _fresh_path(self, trainer: Trainer) -> Path:
        return self._outdir / self.filename

    def _save(self, trainer: Trainer, path: Path) -> None:
        assert self.best_model_score is not None
        score = self.best_model_score.item()
        self._logger.info("The best score is updated %s -> %s", self.max_score, score)
        self.max_score = score
        if self._saves:
            save_agent(trainer, path, score)
            self._logger.info("Saved the agent to %s", path)

    def on_fit_end(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        """The log has told."""


def _read_score(best: Path) -> float:
    try:
        return float((best / SCORE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{best} is there, but {SCORE_FILE} in it does not say its score ({error}), and a worse agent could take "
            f"its place. Write its mean return into that file, or move {best} away."
        ) from error
