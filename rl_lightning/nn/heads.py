"""From a network's last numbers to a distribution over actions, one head for each kind of action space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from rl_lightning.nn.distributions import Bernoulli, Categorical, Gaussian
from rl_lightning.nn.mlp import init_orthogonal
from rl_lightning.types import Array, ConfigurationError


class JudgedOnHost(NamedTuple):
    """What a head's distribution says of actions, in NumPy.

    Attributes:
        log_prob, entropy: [N], as `Distribution` has them.
        back: from the derivatives of a loss by these two, [N] or a number each, to its gradients by what went into the
            head, [N, in_features], and by the head's own parameters.
    """

    log_prob: Array
    entropy: Array
    back: Callable[[Any, Any], tuple[Array, list[Array]]]


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

    def judge_on_host(self, logits: Array, action: Array) -> JudgedOnHost | None:
        """`Categorical`'s `log_prob` and `entropy` of a single choice [N]; None for several."""
        if len(self.shape) > 1:
            return None
        # choices first: NumPy adds up rows five times as fast as columns
        log_probs = logits.T.copy()
        log_probs -= log_probs.max(axis=0)
        probs = np.exp(log_probs)
        total = probs.sum(axis=0)
        log_probs -= np.log(total)
        probs /= total
        chosen = action, np.arange(len(action))
        entropy = -(probs * log_probs).sum(axis=0)

        def back(by_log_prob: Any, by_entropy: Any) -> tuple[Array, list[Array]]:
            gradient = log_probs + entropy
            gradient *= -by_entropy
            gradient -= by_log_prob
            gradient *= probs
            gradient[chosen] += by_log_prob
            return gradient.T, []

        return JudgedOnHost(log_probs[chosen], entropy, back)


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

    def judge_on_host(self, mean: Array, action: Array) -> JudgedOnHost | None:
        """`Gaussian`'s `log_prob` and `entropy` of actions [N, *A]."""
        log_std = self.log_std.detach().numpy().reshape(-1)
        inverse = np.exp(-log_std)
        z = (action.reshape(mean.shape) - mean) * inverse
        total = log_std.sum(dtype=np.float32)
        constant = np.float32(0.5 * math.log(2 * math.pi) * len(log_std))
        log_prob = np.einsum("ni,ni->n", z, z) * np.float32(-0.5) - (total + constant)
        entropy = np.full(len(mean), total + constant + np.float32(0.5 * len(log_std)), np.float32)

        def back(by_log_prob: Any, by_entropy: Any) -> tuple[Array, list[Array]]:
            slopes = np.broadcast_to(np.asarray(by_log_prob, np.float32), len(mean))
            of_mean = z * slopes[:, None]
            of_log_std = np.einsum("ni,ni->i", of_mean, z) - slopes.sum()
            of_log_std += np.broadcast_to(np.asarray(by_entropy, np.float32), len(mean)).sum()
            of_mean *= inverse
            return of_mean, [of_log_std.reshape(self.shape)]

        return JudgedOnHost(log_prob, entropy, back)


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
