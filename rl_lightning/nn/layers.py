"""Layers one after another, for the small batches of reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_lightning.types import Array

MAX_PRODUCTS = 262_144
"""Rows times weights up to which NumPy is the faster. Forward, 1 to 64 rows through 4-64-64-2 take 4 to 16 microseconds
instead of 11 to 20; 8 rows through 4-256-256-2, above this limit, 30 instead of 23. With the gradient, half as many.

NumPy's BLAS takes several threads for more products than these in one matrix. They and torch's then wait for each
other: on two cores, where no variable sets the number of threads to 1, all takes ten times as long.
"""
MAX_SUMMANDS = 9_216
"""The same for numbers of a matrix that is multiplied by a vector."""


def _tanh_backward(gradient: Any, y: Any) -> Any:
    if isinstance(y, Tensor):
        return torch.ops.aten.tanh_backward.default(gradient, y)  # one kernel
    return gradient * (1.0 - y * y)


def _relu_backward(gradient: Any, y: Any) -> Any:
    if isinstance(y, Tensor):
        return torch.ops.aten.threshold_backward.default(gradient, y, 0)
    return gradient * (y > 0.0)


_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[..., Array], Callable[..., Any]]] = {
    nn.Tanh: (torch.tanh, np.tanh, _tanh_backward),
    nn.ReLU: (torch.relu, partial(np.maximum, np.float32(0.0)), _relu_backward),
}
"""Those that are called as functions: in torch, in NumPy, and the gradient in either, from that of the output."""


class Layers(nn.Sequential):
    """As `nn.Sequential`, for small batches at half of its cost or less.

    The first layers, as long as they are linear, or tanh or relu after a linear one, are called as functions, and a
    small float32 batch on the host passes through them in NumPy, on the very memory of the parameters, forward and
    backward: 20 microseconds for 8 rows through 4-64-64-2, without gradients, become 9. Where a hook wants to be told
    that a layer runs, each is called as a module.
    """

    _plan: _Plan | None = None

    def forward(self, x: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(x)  # type: ignore[no-untyped-call]
        plan = self._current_plan()
        if any(plan.hooks):
            return super().forward(x)  # type: ignore[no-untyped-call]
        differentiates = torch.is_grad_enabled()
        if (
            type(x) is Tensor
            and x.is_cpu
            and x.dim() == 2
            and x.shape[0] <= (plan.max_rows // 2 if differentiates else plan.max_rows)
            and x.dtype is torch.float32
            and torch._C._functorch.peek_interpreter_stack() is None
        ):
            x = plan.differentiable(x) if differentiates else torch.from_numpy(plan.on_host(x.numpy())[-1])
        else:
            x = plan.in_torch(x, plan.tensors())[-1]
        for layer in plan.others:
            x = layer(x)
        return x

    def pass_on_host(self, x: Array, *, max_products: int) -> HostPass | None:
        """[N, in] through the plain layers without autograd, with the way back; None where that cannot be.

        Args:
            max_products: rows times weights at most.
        """
        plan = self._current_plan()
        if plan.max_rows < 0 or len(x) * plan.num_weights > max_products or any(plan.hooks) or any(hooks_of(self)):
            return None
        return HostPass(plan, x)

    def start_on_host(self, x: Array) -> tuple[Array, list[nn.Module]] | None:
        """[N, in] through the plain layers in NumPy, and the layers that are left; None where they cannot run there."""
        plan = self._current_plan()
        if len(x) > plan.max_rows or any(plan.hooks):
            return None
        return plan.on_host(x)[-1], plan.others

    def _current_plan(self) -> _Plan:
        plan = self._plan
        if plan is None or plan.given != list(self._modules.values()):
            plan = self.__dict__["_plan"] = _Plan(list(self.children()))
        return plan

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.__dict__.pop("_plan", None)  # another device or dtype may follow
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}


class HostPass:
    """A batch on its way through plain layers on the host; small products in NumPy, large ones in torch.

    Attributes:
        output: [N, out] of the last of them.
        others: the layers that are left.
        parameters: the weights and biases in turn.
    """

    def __init__(self, plan: _Plan, x: Array) -> None:
        self._plan, self.others, self.parameters = plan, plan.others, plan.tensors()
        self._in_numpy = len(x) * plan.largest <= MAX_PRODUCTS
        self._passed: list[Any]
        self._weights: list[Any]
        if self._in_numpy:
            self._passed = plan.on_host(x)
            self._weights, self.output = plan.weights, self._passed[-1]
        else:
            tensors = [tensor.detach() for tensor in self.parameters]
            self._passed = plan.in_torch(torch.from_numpy(x), tensors)
            self._weights, self.output = tensors[::2], self._passed[-1].numpy()

    def back(self, gradient: Array) -> list[Tensor]:
        """From the gradient of `output` to those of `parameters`."""
        given: Any = gradient if self._in_numpy else torch.from_numpy(gradient)
        gradients = self._plan.backward(given, self._passed, self._weights, to_input=False)[1]
        return list(map(torch.from_numpy, gradients)) if self._in_numpy else gradients


class _Plan:
    """How to run some layers.

    Attributes:
        given: the layers.
        hooks: what is registered with each of them, to be told when it runs: dicts that may fill later.
        plain: of the layers that are called as functions, the parameters of each linear one and what follows it: as
            in `_ACTIVATIONS`, or three times None.
        others: the layers after those.
        num_weights: of all plain layers, biases included.
        largest: the most weights that a plain layer has.
        max_rows: of a batch that passes on the host; -1 where the parameters are not float32 and there.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.given = layers
        self.hooks = [hooks for layer in layers for hooks in hooks_of(layer)]
        self.plain: list[tuple[dict[str, Any], Any, Any, Any]] = []
        start = 0
        while start < len(layers) and type(layers[start]) is nn.Linear and layers[start].bias is not None:
            following = type(layers[start + 1]) if start + 1 < len(layers) else nn.Module
            self.plain.append((layers[start]._parameters, *_ACTIVATIONS.get(following, (None, None, None))))
            start += 2 if following in _ACTIVATIONS else 1
        self.others = layers[start:]
        tensors = self.tensors()
        is_on_host = all(type(t.data) is Tensor and t.is_cpu and t.dtype == torch.float32 for t in tensors)
        self.num_weights = sum(tensor.numel() for tensor in tensors)
        self.largest = max((tensor.numel() for tensor in tensors), default=0)
        self.max_rows = MAX_PRODUCTS // self.num_weights if self.num_weights and is_on_host else -1
        self._addresses: list[int] = []
        self._steps: list[_Step] = []

    def on_host(self, x: Array) -> list[Array]:
        """[N, in] -> what goes into each linear layer, and last what comes out of the plain layers."""
        addresses = list(map(Tensor.data_ptr, self.tensors()))
        if addresses != self._addresses:  # moved, replaced, or not seen before
            self._steps, self._addresses = self._bind(), addresses
        arrays = [x]
        for weight, bias, activate in self._steps:
            x = x @ weight
            x += bias
            if activate is not None:
                x = activate(x)
            arrays.append(x)
        return arrays

    def in_torch(self, x: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        """As `on_host` in torch's operations, on any device, with these weights and biases in turn."""
        passed = [x]
        for k, (_, activate, _, _) in enumerate(self.plain):
            x = F.linear(x, tensors[2 * k], tensors[2 * k + 1])
            if activate is not None:
                x = activate(x)
            passed.append(x)
        return passed

    def differentiable(self, x: Tensor) -> Tensor:
        """As `on_host`, for autograd."""
        y: Tensor = _OnHost.apply(x, self, *self.tensors())  # type: ignore[no-untyped-call]
        return y

    def backward(
        self, gradient: Any, passed: list[Any], weights: list[Any], *, to_input: bool
    ) -> tuple[Any, list[Any]]:
        """From the gradient of the output to those of the input, if wanted, and of the weights and biases in turn.

        Args:
            passed: what `on_host` or `in_torch` gave; all is of that kind.
            weights: [out, in], of each linear layer.
        """
        gradients: list[Any] = []
        for k in reversed(range(len(self.plain))):
            activate_backward = self.plain[k][3]
            if activate_backward is not None:
                gradient = activate_backward(gradient, passed[k + 1])
            gradients += [_sum_rows(gradient), gradient.T @ passed[k]]
            if k or to_input:
                gradient = gradient @ weights[k]
        return gradient if to_input else None, gradients[::-1]

    def tensors(self) -> list[Tensor]:
        """The weights and biases of the plain layers in turn."""
        return [parameters[name] for parameters, *_ in self.plain for name in ("weight", "bias")]

    @property
    def weights(self) -> list[Array]:
        """Those that `on_host` used last, [out, in] each."""
        return [weight.T for weight, *_ in self._steps]

    def _bind(self) -> list[_Step]:
        steps: list[_Step] = []
        for parameters, _, activate, _ in self.plain:
            weight, bias = parameters["weight"].detach().numpy(), parameters["bias"].detach().numpy()
            steps.append((weight.T, bias, activate))
        return steps


def _sum_rows(x: Any) -> Any:
    """[N, F] -> [F]."""
    if isinstance(x, np.ndarray) and x.size < MAX_SUMMANDS:
        return np.ones(len(x), np.float32) @ x  # 1.4 microseconds instead of 5.7 for 256 x 64
    return x.sum(axis=0)


_Step: TypeAlias = tuple[Array, Array, Callable[..., Array] | None]
"""A linear layer on the host: weight [in, out], bias [out], and the activation after it."""


class _OnHost(torch.autograd.Function):
    """`_Plan.on_host` with its gradient, which can itself be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _Plan, *tensors: Tensor) -> Tensor:
        ctx.plan, ctx.arrays = plan, plan.on_host(x.detach().numpy())
        ctx.save_for_backward(x, *tensors)  # autograd then sees if somebody has changed them in between
        return torch.from_numpy(ctx.arrays[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        to_input = ctx.needs_input_grad[0]
        if torch.is_grad_enabled():  # somebody wants a graph of it
            passed = ctx.plan.in_torch(x, tensors)
            of_input, gradients = ctx.plan.backward(gradient, passed, tensors[::2], to_input=to_input)
            return of_input, None, *gradients
        of_input, gradients = ctx.plan.backward(gradient.numpy(), ctx.arrays, ctx.plan.weights, to_input=to_input)
        return (
            None if of_input is None else torch.from_numpy(of_input),
            None,
            *(torch.from_numpy(array) for array in gradients),
        )


def hooks_of(layer: nn.Module) -> tuple[Any, ...]:
    """Who is told when the layer runs, or when a gradient passes through it."""
    return layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
