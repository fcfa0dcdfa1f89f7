"""Between envs, which live on the host, and the agent, wherever it lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.foreign import ForeignAgent
from rl_lightning.envs.pool import EnvPool
from rl_lightning.types import Array, ObsArray, ObsTensor

Act: TypeAlias = Callable[[ObsArray], tuple[Array, dict[str, Array]]]
"""Observations [B, *O] -> actions [B, *A] and the agent's extras, each [B, ...], all on the host."""


def make_actor(agent: Agent, pool: EnvPool, *, explore: bool, device: torch.device, dtype: torch.dtype) -> Act:
    """Let `agent` act in the envs of `pool`. The arguments are those of `Actor`.

    Raises:
        ConfigurationError: it cannot.
    """
    if isinstance(agent, ForeignAgent):
        return agent.actor(pool)
    actor = Actor(agent, explore=explore, device=device, dtype=dtype)
    on_host = _host_method(agent) if device.type == "cpu" and dtype == torch.float32 else None
    if on_host is None:
        return actor.__call__

    def act(obs: ObsArray) -> tuple[Array, dict[str, Array]]:
        return on_host(obs, explore=explore) or actor(obs)

    return act


class Actor:
    """Lets an agent act for B envs: observations in, actions out, both on the host; no gradients.

    Args:
        agent: built, on `device`.
        explore: as in training, or the best action known.
        device: where the agent is.
        dtype: of floating-point observations.
    """

    def __init__(self, agent: Agent, *, explore: bool, device: torch.device, dtype: torch.dtype) -> None:
        self._agent = agent
        self._explore = explore
        self._device = device
        self._dtype = dtype
        self._is_plain = device.type == "cpu" and dtype == torch.float32

    def __call__(self, obs: ObsArray) -> tuple[Array, dict[str, Array]]:
        """[B, *O] -> action [B, *A] and the agent's extras, each [B, ...]."""
        with torch.inference_mode():
            action, extras = self._agent.act(self._to_tensors(obs), explore=self._explore)
            return _to_host(action), {name: _to_host(extra) for name, extra in extras.items()} if extras else {}

    def _to_tensors(self, obs: ObsArray) -> ObsTensor:
        if isinstance(obs, dict):
            return {path: self._to_tensor(leaf) for path, leaf in obs.items()}
        return torch.from_numpy(obs) if self._is_plain else self._to_tensor(obs)

    def _to_tensor(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(array)
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, dtype, non_blocking=True)


def _host_method(agent: Agent) -> Callable[..., tuple[Array, dict[str, Array]] | None] | None:
    """The agent's `act_on_host`, unless somebody has since overridden `act`."""
    for names in (vars(agent), *map(vars, type(agent).__mro__)):
        if "act_on_host" in names:
            return None if names is vars(Agent) else agent.act_on_host
        if "act" in names:
            return None
    return None


def _to_host(tensor: Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:  # which numpy does not have
        tensor = tensor.float()
    array: Array = tensor.numpy() if tensor.is_cpu else tensor.cpu().numpy()
    return array
