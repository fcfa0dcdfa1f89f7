"""Several envs of this process, stepped one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv

from rl_lightning.envs.actions import ActionReader
from rl_lightning.envs.checks import as_rewards, bad_step, first_result
from rl_lightning.envs.observations import ObsReader
from rl_lightning.envs.pool import EnvPool, Mask, Seeds, Step, copy_obs
from rl_lightning.types import Array, ObsArray

_NO_INFO: dict[str, Any] = {}


class LockstepPool(EnvPool):
    """The envs of a `SyncVectorEnv`, stepped here: each step costs 10 microseconds over theirs, not 40.

    The vector env itself is only what users look at: it knows the envs, and nothing of their episodes.
    """

    env: SyncVectorEnv
    is_vector = True
    is_lent = False
    _of_episodes = (*EnvPool._of_episodes, "_lengths", "_resting")

    def __init__(self, env: SyncVectorEnv, *, max_episode_len: int | None = None) -> None:
        """
        Args:
            env: made for this pool. `info["needs_reset"]` from the `step` of one of its envs cuts its episode off.
            max_episode_len: in env steps; an episode that reaches it is cut off (truncated).
        Raises:
            ConfigurationError: a space that cannot be served.
        """
        self.env, self.num_envs = env, env.num_envs
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self._all = self._awake = [(i, each.step) for i, each in enumerate(env.envs)]
        self._reader = ObsReader(self.observation_space, self.num_envs)
        self._put, self._all_finite = self._reader.put, self._reader.all_finite
        self._to_action = ActionReader(self.action_space, self.num_envs).batch
        self._max_len = max_episode_len or 0
        self._lengths = [0] * self.num_envs
        self._no_flags = np.zeros(self.num_envs, np.bool_)
        self._obs: ObsArray = self._reader.empty()
        self._over: Mask | None = np.ones(self.num_envs, np.bool_)  # those that wait for `begin_episodes`
        self._resting: Mask | None = None

    def reset(self, seed: int | Seeds | None = None) -> ObsArray:
        self._resting, self._awake = None, self._all
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        self._obs = self._reader.empty()
        return self._reset_where(np.ones(self.num_envs, np.bool_), seeds)

    def begin_episodes(self, seeds: Seeds | None = None) -> ObsArray:
        if self._over is None:
            return self._obs
        self._obs = copy_obs(self._obs)
        return self._reset_where(self._over if self._resting is None else self._over & ~self._resting, seeds)

    def _reset_where(self, mask: Mask, seeds: Seeds | None) -> ObsArray:
        """Start the episodes where `mask` [B] is True, in the observations that the pool has."""
        for i in np.flatnonzero(mask).tolist():
            self._put(self._obs, i, first_result(self.env.envs[i], None if seeds is None else seeds[i])[0])
            self._lengths[i] = 0
        if not self._all_finite(self._obs):
            raise self._reader.non_finite(self._obs, self.num_steps)
        self._over = None
        return self._obs

    def step(self, action: Array) -> Step:
        actions = self._to_action(action)
        put, lengths, max_len, resting = self._put, self._lengths, self._max_len, self._resting
        obs = self._reader.empty() if resting is None else copy_obs(self._obs)
        rewards: list[Any] = [0.0] * self.num_envs
        terminateds, truncateds = [False] * self.num_envs, [False] * self.num_envs
        infos = [_NO_INFO] * self.num_envs
        for i, step in self._awake:
            result = step(actions[i])
            try:
                raw_obs, reward, terminated, truncated, info = result
            except (TypeError, ValueError):
                raise bad_step(result) from None
            put(obs, i, raw_obs)
            rewards[i], terminateds[i], infos[i] = reward, terminated, info
            lengths[i] = length = lengths[i] + 1
            truncateds[i] = truncated or length == max_len or bool(info and info.get("needs_reset"))
        self.num_steps += 1
        self._obs = obs
        if not self._all_finite(obs):
            raise self._reader.non_finite(obs, self.num_steps)
        if any(terminateds) or any(truncateds):
            terminated_, truncated_ = np.array(terminateds, np.bool_), np.array(truncateds, np.bool_)
            self._over = terminated_ | truncated_
        else:
            terminated_, truncated_ = self._no_flags.copy(), self._no_flags.copy()
        valid = None if resting is None else ~resting
        return Step(obs, as_rewards(rewards, self.num_steps), terminated_, truncated_, valid, infos)

    def end_episodes(self, mask: Mask) -> None:
        if mask.any():
            self._over = mask.copy() if self._over is None else self._over | mask

    def rest(self, mask: Mask) -> None:
        self._resting = mask.copy() if self._resting is None else self._resting | mask
        self._awake = [(i, step) for i, step in self._all if not self._resting[i]]

    def load_state_dict(self, state: dict[str, Any]) -> Mask | None:
        lost = super().load_state_dict(state)
        self._awake = self._all
        if self._resting is not None:
            self.rest(self._resting)
        return lost

    def abandon_episodes(self) -> None:
        self._over = np.ones(self.num_envs, np.bool_)

    def close(self) -> None:
        if not (self.is_lent or self._closed):
            self._closed = True
            self.env.close()
