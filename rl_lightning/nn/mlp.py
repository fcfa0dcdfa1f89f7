"""Plain feed-forward layers and how they are initialised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from rl_lightning.types import ConfigurationError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}


def mlp(
    in_features: int,
    hidden_sizes: Sequence[int],
    activation: str = "relu",
    linear: Callable[[int, int], nn.Module] = nn.Linear,
) -> tuple[list[nn.Module], int]:
    """Linear layers, each followed by the activation: for `Layers(*layers, head)`.

    Args:
        hidden_sizes: one layer each; none at all is allowed.
        activation: one of `ACTIVATIONS`.
        linear: makes each linear layer, from its numbers of features.
    Returns:
        the layers, and the number of features [B, F] that come out of them.
    Raises:
        ConfigurationError: unknown activation, or a size below 1.
    """
    if activation not in ACTIVATIONS:
        raise ConfigurationError(f"unknown activation {activation!r}. Use one of: {', '.join(ACTIVATIONS)}.")
    if any(size < 1 for size in hidden_sizes):
        raise ConfigurationError(f"hidden_sizes={list(hidden_sizes)}: every size must be at least 1.")
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [linear(in_features, size), ACTIVATIONS[activation]()]
        in_features = size
    return layers, in_features


def init_orthogonal(module: nn.Module, gain: float) -> None:
    """Orthogonal weights of the given gain and zero biases in every linear and convolutional layer, in place.

    Source:
        Saxe et al., 2014. arXiv:1312.6120.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
            with torch.no_grad():
                layer.weight.copy_(nn.init.orthogonal_(weight, gain))  # which cannot fill channels-last memory
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
