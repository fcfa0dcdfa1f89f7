"""A policy by itself, for agents whose critics are networks apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import Space
from torch import nn

from rl_lightning.nn.encoders import make_encoder, passes_through
from rl_lightning.nn.layers import Layers
from rl_lightning.nn.mlp import mlp
from rl_lightning.types import Array, ObsArray, ObsTensor


class Policy(nn.Module):
    """pi(s): an encoder, hidden layers with relu, a linear layer, and a head that makes actions of its numbers.

    Args:
        observation_space: of one env.
        num_outputs: numbers that go into the head.
        head: such as `nn.Tanh`, or one that makes a distribution.
        hidden_sizes: of the layers between the encoder and the last linear one.
    Raises:
        ConfigurationError: a space that no encoder serves.
    """

    def __init__(
        self, observation_space: Space[Any], num_outputs: int, *, head: nn.Module, hidden_sizes: Sequence[int]
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(observation_space)
        layers, num_features = mlp(self.encoder.out_features, hidden_sizes)
        self.layers = Layers(*layers, nn.Linear(num_features, num_outputs), head)

    def forward(self, obs: ObsTensor) -> Any:
        """What the head makes of B observations."""
        return self.layers(self.encoder(obs))

    def on_host(self, obs: ObsArray) -> Array | None:
        """What goes into the head, [B, num_outputs], or comes out of a tanh, in NumPy; None where that cannot be."""
        if not passes_through(self.encoder, obs):
            return None
        assert not isinstance(obs, dict)
        started = self.layers.start_on_host(obs)
        if started is None or any(layer is not self.layers[-1] for layer in started[1]):
            return None
        return started[0]
