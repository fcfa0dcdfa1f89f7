"""From the host to where the networks are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_lightning.types import tree_map


def to_device(tree: Any, device: torch.device) -> Any:
    """A tensor, or every tensor of a dict or of dicts in it, on `device`.

    A CUDA device copies by itself, from pinned memory, while the host goes on; what lies on `device` already is given
    back as it is.
    """
    if device.type != "cuda":
        return tree_map(lambda leaf: leaf.to(device), tree)
    return tree_map(lambda leaf: leaf.to(device, non_blocking=True), pinned(tree))


def pinned(tree: Any) -> Any:
    """The same with every tensor of the host in memory that is not swapped; what lies elsewhere as it is.

    Only where there is a CUDA device. torch keeps such memory for the next batch, until the device has copied from it.
    """
    return tree_map(_pinned, tree)


def _pinned(leaf: Any) -> Any:
    return leaf.pin_memory() if isinstance(leaf, Tensor) and leaf.is_cpu else leaf
