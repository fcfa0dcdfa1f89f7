"""Which transitions are worth learning from (prioritized experience replay, Schaul et al., 2016, arXiv:1511.05952)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_lightning.memory.sum_tree import Numbers, Positions, SumTree
from rl_lightning.types import ConfigurationError, NonFiniteError, ShapeError

SMALLEST_ERROR = 1e-6
"""Added to each error, so that no transition is lost for good."""


class Priorities:
    """The priority of each cell of a memory: (|error| + `SMALLEST_ERROR`) ** alpha; 0 where there is no experience.

    Args:
        num_cells: cells of the memory.
        alpha: how strongly errors count, from 0 (not at all) up.
        beta: how far the weights make up for the bias of the draw at first, from 0 (not at all) to 1 (fully).
        beta_steps: env steps until they do so fully; 0 for at once.
    Raises:
        ConfigurationError: a number out of range.
    """

    def __init__(self, num_cells: int, *, alpha: float, beta: float, beta_steps: int) -> None:
        if not (alpha >= 0 and 0 <= beta <= 1 and beta_steps >= 0):
            raise ConfigurationError(
                f"ReplayMemory(alpha={alpha}, beta={beta}, beta_steps={beta_steps}): alpha and beta_steps must be at "
                "least 0, beta from 0 to 1."
            )
        self._alpha, self._beta, self._beta_steps = alpha, beta, beta_steps
        self._tree = SumTree(num_cells)
        self._highest = 1.0

    def admit(self, start: int, valid: NDArray[np.bool_]) -> None:
        """New transitions from cell `start` on, of the highest priority so far where they are `valid`."""
        self._tree[start : start + len(valid)] = np.where(valid, self._highest, 0.0)

    def draw(self, size: int, rng: np.random.Generator) -> Positions:
        """`size` cells, in proportion to their priorities: one from each of `size` equal parts of the sum of all."""
        return self._tree.draw(size, rng)

    def weights(self, cells: Positions, num_steps: int) -> Tensor:
        """Importance weights [N] float32 of cells drawn after `num_steps` env steps: (N * P(i)) ** -beta, over the
        largest that there is in the whole memory.
        """
        progress = min(num_steps / self._beta_steps, 1.0) if self._beta_steps else 1.0
        beta = self._beta + (1.0 - self._beta) * progress
        weights = (self._tree.least / self._tree[cells]) ** beta
        return torch.from_numpy(weights.astype(np.float32))

    def update(self, cells: Positions, errors: Tensor) -> None:
        """Set the priorities of some cells.

        Args:
            errors: [N], on any device; their sign does not count.
        Raises:
            ShapeError: not one error a cell.
            NonFiniteError: an error is NaN or infinite.
        """
        if errors.shape != cells.shape:
            raise ShapeError(f'batch["td_error"] has shape {tuple(errors.shape)}: it must be {cells.shape}, one a row.')
        priorities: Numbers = (errors.detach().to("cpu", torch.float64).abs().numpy() + SMALLEST_ERROR) ** self._alpha
        highest = float(priorities.max())
        if not np.isfinite(highest):  # NaN spreads through max
            raise NonFiniteError(f'batch["td_error"] is not finite: {errors.detach().cpu().numpy()}.')
        self._highest = max(self._highest, highest)
        self._tree[cells] = priorities

    def state_dict(self, num_cells: int) -> dict[str, Any]:
        """The priorities of the first `num_cells` cells, and the highest so far."""
        return {"priorities": torch.from_numpy(self._tree[:num_cells].copy()), "highest": self._highest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, into priorities that are all 0."""
        priorities = state["priorities"].numpy()
        self._tree[0 : len(priorities)] = priorities
        self._highest = state["highest"]
