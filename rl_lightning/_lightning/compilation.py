"""A whole learning step as one compiled graph: losses, gradients, clipping and the optimizers' steps."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch._dynamo
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import Parameter

from rl_lightning.optim import Group, PackedOptimizer
from rl_lightning.optimization import clip_limit
from rl_lightning.types import Batch, Metrics

if TYPE_CHECKING:
    from rl_lightning._lightning.hooks import Hooks
    from rl_lightning.optimization import Optimization
    from rl_lightning.trainer import Trainer

_Learned: TypeAlias = tuple[Metrics, dict[str, Tensor]]
"""What to log of a learning step, and its losses by optimizer."""

_CONFIG: dict[str, Any] = {"trace_autograd_ops": True, "allow_unspec_int_on_nn_module": True}
"""What torch's compiler is told: gradients are part of the graph, and an agent may count its learning steps."""

_WATCHED = frozenset(
    {
        "CONSTANT_MATCH",
        "DETERMINISTIC_ALGORITHMS",
        "EMPTY_NN_MODULE_HOOKS_DICT",
        "EQUALS_MATCH",
        "GLOBAL_STATE",
        "GRAD_MODE",
        "SHAPE_ENV",
    }
)


def _watched(guards: Sequence[Any]) -> list[bool]:
    """What is looked at in every learning step, to compile anew where it has changed.

    The batch, plain numbers of the agent and its optimizers, hooks on modules. Not the agent's own tensors: an agent
    does not change their shapes while it trains, and to look would cost a tenth of a small learning step.
    """
    return [guard.guard_type in _WATCHED or guard.name.startswith("batch") for guard in guards]


_OPTIONS = {"fallback_random": True, "guard_filter_fn": _watched}
"""Random numbers within a learning step come from torch's own generator, as without compiling."""


def why_not_compiled(trainer: Trainer, hooks: Hooks) -> str | None:
    """What keeps the learning step from being one graph; None if nothing does."""
    optimizers = trainer.lightning_module.named_optimizers()
    between = hooks.within_learning_steps()
    foreign = [name for name, optimizer in optimizers.items() if not isinstance(optimizer, PackedOptimizer)]
    own = trainer.lightning_module.agent.why_not_compiled
    reasons = {
        own or "": own is not None,
        f"{', '.join(between)} must run in its middle": bool(between),
        f"the optimizer {', '.join(foreign)} is none of rl_lightning.optim": bool(foreign),
        "the agent learns by itself": not optimizers,
        f"accumulate_grad_batches is {trainer.accumulate_grad_batches}": trainer.accumulate_grad_batches != 1,
        f"precision={trainer.precision!r} is not '32-true'": type(trainer.precision_plugin) is not Precision,
        "several processes average their gradients": trainer.world_size > 1,
        "detect_anomaly=True looks into it": trainer._detect_anomaly,
        f"torch {torch.__version__} cannot trace gradients": not hasattr(torch._dynamo.config, "trace_autograd_ops"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class CompiledLearning:
    """The place of `training_step`: `agent.update` and all that its `step(name, loss)` does, as one graph.

    It is compiled when the first batch comes, and again for another kind of batch or other hyperparameters of an
    optimizer (its learning rate may change freely). What cannot be compiled is run by `eagerly`.

    Args:
        optimization: is told the losses.
        eagerly: the learning step as it would be without.
    """

    def __init__(self, trainer: Trainer, optimization: Optimization, eagerly: Callable[[Batch, int], Metrics]) -> None:
        self._agent = trainer.lightning_module.agent
        self._optimization = optimization
        self._eagerly = eagerly
        optimizers = trainer.lightning_module.named_optimizers()
        self._parts = {name: _Part(each) for name, each in optimizers.items() if isinstance(each, PackedOptimizer)}
        self._clip = _clipping(trainer)
        self._patch = torch._dynamo.config.patch(_CONFIG)
        self._patch.__enter__()
        on_gpu = trainer.strategy.root_device.type == "cuda"
        self._compiled: Callable[[Batch], _Learned] | None = torch.compile(
            self._own_learn(), fullgraph=True, **({"mode": "reduce-overhead"} if on_gpu else {"options": _OPTIONS})
        )
        self._has_run = False

    def close(self) -> None:
        """Give torch's compiler its own settings back. May be called twice."""
        if self._patch is not None:
            self._patch.__exit__(None, None, None)
            self._patch = None

    def __call__(self, batch: Batch, batch_idx: int) -> Metrics:
        if self._compiled is None:
            return self._eagerly(batch, batch_idx)
        for part in self._parts.values():
            part.follow_learning_rates()
        learned = self._compiled(batch) if self._has_run else self._first_time(batch)
        if learned is None:
            return self._eagerly(batch, batch_idx)
        metrics, losses = learned
        self._optimization.note(losses)
        return metrics

    def _first_time(self, batch: Batch) -> _Learned | None:
        """Compile, and learn from the batch; None, with a warning, where torch cannot compile it."""
        assert self._compiled is not None
        start = time.perf_counter()
        try:
            learned = self._compiled(batch)
        except torch._dynamo.exc.TorchDynamoException as error:  # nothing has run yet
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
            rank_zero_warn(f"compile=True: the learning step runs uncompiled, because torch could not: {reason}")
            self._compiled = None
            return None
        self._has_run = True
        rank_zero_info(f"compile=True: the learning step was compiled in {time.perf_counter() - start:.1f} s.")
        return learned

    def _own_learn(self) -> Callable[[Batch], _Learned]:
        """`_learn` with a code object of its own, where the compiler keeps its graphs: another agent's do not fit."""
        function = type(self)._learn
        own = types.FunctionType(function.__code__.replace(), function.__globals__)
        return types.MethodType(own, self)

    def _learn(self, batch: Batch) -> _Learned:
        """What is compiled."""
        losses: dict[str, Tensor] = {}

        def step(name: str, loss: Tensor) -> None:
            part = self._parts[name]
            gradients = torch.autograd.grad(loss, part.parameters, allow_unused=True)
            with torch.no_grad():
                part.step(self._clip(gradients))
            losses[name] = loss.detach()

        return self._agent.update(batch, step), losses


class _Part:
    """One optimizer, as the graph sees it."""

    def __init__(self, optimizer: PackedOptimizer) -> None:
        optimizer.unpack()
        self.optimizer = optimizer
        self.rates = [torch.tensor(0.0, device=group["params"][0].device) for group in optimizer.param_groups]
        self._rates_now: list[float | None] = [None] * len(self.rates)
        self.parameters: list[Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self._state: list[tuple[Group, Tensor, Parameter, list[Tensor], Tensor]] = []
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                moments = [state[name] for name in optimizer.MOMENTS]
                self._state.append((group, rate, parameter, moments, state["step"]))

    def follow_learning_rates(self) -> None:
        """Take over the learning rates of now, which schedules and callbacks change."""
        for i, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self._rates_now[i]:
                self._rates_now[i] = group["lr"]
                self.rates[i].fill_(group["lr"])

    def step(self, gradients: list[Tensor | None]) -> None:
        """Step every parameter that has a gradient."""
        for (group, rate, parameter, moments, count), gradient in zip(self._state, gradients, strict=True):
            if gradient is not None:
                count.add_(1)
                self.optimizer.formula(group, parameter, gradient, moments, count, rate)


def _clipping(trainer: Trainer) -> Callable[[Any], list[Tensor | None]]:
    """What `Optimization` does to gradients before a step, without changing them in place."""
    limit = clip_limit(trainer)
    by_value = trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE

    def clip(gradients: Any) -> list[Tensor | None]:
        present = [gradient for gradient in gradients if gradient is not None]
        if not limit or not present:
            return list(gradients)
        if by_value:
            return [None if gradient is None else gradient.clamp(-limit, limit) for gradient in gradients]
        norm = torch.stack([gradient.square().sum() for gradient in present]).sum().sqrt()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        return [None if gradient is None else gradient * scale for gradient in gradients]

    return clip
