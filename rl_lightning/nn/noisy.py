"""Exploration by noise on the weights, of a strength that is learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

START_NOISE = 0.5
"""The standard deviation of the noise at the start, in units of 1 / sqrt(in_features)."""


class NoisyLinear(nn.Module):
    """A linear layer with factorised Gaussian noise on its weights and biases, where it is asked for.

    y = (weight + weight_noise * f(e_out) f(e_in)^T) x + bias + bias_noise * f(e_out),   f(e) = sign(e) sqrt(|e|)

    Every row of a batch gets noise of its own, at the price of one more product; without noise it is `nn.Linear`.

    Args:
        in_features, out_features: F and G.
    Source:
        Fortunato et al., 2018, section 3. arXiv:1706.10295.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        limit = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-limit, limit))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-limit, limit))
        self.weight_noise = nn.Parameter(torch.full((out_features, in_features), START_NOISE * limit))
        self.bias_noise = nn.Parameter(torch.full((out_features,), START_NOISE * limit))

    def forward(self, x: Tensor, noise: bool = False) -> Tensor:
        """[B, F] -> [B, G]; with `noise` from torch's global generator."""
        mean = F.linear(x, self.weight, self.bias)
        if not noise:
            return mean
        into = _factor(torch.randn_like(x))
        return torch.addcmul(
            mean, _factor(torch.randn_like(mean)), F.linear(x * into, self.weight_noise, self.bias_noise)
        )


def _factor(normal: Tensor) -> Tensor:
    """Normal numbers as factors: their products have then a standard deviation of about 1 each."""
    return normal.sign() * normal.abs().sqrt()
