"""Envs: how to make them, and the one interface through which they are stepped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_lightning.envs.exactness import why_not_exact
from rl_lightning.envs.lockstep_pool import LockstepPool
from rl_lightning.envs.pool import EnvPool, SinglePool, Step
from rl_lightning.envs.recipe import EnvRecipe, as_recipe
from rl_lightning.envs.state import StatefulEnv
from rl_lightning.envs.subprocess_pool import SubprocessPool
from rl_lightning.envs.vector_pool import VectorPool

if TYPE_CHECKING:
    from rl_lightning.env_module import EnvModule, GymEnvModule

__all__ = [
    "EnvModule",
    "EnvPool",
    "EnvRecipe",
    "GymEnvModule",
    "LockstepPool",
    "SinglePool",
    "StatefulEnv",
    "Step",
    "SubprocessPool",
    "VectorPool",
    "as_recipe",
    "why_not_exact",
]


def __getattr__(name: str) -> Any:
    # On demand, because these two import Lightning, and worker processes start lighter without it.
    if name in ("EnvModule", "GymEnvModule"):
        from rl_lightning import env_module

        return getattr(env_module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
