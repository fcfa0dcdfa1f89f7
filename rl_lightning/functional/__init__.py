"""Pure tensor maths: no networks, no state, each function with its source and a test by hand."""

from __future__ import annotations

from rl_lightning.functional.advantage import explained_variance, gae, normalize, sum_to_end, v_trace
from rl_lightning.functional.distributional import categorical_projection, quantile_huber
from rl_lightning.functional.linear import conjugate_gradient
from rl_lightning.functional.target import hard_update, polyak_update

__all__ = [
    "categorical_projection",
    "conjugate_gradient",
    "explained_variance",
    "gae",
    "hard_update",
    "normalize",
    "polyak_update",
    "quantile_huber",
    "sum_to_end",
    "v_trace",
]
