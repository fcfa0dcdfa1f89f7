"""A normal distribution squashed into -1..1, and the head that makes it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_lightning.types import Array

LOG_STD_RANGE = (-20.0, 2.0)
"""Of the standard deviation's logarithm, before squashing; Haarnoja et al.'s."""


class SquashedGaussian:
    """tanh(mean + std * z), z standard normal, with independent dimensions.

    Args:
        mean, log_std: [N, D], before squashing.
    Source:
        Haarnoja et al., 2018, appendix C. arXiv:1801.01290.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std

    def sample(self) -> Tensor:
        """[N, D] in -1..1; no gradient flows through it."""
        mean = self.mean.detach()
        return torch.addcmul(mean, self.log_std.detach().exp(), torch.randn_like(mean)).tanh()

    def mode(self) -> Tensor:
        """[N, D], the squashed mean."""
        return self.mean.detach().tanh()

    def sample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        """Actions [N, D] that gradients flow through, and their log-densities [N]."""
        noise = torch.randn_like(self.mean)
        x = torch.addcmul(self.mean, self.log_std.exp(), noise)
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)), exact also where tanh has reached 1
        constant = 0.5 * math.log(2 * math.pi) + 2 * math.log(2)
        parts = 2 * (x + F.softplus(-2 * x)) - self.log_std - (0.5 * noise.square() + constant)
        return x.tanh(), parts.sum(dim=1)


class SquashedGaussianHead(nn.Module):
    """2 D numbers -> a `SquashedGaussian` over D: means, then logarithms of the standard deviations."""

    def forward(self, numbers: Tensor) -> SquashedGaussian:
        mean, log_std = numbers.chunk(2, dim=1)
        return SquashedGaussian(mean, log_std.clamp(*LOG_STD_RANGE))

    def act_on_host(self, numbers: Array, *, explore: bool) -> Array:
        """`SquashedGaussian`'s `sample` or `mode` in NumPy."""
        mean, log_std = np.split(numbers, 2, axis=1)
        if explore:
            mean = mean + np.exp(log_std.clip(*LOG_STD_RANGE)) * torch.randn(mean.shape).numpy()
        action: Array = np.tanh(mean)
        return action
