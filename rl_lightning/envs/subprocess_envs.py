"""How the envs of a `SubprocessPool` look from outside: as a vector env."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

if TYPE_CHECKING:
    from rl_lightning.envs.subprocess_pool import SubprocessPool


class SubprocessEnvs(VectorEnv[Any, Any, Any]):
    """The envs of a `SubprocessPool`, as hooks see them: to be looked at and called, and stepped by the pool alone."""

    def __init__(self, pool: SubprocessPool) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self._pool, self.num_envs = pool, pool.num_envs
        self.single_observation_space, self.single_action_space = pool.observation_space, pool.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call the method `name` of each env; of an attribute that is no method, its value."""
        return tuple(self._pool.call(name, *args, **kwargs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of each env."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set the attribute `name` of each env: to the value, or each to its own from a list or tuple."""
        each = values if isinstance(values, list | tuple) else [values] * self.num_envs
        self._pool.set_attribute(name, each)

    def render(self) -> tuple[Any, ...]:
        """What each env draws."""
        return self.call("render")

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers, which close their envs."""
        self._pool.close()
