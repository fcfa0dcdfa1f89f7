"""When off-policy agents learn: so many batches for so many env steps."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from rl_lightning.types import ConfigurationError


class Pace:
    """Counts env steps, and the batches that they make due.

    Once `learning_starts` env steps are counted, every `update_every` env steps a learning phase of
    `update_every * updates_per_step` batches is due. Fractions are carried over, and steps that several envs take at
    once all count, so that in the long run there are exactly `updates_per_step` batches an env step.

    Attributes:
        num_steps: env steps counted, ever.
        due: batches.
    Raises:
        ConfigurationError: `updates_per_step` is not above 0.
    """

    def __init__(self, *, num_envs: int, learning_starts: int, update_every: int, updates_per_step: float) -> None:
        if not updates_per_step > 0:
            raise ConfigurationError(f"ReplayMemory(updates_per_step={updates_per_step}): it must be above 0.")
        self._num_envs = num_envs
        self._learning_starts = learning_starts
        self._update_every = update_every
        self._updates_per_step = Fraction(str(updates_per_step))  # 0.1 is a tenth, not the float next to it
        self.num_steps = 0
        self.due = 0
        # in whole numbers: Python's fractions would cost ten microseconds a step
        self._batches_per_phase = (update_every * self._updates_per_step).as_integer_ratio()
        self._carried = 0  # of a batch, in parts of the denominator

    @property
    def stride(self) -> int:
        """Env steps after which it is sure to learn again; in between it may."""
        if self._always_learns:
            return self._num_envs
        stride = math.lcm(self._num_envs, self._update_every)
        if self._update_every * self._updates_per_step >= 1:
            return stride
        return stride * (stride * self._updates_per_step).denominator  # until the fractions make up a whole batch

    @property
    def offset(self) -> int:
        """Env steps by which the multiples of `stride` are shifted, where it is sure to learn."""
        first = -(-self._learning_starts // self._num_envs) * self._num_envs
        return 0 if self._always_learns else first % self.stride

    @property
    def _always_learns(self) -> bool:
        """Whether each step of the envs makes a batch due."""
        return self._update_every <= self._num_envs and self._update_every * self._updates_per_step >= 1

    def count(self, num_steps: int) -> None:
        """Work out how many batches `num_steps` more env steps make due."""
        before = max(self.num_steps - self._learning_starts, 0) // self._update_every
        self.num_steps += num_steps
        phases = max(self.num_steps - self._learning_starts, 0) // self._update_every - before
        if phases > 0:
            numerator, denominator = self._batches_per_phase
            due, self._carried = divmod(self._carried + phases * numerator, denominator)
            self.due += due

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"num_steps": self.num_steps, "due": self.due, "carried": self._carried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.num_steps, self.due, self._carried = state["num_steps"], state["due"], state["carried"]
