"""Keep the best agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from rl_lightning.checkpoint_file import read_checkpoint
from rl_lightning.types import ConfigurationError

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


class BestAgent(Checkpoint):
    """Save a checkpoint whenever a score is strictly better than every one before; ties and NaN never save.

    A crash while it is written leaves the previous best intact, as with every checkpoint.
    `trainer.test(ckpt_path="best")` and `RLModule.load_from_checkpoint(best_agent.best_model_path)` use it.

    Args:
        monitor: the score.
        mode: "max" if more is better, "min" if less is.
        dirpath: where to save. None: `checkpoints/` in the run's log directory.
        filename: without the suffix `.ckpt`.
    Attributes:
        best_model_path: the file; "" before the first save.
        best_model_score: its score, float64; None before the first save.
    """

    def __init__(
        self,
        monitor: str = "eval/mean",
        *,
        mode: str = "max",
        dirpath: str | Path | None = None,
        filename: str = "best",
    ) -> None:
        if mode not in ("max", "min"):
            raise ConfigurationError(f"BestAgent(mode={mode!r}) must be 'max' or 'min'.")
        self.monitor = monitor
        self.mode = mode
        self.dirpath = dirpath
        self.filename = filename
        self.best_model_path = ""
        self.best_model_score: torch.Tensor | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def on_validation_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        if self.monitor.startswith("eval/"):
            self._save_if_better(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        if not self.monitor.startswith("eval/"):
            self._save_if_better(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        if self.best_model_score is not None:
            score = f"{self.monitor} {self.best_model_score.item():.4g}"
            rank_zero_info(f"The best agent, with {score}, is in {self.best_model_path}")

    def _save_if_better(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = trainer.callback_metrics.get(self.monitor)
        if score is None or not self._is_better(score):
            return
        before = self.best_model_path, self.best_model_score
        path = Path(self.best_model_path) if self.best_model_path else self._fresh_path(trainer)
        self.best_model_path, self.best_model_score = str(path), score.detach().double().cpu()
        try:
            self._save(trainer, path)
        except BaseException:
            self.best_model_path, self.best_model_score = before
            raise

    def _save(self, trainer: Trainer, path: Path) -> None:
        trainer.save_checkpoint(path, weights_only=False)

    def _is_better(self, score: torch.Tensor) -> bool:
        best = self.best_model_score
        if best is None:
            return not bool(torch.isnan(score))
        return bool(score > best) if self.mode == "max" else bool(score < best)

    def _fresh_path(self, trainer: Trainer) -> Path:
        """A file that is not there yet: another run's best agent is never overwritten."""
        directory = Path(self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")
        directory.mkdir(parents=True, exist_ok=True)
        path, number = directory / f"{self.filename}.ckpt", 0
        while path.exists():
            number += 1
            path = directory / f"{self.filename}-v{number}.ckpt"
        return Path(trainer.strategy.broadcast(str(path)))

    def state_dict(self) -> dict[str, Any]:
        return {"best_model_path": self.best_model_path, "best_model_score": self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        path = Path(state_dict["best_model_path"])
        if not path.is_file():
            return  # the run was moved: its best agent is out of reach, and cannot be overwritten
        # the run may have gone on after this checkpoint, and saved a better agent still
        try:
            saved = read_checkpoint(path, map_location="cpu")["callbacks"][self.state_key]
        except ConfigurationError as error:
            rank_zero_warn(f"The best agent so far is lost: {error}")
            return
        self.best_model_path, self.best_model_score = str(path), saved["best_model_score"]
