"""Several Q-networks of one shape, run together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import Space
from torch import Tensor, nn

from rl_lightning.nn.encoders import make_encoder
from rl_lightning.types import ObsTensor


class Critics(nn.Module):
    """Q_1(s, a) .. Q_M(s, a): M networks side by side, each layer one batched product. Images are encoded once.

    Args:
        observation_space: of one env.
        action_size: D, numbers in an action that is an input; 0 where there is an output for each action.
        num_outputs: 1, or the number of actions.
        num_critics: M.
        hidden_sizes: of each network, with relu.
    Raises:
        ConfigurationError: a space that no encoder serves.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        *,
        action_size: int,
        num_outputs: int = 1,
        num_critics: int,
        hidden_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(observation_space)
        sizes = [self.encoder.out_features + action_size, *hidden_sizes, num_outputs]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for size, next_size in itertools.pairwise(sizes):
            limit = 1 / math.sqrt(size)  # what nn.Linear begins with
            self.weights.append(torch.empty(num_critics, size, next_size).uniform_(-limit, limit))
            self.biases.append(torch.empty(num_critics, 1, next_size).uniform_(-limit, limit))

    def forward(self, obs: ObsTensor, action: Tensor | None = None) -> Tensor:
        """Values of N observations and actions [N, D] in -1..1: [M, N]; without actions [M, N, num_outputs]."""
        return _values(self.encoder(obs), action, list(self.weights), list(self.biases))

    def fixed(self, obs: ObsTensor, action: Tensor | None = None, *, num_critics: int | None = None) -> Tensor:
        """`forward` of the first `num_critics`, or of all; gradients flow to the action alone, and none is computed
        for the networks.
        """
        with torch.no_grad():
            features = self.encoder(obs)
        weights = [weight.detach()[:num_critics] for weight in self.weights]
        return _values(features, action, weights, [bias.detach()[:num_critics] for bias in self.biases])


def _values(features: Tensor, action: Tensor | None, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    x = features if action is None else torch.cat([features, action], dim=1)
    x = x.expand(len(weights[0]), *x.shape)
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.bmm(x, weight).add_(bias).relu_()  # compiled, one kernel after the product
    values = torch.baddbmm(biases[-1], x, weights[-1])
    return values if action is None else values.squeeze(-1)
