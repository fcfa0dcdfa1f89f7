"""Gathering in the training process itself: one env (sync) or several in lockstep (batch)."""

from __future__ import annotations

import torch
from torch import Tensor

from rl_lightning.agents import Agent
from rl_lightning.envs import EnvPool
from rl_lightning.strategies.strategy import Episodes, Strategy
from rl_lightning.types import Array, ConfigurationError, ObsArray, ObsTensor, Transition


class BatchStrategy(Strategy):
    """Act for all envs with one forward pass, then step them together: A2C's way (Mnih et al., 2016)."""

    def setup(self, agent: Agent, pool: EnvPool, *, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.agent = agent
        self.pool = pool
        self.episodes = Episodes(pool.num_envs)
        self.num_steps = pool.num_envs
        self._to_tensor = ObsConverter(device, dtype)
        self._obs = pool.reset(seed=seed)

    def advance(self) -> Transition:
        obs = self._obs
        with torch.inference_mode():
            action, extras = self.agent.act(self._to_tensor(obs), explore=True)
        host_action = to_host(action)
        next_step = self.pool.step(host_action)
        self._obs = next_step.obs
        terminated, truncated, valid = next_step.terminated, next_step.truncated, next_step.valid
        self.episodes.add(next_step.reward, terminated | truncated, valid)
        if valid is not None:
            self.num_steps = int(valid.sum())
        host_extras = {name: to_host(extra) for name, extra in extras.items()} if extras else {}
        return Transition(
            obs, host_action, next_step.reward, next_step.next_obs, terminated, truncated, host_extras, valid
        )

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()


class SyncStrategy(BatchStrategy):
    """One env, stepped in turn with learning: batch with a single env."""

    def setup(self, agent: Agent, pool: EnvPool, *, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        if pool.num_envs != 1:
            raise ConfigurationError(
                f"strategy='sync' steps one env, and this env module has num_envs={pool.num_envs}. "
                "Use strategy='batch', or num_envs=1."
            )
        super().setup(agent, pool, seed=seed, device=device, dtype=dtype)


class ObsConverter:
    """Observations on the host -> tensors where the agent lives; floats in the agent's precision."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._same = device.type == "cpu" and dtype == torch.float32

    def __call__(self, obs: ObsArray) -> ObsTensor:
        if isinstance(obs, dict):
            return {name: self._convert(leaf) for name, leaf in obs.items()}
        return torch.from_numpy(obs) if self._same else self._convert(obs)

    def _convert(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(array)
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, dtype, non_blocking=True)


def to_host(tensor: Tensor) -> Array:
    """A numpy array of the tensor; no copy where it is on the host already. Returns [B, ...]."""
    return tensor.cpu().numpy()
