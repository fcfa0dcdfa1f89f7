"""Linear equations whose matrix is never written down."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], right: Tensor, *, num_steps: int, tolerance: float = 1e-10
) -> Tensor:
    """Solve A x = right, nearly, for a symmetric positive-definite A that is known by its products alone.

    Args:
        product: A v [P] for any v [P].
        right: [P].
        num_steps: products at most; P of them solve it exactly, but for rounding.
        tolerance: the squared norm of the residual, right - A x, that is good enough.
    Returns:
        x [P]; zeros where `right` is.
    Source:
        Hestenes and Stiefel, 1952. doi:10.6028/jres.049.044.
    """
    x = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    squared = residual @ residual
    for _ in range(num_steps):
        if squared < tolerance:
            break
        moved = product(direction)
        length = squared / (direction @ moved)
        x += length * direction
        residual -= length * moved
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return x
