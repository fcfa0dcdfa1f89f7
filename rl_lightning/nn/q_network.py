"""The value of each of a few actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from gymnasium import Space
from torch import Tensor, nn

from rl_lightning.nn.encoders import make_encoder
from rl_lightning.nn.mlp import mlp
from rl_lightning.types import ObsTensor


class QNetwork(nn.Module):
    """Q(s, a) for every action, [B, num_actions].

    Args:
        observation_space: of one env.
        hidden_sizes, activation: of the layers between the encoder and the output (`mlp`).
        dueling: two streams, each with a last hidden layer of its own: Q = V + A - mean(A).
    Raises:
        ConfigurationError: a space that no encoder serves.
    Source:
        Mnih et al., 2015, doi:10.1038/nature14236. Dueling: Wang et al., 2016, equation 9, arXiv:1511.06581.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        num_actions: int,
        *,
        hidden_sizes: Sequence[int],
        activation: str = "relu",
        dueling: bool = False,
    ) -> None:
        super().__init__()
        encoder = make_encoder(observation_space)
        layers, num_features = mlp(encoder.out_features, hidden_sizes[:-1], activation)
        self.layers = nn.Sequential(encoder, *layers)

        def stream(out_features: int) -> nn.Sequential:
            last, last_features = mlp(num_features, hidden_sizes[-1:], activation)
            return nn.Sequential(*last, nn.Linear(last_features, out_features))

        self.advantage = stream(num_actions)
        self.value = stream(1) if dueling else None

    def forward(self, obs: ObsTensor) -> Tensor:
        """Q-values [B, num_actions] of B observations."""
        features = self.layers(obs)
        advantage = cast(Tensor, self.advantage(features))
        if self.value is None:
            return advantage
        return cast(Tensor, self.value(features)) + advantage - advantage.mean(dim=-1, keepdim=True)
