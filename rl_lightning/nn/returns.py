"""What a Q-network's numbers say of the return: its mean alone, or its distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_lightning.functional import categorical_projection, quantile_huber
from rl_lightning.types import ConfigurationError


def midpoints(num_parts: int) -> Tensor:
    """[M], the middles of M equal parts of 0 to 1."""
    return (torch.arange(num_parts) + 0.5) / num_parts


class Returns(nn.Module, ABC):
    """How M numbers of a network describe the return after an action, and how they are learned."""

    num_atoms: int | None = None
    """M; None: a single number, without an axis of its own."""

    @abstractmethod
    def mean(self, numbers: Tensor) -> Tensor:
        """The mean returns [...] of numbers [..., M], or [...] where there is one for each action."""

    @abstractmethod
    def errors(
        self, numbers: Tensor, following: Tensor, reward: Tensor, discount: Tensor, fractions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """How far N predictions are from what followed.

        Args:
            numbers: [N, M] or [N], of the actions that were taken.
            following: the same of the best actions in what followed; finite, and no gradient flows into it.
            reward: [N], in the env's own units, over the steps in between.
            discount: [N], over the steps in between; 0 where the episode terminated.
            fractions: [N, M], what `numbers` were asked for, where there is something to ask for.
        Returns:
            the loss of each, [N], and how surprising each was, [N], without a gradient and not negative: its priority
            in a replay memory.
        """

    def draw_fractions(self, num_rows: int) -> Tensor | None:
        """What the network is to be asked for in learning: for implicit quantiles fractions [N, M], drawn at random."""
        return None


class MeanReturn(Returns):
    """One number for each action, the mean of the return, learned with the Huber loss."""

    def mean(self, numbers: Tensor) -> Tensor:
        return numbers

    def errors(
        self, numbers: Tensor, following: Tensor, reward: Tensor, discount: Tensor, fractions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        target = reward + discount * following
        errors = F.smooth_l1_loss(numbers, target, reduction="none")
        return errors, (target - numbers.detach()).abs()


class CategoricalReturn(Returns):
    """The probabilities of M possible returns, as logits.

    Args:
        num_atoms: M.
        low, high: the least and the highest return, in the env's own units; the others lie at equal distances between.
    Source:
        Bellemare et al., 2017. arXiv:1707.06887. The loss, and priority, is the Kullback-Leibler divergence, as in
        Hessel et al., 2018, arXiv:1710.02298.
    """

    atoms: Tensor

    def __init__(self, num_atoms: int, low: float, high: float) -> None:
        super().__init__()
        if not (num_atoms >= 2 and low < high):
            raise ConfigurationError(
                f"num_atoms={num_atoms}, value_range=({low}, {high}): at least 2 atoms, the first below the last."
            )
        self.num_atoms = num_atoms
        self.register_buffer("atoms", torch.linspace(low, high, num_atoms), persistent=False)

    def mean(self, numbers: Tensor) -> Tensor:
        # no product of matrices, which autocast would round
        return (self._in_full(numbers).softmax(dim=-1) * self.atoms).sum(dim=-1)

    def errors(
        self, numbers: Tensor, following: Tensor, reward: Tensor, discount: Tensor, fractions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        moved = reward.unsqueeze(1) + discount.unsqueeze(1) * self.atoms
        target = categorical_projection(self._in_full(following).softmax(dim=-1), moved, self.atoms)
        errors = F.kl_div(self._in_full(numbers).log_softmax(dim=-1), target, reduction="none").sum(dim=-1)
        return errors, errors.detach().clamp(min=0.0)

    def _in_full(self, numbers: Tensor) -> Tensor:
        """In the precision of the atoms, where mixed precision gave less."""
        return numbers.to(self.atoms.dtype)


class QuantileReturn(Returns):
    """M quantiles of the return; of equal shares, or (implicit) of whatever shares the network is asked for.

    Args:
        num_atoms: M.
        implicit: learn with shares that are drawn anew each time.
    Source:
        Dabney et al., 2018, arXiv:1710.10044; implicit: Dabney et al., 2018, arXiv:1806.06923.
    """

    midpoints: Tensor

    def __init__(self, num_atoms: int, *, implicit: bool = False) -> None:
        super().__init__()
        if not num_atoms >= 1:
            raise ConfigurationError(f"num_atoms={num_atoms}: at least 1 quantile.")
        self.num_atoms = num_atoms
        self.implicit = implicit
        self.register_buffer("midpoints", midpoints(num_atoms), persistent=False)

    def mean(self, numbers: Tensor) -> Tensor:
        return numbers.mean(dim=-1)

    def draw_fractions(self, num_rows: int) -> Tensor | None:
        if not self.implicit:
            return None
        return torch.rand(num_rows, len(self.midpoints), dtype=self.midpoints.dtype, device=self.midpoints.device)

    def errors(
        self, numbers: Tensor, following: Tensor, reward: Tensor, discount: Tensor, fractions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        target = reward.unsqueeze(1) + discount.unsqueeze(1) * following
        errors = quantile_huber(numbers, self.midpoints if fractions is None else fractions, target)
        return errors, errors.detach()
