"""Between the actions of a policy, each number in -1..1, and those of an env with bounds."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rl_lightning.types import Array, ConfigurationError


class ActionBounds(nn.Module):
    """Maps -1 to the lower bound of a Box and 1 to the upper one, in a straight line.

    Attributes:
        size: D, numbers in one action.
    Raises:
        ConfigurationError: integer actions, a bound that is not finite, or a lower one that is not below the upper.
    """

    middle: Tensor
    half_range: Tensor

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if not np.issubdtype(space.dtype, np.floating):
            raise ConfigurationError(f"action space {space} is of whole numbers. Wrap the env so that they are floats.")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ConfigurationError(
                f"action space {space}: every action needs a finite lower bound and a finite, higher upper one. Wrap "
                "the env so that it has them (gymnasium.wrappers.RescaleAction, ClipAction, or TransformAction)."
            )
        self.shape = space.shape
        self.size = math.prod(space.shape)
        self.register_buffer("middle", torch.tensor((low + high) / 2).float().flatten(), persistent=False)
        self.register_buffer("half_range", torch.tensor((high - low) / 2).float().flatten(), persistent=False)

    def to_env(self, action: Tensor) -> Tensor:
        """[N, D] in -1..1 -> [N, *A] in the env's own units."""
        return torch.addcmul(self.middle, action, self.half_range).view(-1, *self.shape)

    def to_env_on_host(self, action: Array) -> Array:
        """`to_env` in NumPy."""
        scaled: Array = (self.middle.numpy() + action * self.half_range.numpy()).reshape(-1, *self.shape)
        return scaled

    def from_env(self, action: Tensor) -> Tensor:
        """[N, *A] in the env's own units -> [N, D] in -1..1."""
        return (action.reshape(-1, self.size).to(self.half_range.dtype) - self.middle) / self.half_range
