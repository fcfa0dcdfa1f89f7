"""The value of each of a few actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import Space
from torch import Tensor, nn

from rl_lightning.nn.encoders import make_encoder, passes_through
from rl_lightning.nn.layers import Layers
from rl_lightning.nn.mlp import mlp
from rl_lightning.types import Array, ObsArray, ObsTensor


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
        self.encoder = make_encoder(observation_space)
        shared, num_features = mlp(self.encoder.out_features, hidden_sizes[:-1], activation)

        def stream(out_features: int) -> list[nn.Module]:
            last, last_features = mlp(num_features, hidden_sizes[-1:], activation)
            return [*last, nn.Linear(last_features, out_features)]

        self.layers = Layers(*shared) if dueling else nn.Identity()
        self.advantage = Layers(*stream(num_actions)) if dueling else Layers(*shared, *stream(num_actions))
        self.value = Layers(*stream(1)) if dueling else None

    def forward(self, obs: ObsTensor) -> Tensor:
        """Q-values [B, num_actions] of B observations."""
        features = self.encoder(obs)
        if self.value is None:
            value: Tensor = self.advantage(features)
            return value
        features = self.layers(features)
        state_value: Tensor = self.value(features)
        advantage: Tensor = self.advantage(features)
        return state_value + advantage - advantage.mean(dim=-1, keepdim=True)

    def on_host(self, obs: ObsArray) -> Array | None:
        """The same in NumPy, for small networks on the host; None where that is not possible."""
        if self.value is not None or not passes_through(self.encoder, obs):
            return None
        assert not isinstance(obs, dict)
        started = self.advantage.start_on_host(obs)
        return None if started is None or started[1] else started[0]
