"""From an agent's actions to the env's: checked, counted from the space's own start, in its dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from rl_lightning.envs.checks import all_finite
from rl_lightning.types import Array, ConfigurationError, EnvError

_ROUNDING = 1e-5


class ActionReader:
    """Checks every action and maps it to what the env takes.

    Agents count integers from 0; the env's `start` is added here. A Box action that leaves the box by no more than a
    rounding error (1e-5 of the bound, or 1e-5) is moved onto the bound, one further out is an error.

    Attributes:
        one: action [1, *A] -> what the `step` of one env takes (a number of the space's dtype for Discrete,
            as its `sample` gives one, else an array [*A]).
        batch: action [B, *A] -> what the `step` of a vector env takes. Both return memory of their own, and raise
            EnvError, naming env, action, space and cure.
    """

    one: Callable[[Array], Any]
    batch: Callable[[Array], Array]

    def __init__(self, space: Space[Any], num_envs: int) -> None:
        """
        Raises:
            ConfigurationError: `space` (of one env) is not Box, Discrete, MultiDiscrete or MultiBinary.
        """
        self.space = space
        self._low: Any = 0
        self._high: Any
        self._start: Any = 0
        if isinstance(space, spaces.Box):
            self._low, self._high = space.low, space.high
        elif isinstance(space, spaces.Discrete):
            self._high, self._start = int(space.n) - 1, int(space.start)
        elif isinstance(space, spaces.MultiDiscrete):
            self._high, self._start = space.nvec.astype(np.int64) - 1, space.start.astype(np.int64)
        elif isinstance(space, spaces.MultiBinary):
            self._high = 1
        else:
            raise ConfigurationError(
                f"action space {space} is not supported. Use Box, Discrete, MultiDiscrete or MultiBinary: wrap the env "
                "in gymnasium.wrappers.TransformAction, or FlattenAction for a Dict or Tuple of Boxes."
            )
        assert space.shape is not None and space.dtype is not None
        self._dtype = space.dtype
        self._is_float = self._dtype.kind == "f"
        self._kinds = "fiu" if self._is_float else "iub"
        self._unbounded = isinstance(space, spaces.Box) and self._is_float and not space.is_bounded()
        self._shape = (num_envs, *space.shape)
        is_box = isinstance(space, spaces.Box)
        self._highest = np.asarray(0 if is_box else self._high).astype(np.uint64)
        self._counts_from_0 = not np.any(self._start)
        self.batch = self._numbers if is_box else self._integers
        self.one = self._one_discrete if isinstance(space, spaces.Discrete) else self._one_array

    def _one_discrete(self, action: Array) -> Any:
        if action.size == 1:
            value = action.item()
            if value.__class__ is int and 0 <= value <= self._high:
                return self._dtype.type(value + self._start)
        return self._integers(action)[0]

    def _one_array(self, action: Array) -> Array:
        # The ellipsis keeps an array where the space has no dimensions.
        row: Array = self.batch(action)[0, ...]
        return row

    def _integers(self, action: Array) -> Array:
        if action.shape != self._shape or action.dtype.kind not in self._kinds:
            raise self._outside(action)
        # Read as unsigned, a negative number is too large: one comparison instead of two.
        inside = action.astype(np.int64).view(np.uint64) <= self._highest
        if np.count_nonzero(inside) != inside.size:
            raise self._outside(action, inside)
        if self._counts_from_0:
            return action.astype(self._dtype)
        shifted: Array = (action.astype(np.int64) + self._start).astype(self._dtype)
        return shifted

    def _numbers(self, action: Array) -> Array:
        if action.shape != self._shape or action.dtype.kind not in self._kinds:
            raise self._outside(action)
        inside = (action >= self._low) & (action <= self._high)
        if np.count_nonzero(inside) != inside.size:
            action = self._onto_bound(action)
        if self._unbounded and not all_finite(action):
            raise self._outside(action, np.isfinite(action))
        return action.astype(self._dtype)

    def _onto_bound(self, action: Array) -> Array:
        nearest = np.clip(action, self._low, self._high)
        # Written so that NaN counts as outside.
        near = np.abs(action - nearest) <= _ROUNDING * np.maximum(1.0, np.abs(nearest))
        if not self._is_float or not near.all():
            raise self._outside(action, near)
        return nearest

    def _outside(self, action: Array, inside: Array | None = None) -> EnvError:
        if inside is None:
            return EnvError(
                f"actions of shape {action.shape}, dtype {action.dtype} do not fit {self.space}: expected shape "
                f"{self._shape}, dtype {self._dtype}. Build the agent for this env's action_space."
            )
        env = int(np.argwhere(~inside)[0][0])
        return EnvError(f"env {env} was given action {action[env].tolist()}, outside {self.space}. {self._cure()}")

    def _cure(self) -> str:
        if isinstance(self.space, spaces.Box):
            return "Clip or rescale it in the agent, or wrap the env (gymnasium.wrappers.ClipAction, RescaleAction)."
        highest = self._high.tolist() if isinstance(self._high, np.ndarray) else self._high
        return f"Agents count from 0, whatever the space's start: 0 to {highest}. Build the agent for this space."
