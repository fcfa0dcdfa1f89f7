"""A learning step as one graph: losses, gradients, clipping and the optimizers' steps."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch._dynamo
from torch import Tensor
from torch.nn import Parameter

from rl_lightning.agents import Agent
from rl_lightning.optim import Group, PackedOptimizer
from rl_lightning.types import Batch, Metrics

Learned: TypeAlias = tuple[Metrics, dict[str, Tensor]]
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


_NUMBERS = itertools.count()


class LearningGraph:
    """`agent.update` and all that its `step(name, loss)` does, compiled.

    It is compiled when the first batch comes, and again for another kind of batch or other hyperparameters of an
    optimizer (its learning rate may change freely).

    Args:
        agent: whose learning steps.
        optimizers: by name; each parameter and its state get memory of their own, unless they have it.
        max_grad_norm, max_grad_value: how gradients are clipped; None: not.
        on_gpu: use CUDA graphs.
    """

    def __init__(
        self,
        agent: Agent,
        optimizers: Mapping[str, Any],
        *,
        max_grad_norm: float | None,
        max_grad_value: float | None,
        on_gpu: bool = False,
    ) -> None:
        self._agent, self._max_norm, self._max_value = agent, max_grad_norm, max_grad_value
        self._parts = {name: _Part(each) for name, each in optimizers.items() if isinstance(each, PackedOptimizer)}
        self._patch = torch._dynamo.config.patch(_CONFIG)
        self._patch.__enter__()
        self._compiled: Callable[[Batch], Learned] = torch.compile(
            self._own_learn(), fullgraph=True, **({"mode": "reduce-overhead"} if on_gpu else {"options": _OPTIONS})
        )

    def close(self) -> None:
        """Give torch's compiler its own settings back. May be called twice."""
        if self._patch is not None:
            self._patch.__exit__(None, None, None)
            self._patch = None

    def __call__(self, batch: Batch) -> Learned:
        """One learning step.

        Raises:
            TorchDynamoException: it cannot be compiled; nothing has run yet.
        """
        for part in self._parts.values():
            part.follow_learning_rates()
        return self._compiled(batch)

    def _own_learn(self) -> Callable[[Batch], Learned]:
        """`_learn` with a code object of its own, where the compiler keeps its graphs: another agent's do not fit.

        And by its name the compiler remembers which shapes have changed: those of another agent's batches have not, and
        graphs for shapes of any size are slower (and of Rainbow's network wrong, with torch 2.13 on CPUs).
        """
        function = type(self)._learn
        code = function.__code__.replace(co_name=f"_learn_{next(_NUMBERS)}")
        own = types.FunctionType(code, function.__globals__)
        return types.MethodType(own, self)

    def _learn(self, batch: Batch) -> Learned:
        """What is compiled."""
        losses: dict[str, Tensor] = {}

        def step(name: str, loss: Tensor) -> None:
            part = self._parts[name]
            gradients = torch.autograd.grad(loss, part.parameters, allow_unused=True)
            with torch.no_grad():
                part.step(self._clip(gradients))
            losses[name] = loss.detach()

        return self._agent.update(batch, step), losses

    def _clip(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """What is done to gradients before a step, without changing them in place."""
        if (limit := self._max_value) is not None:
            return [None if gradient is None else gradient.clamp(-limit, limit) for gradient in gradients]
        present = [gradient for gradient in gradients if gradient is not None]
        if self._max_norm is None or not present:
            return list(gradients)
        norm = torch.stack([gradient.square().sum() for gradient in present]).sum().sqrt()
        scale = (self._max_norm / (norm + 1e-6)).clamp(max=1.0)
        return [None if gradient is None else gradient * scale for gradient in gradients]


class _Part:
    """One optimizer, as the graph sees it."""

    def __init__(self, optimizer: PackedOptimizer) -> None:
        if not optimizer.is_unpacked:
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
