"""Drawing positions in proportion to numbers that change."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]
Positions: TypeAlias = NDArray[np.int64]
Where: TypeAlias = Positions | slice
"""Positions, or a range of them from `start` to `stop`."""

FAN_OUT = 16
"""Children of a node. A level costs a few calls, whatever its width, and a tree of pairs has four times as many."""
MOST_ROOTS = 4096
"""Nodes of the highest level, which is searched as a whole: over a million numbers are then two levels."""


class SumTree:
    """Numbers from 0 up at `size` positions, all 0 at first; whole batches are set and drawn at once.

    Level 0 holds the numbers, and each node of the next one the sum of `FAN_OUT` of them, and so on. A second tree
    holds the smallest of those that are not 0.

    Source:
        Schaul et al., 2016, appendix B.2.1, arXiv:1511.05952, with wider nodes.
    """

    def __init__(self, size: int) -> None:
        self._sums: list[Numbers] = []
        self._least: list[Numbers] = [np.empty(0)]  # level 0 has none of its own; infinite where all are 0
        num_nodes = size
        while len(self._sums) < 2 or len(self._sums[-1]) > MOST_ROOTS:
            num_nodes = -(-num_nodes // FAN_OUT)
            self._sums.append(np.zeros(num_nodes * FAN_OUT))
        self._so_far = np.tril(np.ones((FAN_OUT, FAN_OUT)))
        self._least += [np.full(len(sums), np.inf) for sums in self._sums[1:]]

    @property
    def least(self) -> float:
        """The smallest number above 0; infinity where there is none."""
        return float(self._least[-1].min())

    def __getitem__(self, where: Where) -> Numbers:
        """The numbers there; of a range, a view, which nobody may write to."""
        return self._sums[0][where]

    def __setitem__(self, where: Where, numbers: Numbers) -> None:
        """Set the numbers there. At a position named twice the last one counts."""
        self._sums[0][where] = numbers
        for level in range(1, len(self._sums)):
            where = _parents(where)
            blocks = _blocks(self._sums[level - 1], where)
            self._sums[level][where] = blocks.sum(axis=0)
            if level == 1:
                blocks[blocks == 0.0] = np.inf
            else:
                blocks = _blocks(self._least[level - 1], where)
            self._least[level][where] = blocks.min(axis=0)

    def draw(self, size: int, rng: np.random.Generator) -> Positions:
        """`size` positions in proportion to their numbers: the sum of all is cut into `size` equal parts, and from each
        comes one. There must be a number above 0.
        """
        position = self._find((np.arange(size) + rng.random(size)) / size)
        while len(wrong := np.flatnonzero(self._sums[0].take(position) == 0.0)):  # next to the right one, by rounding
            position[wrong] = self._find(rng.random(len(wrong)))
        return position

    def _find(self, share: Numbers) -> Positions:
        """The positions up to which the numbers sum to `share` of the sum of all; [N], ascending as the shares."""
        roots = self._sums[-1]
        ends = np.cumsum(roots)
        offset = share * ends[-1]
        position: Positions = np.minimum(np.searchsorted(ends, offset, side="right"), len(roots) - 1)
        offset -= ends[position] - roots[position]
        columns = np.arange(len(share))
        for nodes in reversed(self._sums[:-1]):
            children = nodes.reshape(-1, FAN_OUT).take(position, axis=0)
            # their sums so far, [FAN_OUT, N]: as a product, in a third of the time that `cumsum` takes
            ends = self._so_far @ children.T
            child = np.minimum((ends <= offset).sum(axis=0), FAN_OUT - 1)
            offset -= ends[child, columns] - children[columns, child]
            position = position * FAN_OUT + child
        return position


def _parents(where: Where) -> Where:
    if isinstance(where, slice):
        return slice(where.start // FAN_OUT, -(-where.stop // FAN_OUT))
    return where // FAN_OUT


def _blocks(nodes: Numbers, parents: Where) -> Numbers:
    """The children of each parent, a copy [FAN_OUT, N]: down the columns, sums take a third of the time."""
    children = nodes.reshape(-1, FAN_OUT)
    return (children[parents] if isinstance(parents, slice) else children.take(parents, axis=0)).T.copy()
