"""How agents with a policy of their own explore: uniform at first, then by noise on the action."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from rl_lightning.types import ConfigurationError

Noise: TypeAlias = Literal["gaussian", "ornstein_uhlenbeck"]


class UniformWarmUp(nn.Module):
    """Uniformly random actions in the first env steps of all envs together, then the given ones.

    What is left of them is saved with the agent: one that has learned does not begin anew.

    Attributes:
        acting_buffers: of what acting changes: all processes that act for one agent share it.

    Args:
        num_steps: env steps.
        num_actions: to choose among; None for numbers in -1..1.
    """

    steps_left: Tensor
    acting_buffers = ("steps_left",)

    def __init__(self, num_steps: int, num_actions: int | None = None) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.register_buffer("steps_left", torch.tensor(num_steps))

    def forward(self, action: Tensor) -> Tensor:
        """Actions [B, ...] of B envs, as many env steps -> the same or others in their place."""
        if int(self.steps_left) <= 0:
            return action
        self.steps_left.sub_(len(action))
        if self.num_actions is None:
            return torch.rand_like(action).mul_(2).sub_(1)
        return torch.randint(self.num_actions, action.shape, device=action.device)


class GaussianNoise(nn.Module):
    """Independent normal noise."""

    def forward(self, action: Tensor, std: Tensor) -> Tensor:
        """Actions [B, D] in -1..1, noise of standard deviation `std` added, and moved into -1..1."""
        return torch.addcmul(action, torch.randn_like(action), std).clamp_(-1, 1)


class OrnsteinUhlenbeckNoise(nn.Module):
    """Noise that wanders: x <- (1 - theta) x + std * z, z standard normal, one x for each number of each env.

    It goes on across the ends of episodes: what it remembers is gone after some 1 / theta = 7 steps anyway.

    Source:
        Lillicrap et al., 2016, section 7. arXiv:1509.02971.
    """

    THETA = 0.15
    run_buffers = ("_x",)

    def __init__(self) -> None:
        super().__init__()
        self._x = torch.zeros(())

    def forward(self, action: Tensor, std: Tensor) -> Tensor:
        """Actions [B, D] in -1..1, noise added, and moved into -1..1; `std` is of what is new in each step."""
        before = self._x if self._x.shape == action.shape else torch.zeros_like(action)
        self._x = torch.addcmul((1 - self.THETA) * before.to(action), torch.randn_like(action), std)
        return (action + self._x).clamp_(-1, 1)


def make_noise(name: Noise) -> GaussianNoise | OrnsteinUhlenbeckNoise:
    """The noise of this name.

    Raises:
        ConfigurationError: there is none.
    """
    if name == "gaussian":
        return GaussianNoise()
    if name == "ornstein_uhlenbeck":
        return OrnsteinUhlenbeckNoise()
    raise ConfigurationError(f"noise={name!r}: there are 'gaussian' and 'ornstein_uhlenbeck'.")
