"""From features to a distribution over actions, one head for each kind of action space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from rl_lightning.nn.distributions import Bernoulli, Categorical, Gaussian
from rl_lightning.nn.mlp import init_orthogonal
from rl_lightning.types import ConfigurationError


class CategoricalHead(nn.Module):
    """Independent choices, the i-th among `sizes[i]`; with `shape` () a single choice."""

    columns: Tensor | None

    def __init__(self, in_features: int, sizes: list[int], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = (*shape, max(sizes))
        self.linear = nn.Linear(in_features, sum(sizes))
        columns = [part * max(sizes) + choice for part, size in enumerate(sizes) for choice in range(size)]
        ragged = len(set(sizes)) > 1
        self.register_buffer("columns", torch.tensor(columns) if ragged else None, persistent=False)

    def forward(self, features: Tensor) -> Categorical:
        logits = self.linear(features)
        if self.columns is not None:
            # Half of the lowest number: a probability of exactly 0, and never -inf * 0 = NaN in the entropy.
            never = torch.finfo(logits.dtype).min / 2
            padded = logits.new_full((len(logits), math.prod(self.shape)), never)
            logits = padded.index_copy(1, self.columns, logits)
        return Categorical(logits if len(self.shape) == 1 else logits.view(-1, *self.shape))


class BernoulliHead(nn.Module):
    """Independent yes-or-no choices of the given shape."""

    def __init__(self, in_features: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(in_features, math.prod(shape))

    def forward(self, features: Tensor) -> Bernoulli:
        return Bernoulli(self.linear(features).view(-1, *self.shape))


class GaussianHead(nn.Module):
    """Real numbers of the given shape; the standard deviation starts at 1 and is the same in every state."""

    def __init__(self, in_features: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(in_features, math.prod(shape))
        self.log_std = nn.Parameter(torch.zeros(shape))

    def forward(self, features: Tensor) -> Gaussian:
        return Gaussian(self.linear(features).view(-1, *self.shape), self.log_std)


def make_policy_head(in_features: int, action_space: Space[Any]) -> nn.Module:
    """The head for an action space: features [B, F] -> a `Distribution` over actions [B, *A] that count from 0.

    Its weights are orthogonal of gain 0.01: the first policy is nearly the same in every state.

    Raises:
        ConfigurationError: not a Discrete, MultiDiscrete, MultiBinary or floating-point Box space.
    """
    head: nn.Module
    if isinstance(action_space, spaces.Discrete):
        head = CategoricalHead(in_features, [int(action_space.n)], ())
    elif isinstance(action_space, spaces.MultiDiscrete):
        head = CategoricalHead(in_features, action_space.nvec.flatten().tolist(), action_space.nvec.shape)
    elif isinstance(action_space, spaces.MultiBinary):
        head = BernoulliHead(in_features, action_space.shape)
    elif isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating):
        head = GaussianHead(in_features, action_space.shape)
    else:
        raise ConfigurationError(
            f"no policy for action space {action_space}. Supported: Discrete, MultiDiscrete, MultiBinary, and Box of "
            "floating-point numbers. Wrap the env so that it has one of these."
        )
    init_orthogonal(head, gain=0.01)
    return head
