"""A replay memory at one moment, of which a checkpoint writes only what is new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_lightning.memory.replay import ReplayMemory


class Snapshot:
    """All of a memory but its rows, which `ReplayMemory.write_rows` writes to files of their own.

    It is good until the memory changes.

    Attributes:
        memory: the memory.
        state: all but the rows, as tensors and plain data.
    """

    def __init__(self, memory: ReplayMemory, state: dict[str, Any]) -> None:
        self.memory, self.state = memory, state
        self._moment = memory.moment

    def __deepcopy__(self, memo: dict[int, Any]) -> Snapshot:
        return self  # a copy of the memory would be a second one

    @property
    def is_current(self) -> bool:
        """Whether the memory is still as it was."""
        return self.memory.moment == self._moment
