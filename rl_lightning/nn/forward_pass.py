"""An actor-critic's view of some transitions, and the way back from a loss whose derivatives are known.

For a small network most of what a loss costs is autograd's bookkeeping, not arithmetic: who works out by hand how the
loss changes with each log-probability, entropy and value saves a third of a learning step. The same few lines then run
in NumPy for small networks on the host, and in torch everywhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_lightning.nn.actor_critic import ActorCritic
from rl_lightning.nn.distributions import Distribution
from rl_lightning.types import GradientStep, Metrics, Numbers, ObsTensor, StepFn

MAX_PRODUCTS = 4_000_000
"""Rows times weights up to which a learning step is faster so than by autograd: beyond, arithmetic is what costs."""


class ForwardPass(ABC):
    """N transitions passed through an actor-critic.

    Attributes:
        xp: `numpy` or `torch`: what the rest is made of, and the functions for it.
        log_prob: [N] of the actions, as the policy is now.
        entropy: [N] of the policy, in nats.
        value: [N] V(s). No gradient flows through any of the three: it goes through `loss`.
    """

    xp: ModuleType
    log_prob: Numbers
    entropy: Numbers
    value: Numbers

    @abstractmethod
    def numbers(self, tensor: Tensor) -> Numbers:
        """A tensor that no gradient flows into, to calculate with; one of a single number may become a number."""

    @abstractmethod
    def tensor(self, numbers: Numbers) -> Tensor:
        """The opposite."""

    @abstractmethod
    def loss(self, loss: Any, *, log_prob: Numbers, entropy: Numbers, value: Numbers) -> Tensor:
        """A loss with the way back to the network's parameters; it can be differentiated once.

        Args:
            loss: its value.
            log_prob, entropy, value: [N] or a number, its derivative by each of what they are named after.
        """

    def minimise(
        self, step: StepFn, name: str, loss: Any, *, log_prob: Numbers, entropy: Numbers, value: Numbers
    ) -> None:
        """One step of the named optimizer, on what `loss` gives for these arguments."""
        step(name, self.loss(loss, log_prob=log_prob, entropy=entropy, value=value))

    @abstractmethod
    def metrics(self, metrics: Mapping[str, Any]) -> Metrics:
        """Single numbers, as an agent's `update` returns them."""


def forward_pass(network: ActorCritic, obs: ObsTensor, action: Tensor) -> ForwardPass:
    """Pass observations [N, *O] and the actions chosen there [N, *A] through the network."""
    passed = _on_host(network, obs, action)
    if passed is not None:
        return passed
    policy, value = network(obs)
    return _TorchPass(policy, value, action)


class _TorchPass(ForwardPass):
    xp = torch

    def __init__(self, policy: Distribution, value: Tensor, action: Tensor) -> None:
        self._outputs = policy.log_prob(action), policy.entropy(), value
        self.log_prob, self.entropy, self.value = (output.detach() for output in self._outputs)

    def numbers(self, tensor: Tensor) -> Tensor:
        return tensor

    def tensor(self, numbers: Tensor) -> Tensor:
        return numbers

    def loss(self, loss: Any, *, log_prob: Numbers, entropy: Numbers, value: Numbers) -> Tensor:
        slopes = (log_prob, entropy, value)
        if torch.compiler.is_compiling():  # where nobody can ask for a second derivative, which this has not
            pairs = zip(self._outputs, slopes, strict=True)
            with_gradient: Tensor = loss + sum(((output - output.detach()) * slope).sum() for output, slope in pairs)
            return with_gradient

        def back(scale: Tensor) -> list[Tensor]:
            pairs = zip(self._outputs, slopes, strict=True)
            return [(scale * slope).to(output.dtype).expand_as(output) for output, slope in pairs]

        known: Tensor = _Known.apply(loss, back, *self._outputs)  # type: ignore[no-untyped-call]
        return known

    def metrics(self, metrics: Mapping[str, Any]) -> Metrics:
        return metrics


class _HostPass(ForwardPass):
    xp = np

    def __init__(
        self, parameters: Sequence[Tensor], outputs: tuple[Numbers, ...], back: Callable[..., list[Tensor]]
    ) -> None:
        self._parameters, self._back = parameters, back
        self.log_prob, self.entropy, self.value = outputs

    def numbers(self, tensor: Tensor) -> Numbers:
        return tensor.numpy() if tensor.dim() else tensor.item()

    def tensor(self, numbers: Numbers) -> Tensor:
        return torch.from_numpy(numbers)

    def loss(self, loss: Any, *, log_prob: Numbers, entropy: Numbers, value: Numbers) -> Tensor:
        def back(scale: Tensor) -> list[Tensor]:
            by = scale.item()
            return self._back(log_prob * by, entropy * by, value * by)

        known: Tensor = _Known.apply(torch.tensor(float(loss)), back, *self._parameters)  # type: ignore[no-untyped-call]
        return known

    def minimise(
        self, step: StepFn, name: str, loss: Any, *, log_prob: Numbers, entropy: Numbers, value: Numbers
    ) -> None:
        if not (isinstance(step, GradientStep) and step.takes_gradients(self._parameters)):
            super().minimise(step, name, loss, log_prob=log_prob, entropy=entropy, value=value)
            return
        gradients = self._back(log_prob, entropy, value)
        step.with_gradients(name, torch.tensor(float(loss)), self._parameters, gradients)

    def metrics(self, metrics: Mapping[str, Any]) -> Metrics:
        return dict(zip(metrics, torch.tensor([float(value) for value in metrics.values()]).unbind(), strict=True))


def _on_host(network: ActorCritic, obs: ObsTensor, action: Tensor) -> ForwardPass | None:
    """The pass in NumPy; None where that is slower, or somebody wants to know what runs."""
    if (
        torch.compiler.is_compiling()
        or torch.is_anomaly_enabled()
        or torch.is_autocast_enabled("cpu")
        or type(network) is not ActorCritic
        or type(obs) is not Tensor
        or not obs.is_cpu
        or obs.dtype is not torch.float32
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return None
    passed = network.pass_on_host(obs.numpy(), action.numpy(), max_products=MAX_PRODUCTS)
    return None if passed is None else _HostPass(*passed)


class _Known(torch.autograd.Function):
    """A loss whose derivatives by some tensors somebody has worked out."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, back: Callable[[Tensor], list[Tensor]], *tensors: Tensor) -> Tensor:
        ctx.back = back
        ctx.save_for_backward(*tensors)  # autograd then sees if somebody has changed them in between
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this loss can be differentiated once: its derivatives are written by hand, and create_graph=True asks "
                "for a graph of them. Override the agent's update with a loss that autograd differentiates."
            )
        ctx.saved_tensors  # noqa: B018 - looked at, not used
        return None, None, *ctx.back(scale)
