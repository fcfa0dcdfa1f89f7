"""Gathering in the training process itself: one env (sync) or several in lockstep (batch)."""

from __future__ import annotations

from typing import Any

import torch

from rl_lightning.agents import Agent
from rl_lightning.agents.acting import make_actor
from rl_lightning.envs import EnvPool
from rl_lightning.envs.pool import Mask
from rl_lightning.strategies.strategy import Episodes, Strategy
from rl_lightning.types import ConfigurationError, Transition

_new_tuple = tuple.__new__  # without the Python constructor of a NamedTuple


class BatchStrategy(Strategy):
    """Act for all envs with one forward pass, then step them together: A2C's way (Mnih et al., 2016)."""

    def setup(self, agent: Agent, pool: EnvPool, *, seed: int | None, device: torch.device, dtype: torch.dtype) -> None:
        self.pool = pool
        self.episodes, self._num_envs = Episodes(pool.num_envs), pool.num_envs
        self._count = self.episodes.add
        self._act = make_actor(agent, pool, explore=True, device=device, dtype=dtype)
        pool.reset(seed)

    def begin_episodes(self) -> None:
        self.pool.begin_episodes()

    def advance(self) -> Transition:
        pool = self.pool
        obs = pool.begin_episodes()
        action, extras = self._act(obs)
        next_obs, reward, terminated, truncated, valid, _ = pool.step(action)
        self._count(reward, terminated | truncated, valid)
        self.num_steps = self._num_envs if valid is None else int(valid.sum())
        return _new_tuple(Transition, (obs, action, reward, next_obs, terminated, truncated, extras, valid))

    def state_dict(self) -> dict[str, Any]:
        return {"episodes": self.episodes.state_dict(), "envs": self.pool.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> Mask | None:
        self.episodes.load_state_dict(state["episodes"])
        lost = self.pool.load_state_dict(state["envs"])
        if lost is not None:
            self.episodes.forget(lost)
        return lost

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()


class SyncStrategy(BatchStrategy):
    """One env, stepped in turn with learning: batch with a single env."""

    def setup(self, agent: Agent, pool: EnvPool, *, seed: int | None, device: torch.device, dtype: torch.dtype) -> None:
        if pool.num_envs != 1:
            raise ConfigurationError(
                f"strategy='sync' steps one env, and this env module has num_envs={pool.num_envs}. "
                "Use strategy='batch', or num_envs=1."
            )
        super().setup(agent, pool, seed=seed, device=device, dtype=dtype)
