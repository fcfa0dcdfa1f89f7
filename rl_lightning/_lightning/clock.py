"""What training has done so far, in env steps."""

from __future__ import annotations

from dataclasses import dataclass

from pytorch_lightning.loops.progress import _BaseProgress


@dataclass
class Clock(_BaseProgress):
    """What training has done so far; saved with the loops' own progress.

    Attributes:
        env_steps: over all envs and ranks.
        num_updates: learning steps.
        num_optimizer_steps: learning steps that did not only add to the gradients.
        num_episodes: that have ended.
    """

    env_steps: int = 0
    num_updates: int = 0
    num_optimizer_steps: int = 0
    num_episodes: int = 0

    def reset(self) -> None:
        self.env_steps = self.num_updates = self.num_optimizer_steps = self.num_episodes = 0


def next_multiple(step: int, interval: int | float | None) -> int | float:
    """The first multiple of `interval` after `step`; infinity if there is no interval."""
    return float("inf") if not interval else (step // interval + 1) * interval
