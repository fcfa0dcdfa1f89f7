"""Moving a target network toward the network that is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, *, tau: float) -> None:
    """Move each parameter of `target` the fraction `tau` of the way to `online`'s, in place.

    target <- (1 - tau) * target + tau * online

    Buffers (running statistics) are copied whole: an average of counts or masks has no meaning.

    Args:
        tau: between 0 (nothing moves) and 1 (a copy).
    Raises:
        ValueError: the two do not have as many parameters or buffers as each other.
    Source:
        Lillicrap et al., 2016, section 3. arXiv:1509.02971.
    """
    ours: list[Tensor] = list(target.parameters())
    theirs: list[Tensor] = list(online.parameters())
    if len(ours) != len(theirs):
        raise ValueError(f"the target has {len(ours)} parameters, the network that it follows {len(theirs)}.")
    if ours and tau == 1.0:
        torch._foreach_copy_(ours, theirs)
    elif ours:
        torch._foreach_lerp_(ours, theirs, tau)
    for copied, buffer in zip(target.buffers(), online.buffers(), strict=True):
        copied.copy_(buffer)


def hard_update(target: nn.Module, online: nn.Module) -> None:
    """Make `target` an exact copy of `online`, in place.

    Source:
        Mnih et al., 2015. doi:10.1038/nature14236.
    """
    polyak_update(target, online, tau=1.0)
