"""How a loss becomes a step of an optimizer: Lightning's precision, clipping, accumulation and hooks, only if used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer

from rl_lightning.clipping import add_gradients, clip_and_step, clip_gradients
from rl_lightning.types import ConfigurationError, GradientStep, NonFiniteError

if TYPE_CHECKING:
    from rl_lightning._lightning.hooks import Hooks
    from rl_lightning.trainer import Trainer


class Optimization(GradientStep):
    """The `step(name, loss)` that an agent's `update` is given inside `Trainer.fit`.

    Each call is one backward pass and, unless gradients accumulate, one step of the named optimizer::

        on_before_zero_grad, zero_grad
        on_before_backward, backward, on_after_backward
        on_before_optimizer_step, clip, optimizer.step

    Attributes:
        accumulating: whether the last call left its gradients to be added to.
        last_loss: the last loss, detached.
    """

    def __init__(self, trainer: Trainer, hooks: Hooks) -> None:
        self._trainer = trainer
        self._module = trainer.lightning_module
        self._clock = trainer.fit_loop.clock
        self._optimizers = self._named(trainer)
        self._parameters = {
            name: [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for name, optimizer in self._optimizers.items()
        }
        self._num_accumulated = dict.fromkeys(self._optimizers, 0)
        self._scaler, self._world_size = trainer.scaler, trainer.world_size
        self._check_loss = trainer.strategy.root_device.type == "cpu"  # elsewhere it would wait for the device
        self._before_zero_grad = hooks.bind("on_before_zero_grad")
        self._before_backward = hooks.bind("on_before_backward")
        self._after_backward = hooks.bind("on_after_backward")
        self._before_step = hooks.bind("on_before_optimizer_step")
        self._own_zero_grad = hooks.method("optimizer_zero_grad") if hooks.overridden("optimizer_zero_grad") else None
        self._own_backward = hooks.method("backward") if hooks.overridden("backward") else None
        seeing = (self._scaler, self._before_backward, self._after_backward, self._own_backward)
        self._sees_backward = any(one is not None for one in seeing)
        self._own_clipping = (
            hooks.method("configure_gradient_clipping") if hooks.overridden("configure_gradient_clipping") else None
        )
        self._own_step = hooks.method("optimizer_step") if hooks.overridden("optimizer_step") else None
        self._steps_plainly = all(one is None for one in (self._scaler, self._own_clipping, self._own_step))
        self.accumulating = False
        self.last_loss: Tensor | None = None

    def _named(self, trainer: Trainer) -> dict[str, Optimizer]:
        optimizers, names = trainer.optimizers, list(self._module.named_optimizers())
        if len(optimizers) != len(names):
            raise ConfigurationError(
                f"configure_optimizers returned {len(optimizers)} optimizers, and the agent steps {len(names)}: "
                f"{', '.join(names)}. Return one for each, in this order."
            )
        return dict(zip(names, optimizers, strict=True))

    def __call__(self, name: str, loss: Tensor) -> None:
        """Minimise `loss`.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
            ConfigurationError: the agent has no optimizer of this name.
        """
        every = self._begin(name, loss)
        self._backward(loss if every == 1 else loss / every)
        self._finish(name, every)

    def takes_gradients(self, parameters: Sequence[Tensor]) -> bool:
        return not self._sees_backward and all(map(_is_plain, parameters))

    def with_gradients(
        self, name: str, loss: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> None:
        every = self._begin(name, loss)
        add_gradients(parameters, gradients if every == 1 else [gradient / every for gradient in gradients])
        self._finish(name, every)

    def _begin(self, name: str, loss: Tensor) -> int:
        """Returns how many losses make one step."""
        if name not in self._optimizers:
            raise ConfigurationError(
                f"update() stepped {name!r}, and configure_optimizers() has only: {', '.join(self._optimizers)}."
            )
        self.note({name: loss.detach()})
        if self._num_accumulated[name] == 0:
            self._zero_grad(name, self._optimizers[name])
        return self._trainer.accumulate_grad_batches

    def _finish(self, name: str, every: int) -> None:
        self._num_accumulated[name] += 1
        self.accumulating = self._num_accumulated[name] < every
        if not self.accumulating:
            self._num_accumulated[name] = 0
            self._step(name, self._optimizers[name])

    def state_dict(self) -> dict[str, Any]:
        """Gradients that wait to be added to, and how many there are, by optimizer."""
        gradients = {
            name: [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
            for name, parameters in self._parameters.items()
            if self._num_accumulated[name]
        }
        return {"num_accumulated": dict(self._num_accumulated), "gradients": gradients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._num_accumulated.update(state["num_accumulated"])
        for name, gradients in state["gradients"].items():
            for parameter, gradient in zip(self._parameters[name], gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def note(self, losses: dict[str, Tensor]) -> None:
        """Remember the last of some losses, and refuse what is not finite.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        for name, loss in losses.items():
            self.last_loss = loss
            if self._check_loss and not math.isfinite(loss.item()):
                raise NonFiniteError(
                    f"the loss {name!r} is {loss.item()} at env step {self._clock.env_steps:_}, learning step "
                    f"{self._clock.num_updates:_}. Lower the learning rate, clip gradients "
                    "(Trainer(gradient_clip_val=0.5)), or look for its source with Trainer(detect_anomaly=True)."
                )

    def _zero_grad(self, name: str, optimizer: Optimizer) -> None:
        if self._before_zero_grad is not None:
            self._before_zero_grad(optimizer)
        if self._own_zero_grad is not None:
            self._own_zero_grad(self._trainer.current_epoch, self._batch_idx, optimizer)
            return
        for parameter in self._parameters[name]:
            parameter.grad = None

    def _backward(self, loss: Tensor) -> None:
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        if self._before_backward is not None:
            self._before_backward(loss)
        if self._own_backward is not None:
            self._own_backward(loss)
        else:
            loss.backward()
        if self._after_backward is not None:
            self._after_backward()

    def _step(self, name: str, optimizer: Optimizer) -> None:
        if self._world_size > 1:
            _average_gradients(self._parameters[name], self._world_size)
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if self._before_step is not None:
            self._before_step(optimizer)
        trainer, parameters = self._trainer, self._parameters[name]
        if self._steps_plainly:
            clip_and_step(optimizer, parameters, *clip_limits(trainer))
            return
        if self._own_clipping is not None:
            self._own_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        else:
            clip_gradients(optimizer, parameters, *clip_limits(trainer))
        if self._own_step is not None:
            self._own_step(trainer.current_epoch, self._batch_idx, optimizer, lambda: self.last_loss)
        elif self._scaler is not None:
            self._scaler.step(optimizer)
            self._scaler.update()
        else:
            optimizer.step()

    @property
    def _batch_idx(self) -> int:
        return self._trainer.fit_loop.batch_idx


def _is_plain(parameter: Tensor) -> bool:
    """Whether nobody is told of its gradient."""
    return parameter._backward_hooks is None and parameter._post_accumulate_grad_hooks is None


def clip_limits(trainer: Trainer) -> tuple[float | None, float | None]:
    """How far the norm, and how far each number, of all gradients together may go; None: no limit.

    The Trainer's limit where it is set (0 is none), the agent's own otherwise.
    """
    limit = trainer.gradient_clip_val
    limit = (trainer.lightning_module.agent.max_grad_norm if limit is None else limit) or None
    by_value = trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE
    return (None, limit) if by_value else (limit, None)


def _average_gradients(parameters: list[Any], world_size: int) -> None:
    """Average over the ranks, as data-parallel training does; here, because losses are made inside `update`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= world_size
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
