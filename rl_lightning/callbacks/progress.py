"""A progress bar that counts env steps."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any, Protocol

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm.auto import tqdm

from rl_lightning.types import ConfigurationError

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


class RLProgressBar(ProgressBar):
    """Env steps of `max_steps`, steps per second, the last mean return, the last evaluation, and the time left.

    It is redrawn about ten times a second, however fast the envs are, and costs nothing in between.

    Args:
        style: "tqdm", "rich" (extra `rich`), or "auto": rich on a terminal if it is installed, tqdm otherwise.
    Raises:
        ConfigurationError: an unknown style, or rich is not installed.
    """

    def __init__(self, style: str = "auto") -> None:
        super().__init__()
        has_rich = importlib.util.find_spec("rich") is not None
        if style not in ("auto", "tqdm", "rich"):
            raise ConfigurationError(f"RLProgressBar(style={style!r}) must be 'auto', 'tqdm' or 'rich'.")
        if style == "rich" and not has_rich:
            raise ConfigurationError("RLProgressBar(style='rich') needs rich: install rl_lightning[rich].")
        self.style = style if style != "auto" else ("rich" if has_rich and sys.stdout.isatty() else "tqdm")
        self._enabled = True
        self._bar: _Bar | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.write(" ".join(map(str, args)))
        else:
            print(*args, **kwargs)

    # ---- training ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        total: int | None = trainer.max_steps if trainer.max_steps != -1 else None
        if total is None and trainer.max_epochs not in (None, -1):
            total = trainer.max_epochs * trainer.steps_per_epoch
        self._open("training", total, "step", done=trainer.global_step)

    def on_tick(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:
        """Redraw."""
        self._show(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        if trainer.state.fn == "validate":
            self._open("evaluating", _total(trainer.num_val_batches), "episode")
        elif self._bar is not None:
            self._show(trainer)
            self._bar.describe("evaluating")

    def on_validation_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        if trainer.state.fn == "validate":
            self._close()
        elif self._bar is not None:
            self._bar.describe("training")
            self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        self._show(trainer)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # type: ignore[override]
        self._close()

    # ---- evaluation outside of training --------------------------------------------------------------------------

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:  # type: ignore[override]
        if trainer.state.fn == "validate":
            self._advance()

    def on_test_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        self._open("testing", _total(trainer.num_test_batches), "episode")

    def on_test_batch_end(self, *args: Any) -> None:
        self._advance()

    def on_test_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        self._open("predicting", _total(trainer.num_predict_batches), "episode")

    def on_predict_batch_end(self, *args: Any) -> None:
        self._advance()

    def on_predict_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        self._close()

    # ---- drawing -------------------------------------------------------------------------------------------------

    def _open(self, text: str, total: int | None, unit: str, *, done: int = 0) -> None:
        self._close()
        if self._enabled and self.trainer.is_global_zero:
            self._bar = (_RichBar if self.style == "rich" else _TqdmBar)(text, total, unit, done)

    def _show(self, trainer: Trainer) -> None:
        if self._bar is not None:
            metrics = trainer.progress_bar_metrics
            shown = {name: f"{float(metrics[name]):.4g}" for name in sorted(metrics)}
            speed = trainer.callback_metrics.get("time/env_steps_per_second")
            self._bar.update(trainer.global_step, shown, None if speed is None else float(speed))

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.done + 1, {}, None)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _total(batches: Any) -> int | None:
    total = sum(batches) if isinstance(batches, list) else batches
    return None if total == float("inf") else int(total)


class _Bar(Protocol):
    done: int

    def update(self, done: int, values: dict[str, str], speed: float | None) -> None: ...

    def describe(self, text: str) -> None: ...

    def write(self, text: str) -> None: ...

    def close(self) -> None: ...


class _TqdmBar:
    def __init__(self, text: str, total: int | None, unit: str, done: int) -> None:
        self.done = done
        # miniters: by default tqdm waits for as many steps as were fast before, however slow they have become
        self._bar = tqdm(
            total=total, initial=done, desc=text, unit=unit, miniters=1, dynamic_ncols=True, file=sys.stdout
        )

    def update(self, done: int, values: dict[str, str], speed: float | None) -> None:
        self._bar.set_postfix(values, refresh=False)
        self._bar.update(done - self.done)
        self.done = done

    def describe(self, text: str) -> None:
        self._bar.set_description(text)

    def write(self, text: str) -> None:
        self._bar.write(text)

    def close(self) -> None:
        self._bar.refresh()
        self._bar.close()


class _RichBar:
    def __init__(self, text: str, total: int | None, unit: str, done: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        self.done = done
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            # on a narrow terminal the values wrap, and nothing else is cut off
            TextColumn("{task.fields[values]}", table_column=Column(no_wrap=False)),
            auto_refresh=False,
        )
        self._unit = unit
        self._task = self._progress.add_task(text, total=total, completed=done, values="", rate="")
        self._progress.start()

    def update(self, done: int, values: dict[str, str], speed: float | None) -> None:
        self.done = done
        self._progress.update(
            self._task,
            completed=done,
            values=", ".join(f"{name}={value}" for name, value in values.items()),
            rate=f"{speed:,.0f} {self._unit}s/s" if speed else "",
            refresh=True,
        )

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=text, refresh=True)

    def write(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def close(self) -> None:
        self._progress.stop()
