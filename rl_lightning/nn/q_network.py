"""The value of each of a few actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gymnasium import Space
from torch import Tensor, nn

from rl_lightning.nn.encoders import make_encoder, passes_through
from rl_lightning.nn.layers import Layers
from rl_lightning.nn.mlp import mlp
from rl_lightning.nn.noisy import NoisyLinear
from rl_lightning.nn.returns import midpoints
from rl_lightning.types import Array, ObsArray, ObsTensor

NUM_COSINES = 64
"""Features of a fraction before `FractionEmbedding` learns from them."""


class QNetwork(nn.Module):
    """Q(s, a) for every action, [B, num_actions], or M numbers that describe it, [B, num_actions, M].

    Args:
        observation_space: of one env.
        hidden_sizes, activation: of the layers between the encoder and the output (`mlp`).
        dueling: two streams, each with a last hidden layer of its own: Q = V + A - mean(A).
        noisy: all layers after the encoder are `NoisyLinear`.
        num_atoms: M. None: one number for each action, without an axis of its own.
        implicit: the M numbers are quantiles of any fractions: these are embedded, and multiplied with the features
            that go into the last hidden layer.
    Raises:
        ConfigurationError: a space that no encoder serves.
    Source:
        Mnih et al., 2015, doi:10.1038/nature14236. Dueling: Wang et al., 2016, equation 9, arXiv:1511.06581.
        Implicit: Dabney et al., 2018, equation 4, arXiv:1806.06923.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        num_actions: int,
        *,
        hidden_sizes: Sequence[int],
        activation: str = "relu",
        dueling: bool = False,
        noisy: bool = False,
        num_atoms: int | None = None,
        implicit: bool = False,
    ) -> None:
        super().__init__()
        self.num_actions, self.num_atoms = num_actions, num_atoms
        linear: Callable[[int, int], nn.Module] = NoisyLinear if noisy else nn.Linear
        self.encoder = make_encoder(observation_space)
        shared, num_features = mlp(self.encoder.out_features, hidden_sizes[:-1], activation, linear)

        def stream(out_features: int) -> list[nn.Module]:
            last, last_features = mlp(num_features, hidden_sizes[-1:], activation, linear)
            return [*last, linear(last_features, out_features * (1 if implicit else num_atoms or 1))]

        is_shared = dueling or implicit
        self.layers = Layers(*shared) if is_shared else nn.Identity()
        self.fractions = FractionEmbedding(num_features, num_atoms or 1) if implicit else None
        self.advantage = Layers(*stream(num_actions)) if is_shared else Layers(*shared, *stream(num_actions))
        self.value = Layers(*stream(1)) if dueling else None

    def forward(self, obs: ObsTensor, *, noise: bool = False, fractions: Tensor | None = None) -> Tensor:
        """Q-values of B observations, [B, num_actions] or [B, num_actions, M].

        Args:
            noise: noisy layers draw theirs; otherwise they give their mean.
            fractions: [B, M] between 0 and 1, of the implicit quantiles. None: M that divide the interval evenly.
        """
        features = _pass(self.layers, self.encoder(obs), noise)
        if self.fractions is not None:
            features = self.fractions(features, fractions)
        advantage = self._by_action(_pass(self.advantage, features, noise))
        if self.value is None:
            return advantage
        state_value = self._by_action(_pass(self.value, features, noise))
        return state_value + advantage - advantage.mean(dim=1, keepdim=True)

    def _by_action(self, numbers: Tensor) -> Tensor:
        """What a stream gives, as [B, actions] or [B, actions, M]."""
        if self.num_atoms is None:
            return numbers
        if self.fractions is None:
            return numbers.view(len(numbers), -1, self.num_atoms)
        return numbers.view(-1, self.num_atoms, numbers.shape[1]).transpose(1, 2)

    def on_host(self, obs: ObsArray) -> Array | None:
        """Q-values [B, num_actions] in NumPy, for small networks on the host; None where that is not possible."""
        if self.value is not None or self.num_atoms is not None or not passes_through(self.encoder, obs):
            return None
        assert not isinstance(obs, dict)
        started = self.advantage.start_on_host(obs)
        return None if started is None or started[1] else started[0]


class FractionEmbedding(nn.Module):
    """Features [B, F] and M fractions each -> features [B * M, F], a fraction's with those of its observation.

    Args:
        num_features: F.
        num_fractions: M.
    """

    midpoints: Tensor
    frequencies: Tensor

    def __init__(self, num_features: int, num_fractions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_COSINES, num_features)
        self.register_buffer("midpoints", midpoints(num_fractions), persistent=False)
        self.register_buffer("frequencies", math.pi * torch.arange(NUM_COSINES), persistent=False)

    def forward(self, features: Tensor, fractions: Tensor | None = None) -> Tensor:
        asked = self.midpoints.unsqueeze(0) if fractions is None else fractions
        embedded = self.linear((asked.unsqueeze(-1) * self.frequencies).cos()).relu()
        each: Tensor = features.unsqueeze(1) * embedded
        return each.flatten(0, 1)


def _pass(layers: nn.Module, x: Tensor, noise: bool) -> Tensor:
    if not noise:
        y: Tensor = layers(x)
        return y
    for layer in layers.children():
        x = layer(x, noise=True) if isinstance(layer, NoisyLinear) else layer(x)
    return x
