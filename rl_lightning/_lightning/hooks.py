"""Lightning's hooks, called only where somebody overrides them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.profilers import PassThroughProfiler

from rl_lightning._lightning.stock_callbacks import on_our_clock
from rl_lightning.module import RLModule

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer

_BETWEEN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_OWN = ("training_step", "backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping")


class Hooks:
    """Which hooks somebody overrides, looked up once, so that nobody pays for those that nobody does."""

    def __init__(self, trainer: Trainer, module: RLModule | None = None) -> None:
        self._trainer = trainer
        self._module = trainer.lightning_module if module is None else module

    def bind(self, name: str, *, savers: bool | None = None) -> Callable[..., Any] | None:
        """A function that calls the hook on all callbacks, then on the module. None if nobody overrides it.

        It returns what the module's own hook returns.

        Args:
            name: the hook's.
            savers: only those callbacks that save checkpoints, or only the others and the module; None: all.
        """
        trainer, module = self._trainer, self._module
        callbacks: list[Callable[..., Any]] = []
        for callback in trainer.callbacks:
            if overrides(callback, name, pl.Callback) and savers in (None, isinstance(callback, Checkpoint)):
                hook: Callable[..., Any] = partial(getattr(callback, name), trainer, module)
                if name == "on_train_batch_end":
                    hook = on_our_clock(callback, hook, trainer)
                callbacks.append(self._profiled(hook, f"[Callback]{callback.state_key}.{name}"))
        own: Callable[..., Any] | None = None
        if overrides(module, name, RLModule) and not savers:
            own = self._profiled(getattr(module, name), f"[LightningModule]{type(module).__name__}.{name}")
        return self._entered(name, callbacks, own) if callbacks or own is not None else None

    def method(self, name: str) -> Callable[..., Any]:
        """The module's own method of that name, overridden or not."""
        own = self._profiled(getattr(self._module, name), f"[LightningModule]{type(self._module).__name__}.{name}")
        return self._entered(name, [], own)

    def _entered(
        self, name: str, callbacks: list[Callable[..., Any]], own: Callable[..., Any] | None
    ) -> Callable[..., Any]:
        """One function of all, which tells Lightning the hook's name, for `self.log`."""
        state = self._module.__dict__  # nn.Module.__setattr__ would cost microseconds each time

        def run(*args: Any) -> Any:
            previous, state["_current_fx_name"] = state["_current_fx_name"], name
            for hook in callbacks:
                hook(*args)
            result = own(*args) if own is not None else None
            state["_current_fx_name"] = previous
            return result

        return run

    def overridden(self, name: str) -> bool:
        """Whether the user's module overrides it."""
        return overrides(self._module, name, RLModule)

    def within_learning_steps(self) -> list[str]:
        """The hooks and methods that somebody overrides and that run in the middle of a learning step."""
        return [n for n in _BETWEEN if self.bind(n) is not None] + [n for n in _OWN if self.overridden(n)]

    def _profiled(self, function: Callable[..., Any], action: str) -> Callable[..., Any]:
        profiler = self._trainer.profiler
        if isinstance(profiler, PassThroughProfiler):
            return function

        def run(*args: Any) -> Any:
            with profiler.profile(action):
                return function(*args)

        return run


def overrides(instance: object, name: str, base: type) -> bool:
    """Whether an instance has a method of its own by that name, not that of `base`."""
    attribute = getattr(instance, name, None)
    if attribute is None:
        return False
    return getattr(attribute, "__func__", attribute) is not getattr(base, name, None)
