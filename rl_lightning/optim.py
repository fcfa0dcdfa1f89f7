"""Optimizers that step all parameters as one: for small networks the number of kernels is what costs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks as _global_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as _global_pre_hooks

_address = Tensor.data_ptr
Group = dict[str, Any]
"""One of an optimizer's `param_groups`."""


@dataclass
class _Pack:
    """The parameters of one group side by side in one tensor, and whatever belongs to each of them likewise.

    Attributes:
        parameters: P of them, each a view of `flat`.
        addresses: of their memory, by which a parameter that was moved is noticed.
        flat, gradient: [n], n numbers in all.
        gradients: P views of `gradient`.
        steps: [P] float32, how often each was stepped; `step` is the first of them.
        moments: the optimizer's running averages, [n] each.
    """

    parameters: list[Parameter]
    addresses: list[int]
    flat: Tensor
    gradient: Tensor
    gradients: list[Tensor]
    steps: Tensor
    step: Tensor
    moments: list[Tensor]


class PackedOptimizer(Optimizer):
    """Adds packing to one of torch's optimizers; what the user sees of it stays as it is.

    On the first `step` the parameters of each group, their gradients and their running averages become views of one
    tensor each, so that a step, or clipping, is a few kernels for all together. Groups, state, checkpoints and hooks
    are those of torch's optimizer, and so are the numbers, to rounding. What cannot be packed (gradients of only some
    parameters, several dtypes or devices, sparse gradients) is stepped by torch's own code.
    """

    MOMENTS: tuple[str, ...]
    """The names in torch's state of the running averages, one number each for every number of a parameter."""

    _packs: list[_Pack] | None = None
    _opt_called: bool = False
    _unpackable: bool = False

    def formula(
        self, group: Group, parameter: Tensor, gradient: Tensor, moments: list[Tensor], step: Tensor, lr: Tensor
    ) -> None:
        """What `kernel` does, in operations that a compiler can fuse, and with the learning rate as a tensor."""
        raise NotImplementedError

    def kernel(self, group: Group, parameter: Tensor, gradient: Tensor, moments: list[Tensor], step: Tensor) -> None:
        """Step one tensor, in place.

        Args:
            group: with the hyperparameters.
            moments: the running averages, in the order of `MOMENTS`.
            step: float32 scalar, the number of this step, from 1.
        """
        raise NotImplementedError

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of all parameters that have a gradient."""
        packs = self._gather() if closure is None and getattr(self, "grad_scale", None) is None else None
        if packs is None:
            self._packs = None
            return self._step_one_by_one(closure)
        self._step_packs(packs)
        return None

    def clip_and_step(self, max_norm: float | None) -> bool:
        """`clip_norm`, if there is a limit, and `step`, without what torch wraps around it where nobody asks for that:
        a profiler's record, and hooks.

        Returns:
            False if it cannot be done here: somebody asks, or the gradients are not packed.
        """
        hooks = (self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks, _global_pre_hooks, _global_post_hooks)
        packs = self._gather() if not any(hooks) and getattr(self, "grad_scale", None) is None else None
        if packs is None:
            return False
        if max_norm is not None:
            _clip_packs(packs, max_norm)
        self._opt_called = True  # schedulers warn where they see no step
        self._step_packs(packs)
        return True

    def _step_packs(self, packs: list[_Pack]) -> None:
        for group, pack in zip(self.param_groups, packs, strict=True):
            pack.steps.add_(1)
            self.kernel(group, pack.flat, pack.gradient, pack.moments, pack.step)
            increment_version(pack.parameters)  # they were changed behind autograd's back

    def _step_one_by_one(self, closure: Callable[[], float] | None) -> Any:
        """Torch's own step."""
        raise NotImplementedError

    def clip_norm(self, limit: float) -> bool:
        """Scale all gradients together, in place, so that their norm is at most `limit`.

        Returns:
            False if it cannot be done here, because the gradients are not packed.
        """
        packs = self._gather()
        if packs is not None:
            _clip_packs(packs, limit)
        return packs is not None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._packs, self._unpackable = None, False

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        self._packs, self._unpackable = None, False

    # ---- packing -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def pack(self) -> None:
        """Lay parameters and state side by side now, state that is still missing included; where that cannot be, the
        first step makes it. Memory that lies so already, such as memory shared with other processes, is kept.
        """
        self._packs = None if self._unpackable else self._pack()

    def _gather(self) -> list[_Pack] | None:
        """The packs, with every gradient in its own; None where that cannot be."""
        if self._unpackable:
            return None
        packs = self._packs
        if packs is None or any(pack.addresses != list(map(_address, pack.parameters)) for pack in packs):
            packs = self._packs = self._pack()
        if packs is None or not all(map(_gather_gradients, packs)):
            self._packs, self._unpackable = None, True
            return None
        return packs

    @property
    def is_unpacked(self) -> bool:
        """Whether every parameter and its state, which is complete, have memory of their own."""
        tensors: list[Tensor] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if not all(isinstance(state.get(name), Tensor) for name in ("step", *self.MOMENTS)):
                    return False
                tensors += [parameter, state["step"], *(state[name] for name in self.MOMENTS)]
        return len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)

    @torch.no_grad()
    def unpack(self) -> None:
        """Give every parameter, and its state, memory of its own again; what has no state gets it."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                parameter.data = parameter.data.clone()
                step = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32, device=parameter.device)
                state["step"] = step.clone()
                for name in self.MOMENTS:
                    state[name] = state[name].clone() if name in state else torch.zeros_like(parameter)
        self._packs = None

    @torch.no_grad()
    def _pack(self) -> list[_Pack] | None:
        if not all(_packable(group["params"]) and self._alike(group["params"]) for group in self.param_groups):
            return None
        return [self._pack_group(group["params"]) for group in self.param_groups]

    def _alike(self, parameters: list[Parameter]) -> bool:
        """Whether all have been stepped equally often."""
        return len({float(self.state[parameter].get("step", 0.0)) for parameter in parameters}) == 1

    def _pack_group(self, parameters: list[Parameter]) -> _Pack:
        flat, views = _side_by_side([parameter.detach() for parameter in parameters])
        gradient, gradients = _side_by_side([torch.zeros_like(parameter) for parameter in parameters])
        states = [self.state[parameter] for parameter in parameters]
        counts = [torch.as_tensor(state.get("step", 0.0), dtype=torch.float32) for state in states]
        steps, counts = _side_by_side([count.to(flat.device) for count in counts])  # where fused kernels look for it
        moments = []
        for name in self.MOMENTS:
            like = [state.get(name, torch.zeros_like(view)) for state, view in zip(states, views, strict=True)]
            moment, parts = _side_by_side([part.to(flat.device, flat.dtype) for part in like])
            moments.append(moment)
            for state, part in zip(states, parts, strict=True):
                state[name] = part
        for parameter, view, state, count in zip(parameters, views, states, counts, strict=True):
            parameter.data = view
            state["step"] = count
        addresses = [parameter.data_ptr() for parameter in parameters]
        return _Pack(parameters, addresses, flat, gradient, gradients, steps, steps[0], moments)


class Adam(PackedOptimizer, torch.optim.Adam):
    """Adam, fused and packed.

    Args:
        params, lr, betas, eps, weight_decay: as in `torch.optim.Adam`.
    Source:
        Kingma and Ba, 2015. arXiv:1412.6980.
    """

    MOMENTS = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        torch.optim.Adam.__init__(self, params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    def _step_one_by_one(self, closure: Callable[[], float] | None) -> Any:
        return torch.optim.Adam.step(self, closure)

    def kernel(self, group: Group, parameter: Tensor, gradient: Tensor, moments: list[Tensor], step: Tensor) -> None:
        mean, square = moments
        beta1, beta2 = group["betas"]
        torch._fused_adam_(
            [parameter],
            [gradient],
            [mean],
            [square],
            [],
            [step],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def formula(
        self, group: Group, parameter: Tensor, gradient: Tensor, moments: list[Tensor], step: Tensor, lr: Tensor
    ) -> None:
        mean, square = moments
        beta1, beta2 = group["betas"]
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # Written so that each correction is used twice, and of exponentials: the compiler then computes it once, where
        # it would compute a power anew for every few numbers.
        log1, log2 = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
        correction1 = 1 - torch.exp(step * log1)
        correction2 = (1 - torch.exp(step * log2)).sqrt()
        deviation = correction1 * square.sqrt() + group["eps"] * (correction1 * correction2)
        parameter.sub_(lr * correction2 * mean / deviation)


class RMSprop(PackedOptimizer, torch.optim.RMSprop):
    """RMSprop, packed.

    Args:
        params, lr, alpha, eps: as in `torch.optim.RMSprop`.
    Source:
        Hinton, 2012, lecture 6e of Neural Networks for Machine Learning.
    """

    MOMENTS = ("square_avg",)

    def __init__(
        self, params: Iterable[Parameter], lr: float = 1e-2, *, alpha: float = 0.99, eps: float = 1e-8
    ) -> None:
        torch.optim.RMSprop.__init__(self, params, lr=lr, alpha=alpha, eps=eps, foreach=True)

    def _step_one_by_one(self, closure: Callable[[], float] | None) -> Any:
        return torch.optim.RMSprop.step(self, closure)

    def kernel(self, group: Group, parameter: Tensor, gradient: Tensor, moments: list[Tensor], step: Tensor) -> None:
        (square,) = moments
        square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
        parameter.addcdiv_(gradient, square.sqrt().add_(group["eps"]), value=-group["lr"])

    def formula(
        self, group: Group, parameter: Tensor, gradient: Tensor, moments: list[Tensor], step: Tensor, lr: Tensor
    ) -> None:
        (square,) = moments
        square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
        parameter.sub_(lr * gradient / (square.sqrt() + group["eps"]))


def _clip_packs(packs: list[_Pack], limit: float) -> None:
    norms = [torch.linalg.vector_norm(pack.gradient) for pack in packs]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    # On the host a number is quicker than four more kernels; elsewhere reading it would wait for the device.
    scale = limit / (norm.item() + 1e-6) if norm.is_cpu else (limit / (norm + 1e-6)).clamp_(max=1.0)
    if not norm.is_cpu or not scale >= 1.0:
        for pack in packs:
            pack.gradient.mul_(scale)


def _gather_gradients(pack: _Pack) -> bool:
    gradients = [parameter.grad for parameter in pack.parameters]
    if all(map(operator.is_, gradients, pack.gradients)):
        return True
    if any(gradient is None or gradient.is_sparse for gradient in gradients):
        return False
    torch._foreach_copy_(pack.gradients, gradients)  # type: ignore[arg-type]
    for parameter, packed in zip(pack.parameters, pack.gradients, strict=True):
        parameter.grad = packed
    return True


def _packable(parameters: Sequence[Parameter]) -> bool:
    """Whether they can lie side by side: plain, dense, of one floating-point dtype on one device."""
    kinds = {(parameter.device, parameter.dtype) for parameter in parameters}
    return (
        len(kinds) == 1
        and all(type(parameter.data) is Tensor and parameter.is_contiguous() for parameter in parameters)
        and parameters[0].is_floating_point()
    )


def _side_by_side(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """All in one tensor [n], and a view of it for each, of its shape: copies, unless they lie so already."""
    sizes = [tensor.numel() for tensor in tensors]
    if _lie_side_by_side(tensors):
        flat = tensors[0].as_strided((sum(sizes),), (1,))
    else:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    parts = torch.split(flat, sizes)
    return flat, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _lie_side_by_side(tensors: Sequence[Tensor]) -> bool:
    address, offset = tensors[0].untyped_storage().data_ptr(), tensors[0].storage_offset()
    for tensor in tensors:
        place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        if place != (address, offset) or not tensor.is_contiguous():
            return False
        offset += tensor.numel()
    return True
