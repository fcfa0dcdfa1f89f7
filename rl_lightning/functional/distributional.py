"""Learning the distribution of the return in place of its mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def categorical_projection(probability: Tensor, moved: Tensor, atoms: Tensor) -> Tensor:
    """Share the probability of each `moved` atom among the two fixed ones that it lies between.

    projected_i = sum_j clip(1 - |clip(moved_j, atoms_0, atoms_{M-1}) - atoms_i| / distance, 0, 1) * probability_j

    Args:
        probability: [N, M].
        moved: [N, M], the returns that have these probabilities; beyond the fixed atoms they count as the outermost.
        atoms: [M], ascending, at equal distances.
    Returns:
        [N, M], each row with the same sum as its `probability`.
    Source:
        Bellemare et al., 2017, equation 7. arXiv:1707.06887.
    """
    last = len(atoms) - 1
    position = ((moved - atoms[0]) / (atoms[-1] - atoms[0]) * last).clamp(0, last)
    below = position.floor()
    above_share = probability * (position - below)
    index = below.long()
    projected = probability.new_zeros(len(probability), len(atoms) + 1)  # above the last atom there is a share of 0
    projected.scatter_add_(1, index, probability - above_share).scatter_add_(1, index + 1, above_share)
    return projected[:, :-1]


def quantile_huber(quantile: Tensor, fraction: Tensor, target: Tensor, *, threshold: float = 1.0) -> Tensor:
    """How far estimated quantiles are from samples of the target distribution.

    rho_ij = |fraction_i - 1[target_j < quantile_i]| * huber(target_j - quantile_i) / threshold

    Args:
        quantile: [N, M], in units of the return.
        fraction: [M] or [N, M], between 0 and 1: the share of the returns that should lie below each quantile.
        target: [N, K], samples or quantiles of the target; no gradient flows into it.
        threshold: errors beyond it count linearly.
    Returns:
        [N], summed over the quantiles, averaged over the target's samples.
    Source:
        Dabney et al., 2018, equation 10. arXiv:1710.10044.
    """
    error = target.detach().unsqueeze(1) - quantile.unsqueeze(2)
    huber = F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=threshold)
    asymmetry = (fraction.unsqueeze(-1) - (error < 0).to(error.dtype)).abs()
    return (asymmetry * huber).mean(dim=2).sum(dim=1) / threshold
