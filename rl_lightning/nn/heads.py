"""From a network's last numbers to a distribution over actions, one head for each kind of action space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from rl_lightning.nn.distributions import Bernoulli, Categorical, Gaussian
from rl_lightning.nn.mlp import init_orthogonal
from rl_lightning.types import Array, ConfigurationError


class CategoricalHead(nn.Module):
    """Independent choices, the i-th among `sizes[i]`; with `shape` () a single choice."""

    columns: Tensor | None

    def __init__(self, sizes: list[int], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = (*shape, max(sizes))
        self.in_features = sum(sizes)
        columns = [part * max(sizes) + choice for part, size in enumerate(sizes) for choice in range(size)]
        ragged = len(set(sizes)) > 1
        self.register_buffer("columns", torch.tensor(columns) if ragged else None, persistent=False)

    def forward(self, logits: Tensor) -> Categorical:
        if self.columns is not None:
            # Half of the lowest number: a probability of exactly 0, and never -inf * 0 = NaN in the entropy.
            never = torch.finfo(logits.dtype).min / 2
            padded = logits.new_full((len(logits), math.prod(self.shape)), never)
            logits = padded.index_copy(1, self.columns, logits)
        return Categorical(logits if len(self.shape) == 1 else logits.view(-1, *self.shape))

    def act_on_host(self, logits: Array, *, explore: bool) -> Array | None:
        """`Categorical`'s `sample` or `mode` in NumPy, for a single choice; None for several."""
        if len(self.shape) > 1:
            return None
        if explore:
            noise = torch.empty(logits.shape).exponential_().numpy()
            logits = logits - np.log(noise)
        action: Array = logits.argmax(axis=-1)
        return action


class BernoulliHead(nn.Module):
    """Independent yes-or-no choices of the given shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.in_features = math.prod(shape)

    def forward(self, logits: Tensor) -> Bernoulli:
        return Bernoulli(logits.view(-1, *self.shape))


class GaussianHead(nn.Module):
    """Real numbers of the given shape; the standard deviation starts at 1 and is the same in every state."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.in_features = math.prod(shape)
        self.log_std = nn.Parameter(torch.zeros(shape))

    def forward(self, mean: Tensor) -> Gaussian:
        return Gaussian(mean.view(-1, *self.shape), self.log_std)

    def act_on_host(self, mean: Array, *, explore: bool) -> Array | None:
        """`Gaussian`'s `sample` or `mode` in NumPy."""
        mean = mean.reshape(-1, *self.shape)
        if not explore:
            return mean
        sample: Array = mean + np.exp(self.log_std.detach().numpy()) * torch.randn(mean.shape).numpy()
        return sample


def make_policy_head(in_features: int, action_space: Space[Any]) -> list[nn.Module]:
    """The last layers for an action space: features [B, F] -> a `Distribution` over actions [B, *A] that count from 0.

    A linear layer, whose weights are orthogonal of gain 0.01, so that the first policy is nearly the same in every
    state; and what makes a distribution of the numbers that it gives.

    Raises:
        ConfigurationError: not a Discrete, MultiDiscrete, MultiBinary or floating-point Box space.
    """
    head: CategoricalHead | BernoulliHead | GaussianHead
    if isinstance(action_space, spaces.Discrete):
        head = CategoricalHead([int(action_space.n)], ())
    elif isinstance(action_space, spaces.MultiDiscrete):
        head = CategoricalHead(action_space.nvec.flatten().tolist(), action_space.nvec.shape)
    elif isinstance(action_space, spaces.MultiBinary):
        head = BernoulliHead(action_space.shape)
    elif isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating):
        head = GaussianHead(action_space.shape)
    else:
        raise ConfigurationError(
            f"no policy for action space {action_space}. Supported: Discrete, MultiDiscrete, MultiBinary, and Box of "
            "floating-point numbers. Wrap the env so that it has one of these."
        )
    linear = nn.Linear(in_features, head.in_features)
    init_orthogonal(linear, gain=0.01)
    return [linear, head]
