"""Drawing positions in proportion to numbers that change."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]
Where: TypeAlias = NDArray[np.int64] | slice
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

    def draw(self, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`size` positions of numbers above 0, in ascending order: the sum of all is cut into `size` equal parts, and
        from each comes one, in proportion to the numbers. There must be one above 0.
        """
        ends = np.cumsum(self._sums[-1])
        offset = (np.arange(size) + rng.random(size)) * (ends[-1] / size)
        position: NDArray[np.int64] = np.searchsorted(ends, np.minimum(offset, _below(ends[-1])), side="right")
        offset -= ends[position] - self._sums[-1][position]
        columns = np.arange(size)
        for sums in reversed(self._sums[:-1]):
            blocks = _blocks(sums, position)
            ends = np.cumsum(blocks, axis=0)
            # Rounding may have moved it out of the block, or to a child of 0.
            np.clip(offset, 0.0, _below(ends[-1]), out=offset)
            child = (ends <= offset).sum(axis=0)
            offset -= ends[child, columns] - blocks[child, columns]
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


def _below(number: Numbers) -> Numbers:
    below: Numbers = np.nextafter(number, 0.0)
    return below
