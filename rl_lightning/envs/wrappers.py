"""A small wrapper that every env gets that lives in a process of its own."""

from __future__ import annotations

import copy
from typing import Any, SupportsFloat

import gymnasium as gym

from rl_lightning.envs.checks import bad_step, first_result
from rl_lightning.envs.observations import ObsReader


class EpisodeEnds(gym.Wrapper[Any, Any, Any, Any]):
    """Holds an env inside a vector env to what the pools that step envs themselves hold theirs to.

    An episode is cut off (truncated) when it reaches `max_episode_len`, or when `info["needs_reset"]` is set. The old
    gym API and first observations that do not fit the space are refused, before the vector env stumbles over them.
    """

    def __init__(self, env: gym.Env[Any, Any], max_episode_len: int | None = None) -> None:
        super().__init__(env)
        self._max_len = max_episode_len or 0
        self._len = 0
        self._reader = ObsReader(env.observation_space, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = first_result(self.env, seed, options)
        self._reader.one(obs)
        self._len = 0
        return obs, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        try:
            obs, reward, terminated, truncated, info = result
        except (TypeError, ValueError):
            raise bad_step(result) from None
        self._len += 1
        if self._len == self._max_len or (info and info.get("needs_reset")):
            truncated = True
        if terminated or truncated:
            # The vector env keeps this object while it resets the env, which may write into the same memory.
            obs = copy.deepcopy(obs)
        return obs, reward, terminated, truncated, info
