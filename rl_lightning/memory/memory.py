"""What a memory is: where transitions go, and when they come back as batches to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rl_lightning.types import Batch, Transition


@runtime_checkable
class Memory(Protocol):
    """Decides what is learned from and when. The loop that it lives in:

        transition = strategy.advance()
        memory.add(transition)
        for batch in memory.batches():      # often none
            agent.update(batch, step)

    Attributes:
        rng: the generator that all of its sampling uses; the Trainer replaces it by one drawn from the run's seed.
    """

    rng: np.random.Generator

    def add(self, transition: Transition) -> None:
        """Store one step of B envs. Rows with `valid` False are not experience and are left out."""

    def batches(self) -> Iterator[Batch]:
        """The batches that are due now, each made when it is asked for; often none."""

    def state_dict(self) -> dict[str, Any]:
        """Everything stored, as tensors and plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
