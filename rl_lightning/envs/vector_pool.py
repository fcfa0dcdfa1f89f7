"""Gymnasium's vector envs as a pool, in all three autoreset modes."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rl_lightning.envs.actions import ActionReader
from rl_lightning.envs.checks import all_finite, bad_step, check_is_env, check_reset, non_finite
from rl_lightning.envs.observations import ObsReader
from rl_lightning.envs.pool import EnvPool, Mask, Seeds, Step, copy_obs
from rl_lightning.types import Array, ConfigurationError, EnvError, ObsArray


class VectorPool(EnvPool):
    """A gymnasium vector env, in any of the three autoreset modes."""

    env: VectorEnv[Any, Any, Any]

    def __init__(
        self, env: VectorEnv[Any, Any, Any], *, max_episode_len: int | None = None, owns_env: bool = True
    ) -> None:
        """
        Args:
            env: the vector env; its `metadata["autoreset_mode"]` says how it starts its next episodes.
            max_episode_len: in env steps; an episode that reaches it is cut off. Only where autoreset is DISABLED: the
                other modes leave no way to end an episode from outside.
            owns_env: whether `close` closes the vector env.
        Raises:
            ConfigurationError: not a vector env, a space that cannot be served, or `max_episode_len` with autoreset.
            EnvError: the vector env does not say its autoreset mode.
        """
        check_is_env(env)
        self.env, self.num_envs, self._owns_env = env, env.num_envs, owns_env
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self._mode = autoreset_mode(env)
        if max_episode_len and self._mode != AutoresetMode.DISABLED:
            raise ConfigurationError(
                f"max_episode_len={max_episode_len}: a vector env with autoreset {self._mode.name} ends its episodes "
                "itself. Wrap each env in gymnasium.wrappers.TimeLimit before making the vector env, or give an id or "
                "a factory of one env instead."
            )
        is_gymnasiums = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self.can_reset_some = is_gymnasiums or self._mode == AutoresetMode.DISABLED
        self.can_seed_each = is_gymnasiums
        owned = isinstance(env, SyncVectorEnv | AsyncVectorEnv) and env.copy
        self._reader = ObsReader(self.observation_space, self.num_envs, owned=owned)
        self._to_action = ActionReader(self.action_space, self.num_envs).batch
        self._max_len = max_episode_len or 0
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._resetting: Mask | None = None
        self._obs: ObsArray | None = None

    def reset(self, seed: int | None = None) -> ObsArray:
        self._resetting = None
        self._lengths[:] = 0
        self._obs = self._read(check_reset(self.env.reset(seed=seed))[0])
        return self._obs

    def step(self, action: Array) -> Step:
        result = self.env.step(self._to_action(action))
        try:
            raw_obs, raw_reward, raw_terminated, raw_truncated, infos = result
        except (TypeError, ValueError):
            raise bad_step(result) from None
        self.num_steps += 1
        obs = next_obs = self._read(raw_obs)
        reward = np.array(raw_reward, np.float32)
        terminated, truncated = np.array(raw_terminated, np.bool_), np.array(raw_truncated, np.bool_)
        valid = None
        if self._resetting is not None:
            reward[self._resetting] = 0.0
            valid = ~self._resetting
            terminated &= valid
            truncated &= valid
            self._resetting = None
        if self._max_len:
            self._lengths += 1
            truncated |= (self._lengths >= self._max_len) & ~terminated
        self._check_reward(reward)
        ended = terminated | truncated
        if np.count_nonzero(ended):
            obs, next_obs = self._after_end(obs, ended, infos)
        self._obs = obs
        return Step(obs, reward, terminated, truncated, next_obs, valid, infos)

    def reset_envs(self, mask: Mask, seeds: Seeds | None = None) -> ObsArray:
        if seeds is not None and not self.can_seed_each:
            raise ConfigurationError(
                f"{self.env} takes no seeds for single envs: use SyncVectorEnv, an id or a factory."
            )
        if self._obs is None:
            mask = np.ones(self.num_envs, np.bool_)
        if seeds is None and mask.all():
            return self.reset()
        if self._obs is not None and not mask.any():
            return copy_obs(self._obs)
        if not self.can_reset_some:
            raise ConfigurationError(
                f"{self.env} cannot reset some of its envs: gymnasium's vector envs can, and others with "
                'metadata["autoreset_mode"] DISABLED and reset(options={"reset_mask": mask}).'
            )
        self._obs = self._reset_some(self._obs, mask, seeds)
        if self._resetting is not None:
            self._resetting = self._resetting & ~mask
        return self._obs

    def close(self) -> None:
        if self._owns_env:
            self._owns_env = False
            self.env.close()

    def _after_end(self, obs: ObsArray, ended: Mask, infos: dict[str, Any]) -> tuple[ObsArray, ObsArray]:
        """What to act on next, and what truly followed, when some episode ended."""
        if self._mode == AutoresetMode.SAME_STEP:
            last = copy_obs(obs)
            for index in np.flatnonzero(ended):
                _assign(last, index, self._reader.one(self._final_obs(infos, int(index))), 0)
            self._check_obs(last)
            return obs, last
        if self._mode == AutoresetMode.NEXT_STEP:
            self._resetting = ended
            return obs, obs
        return self._reset_some(obs, ended, None), obs

    def _final_obs(self, infos: dict[str, Any], index: int) -> Any:
        if "final_obs" not in infos:
            raise EnvError(
                f'{self.env} says autoreset SAME_STEP, but gave no infos["final_obs"] when an episode ended. '
                "Without it the last observation is lost: provide it, or use NEXT_STEP or DISABLED."
            )
        return tree_row(infos["final_obs"], index)

    def _reset_some(self, obs: ObsArray | None, mask: Mask, seeds: Seeds | None) -> ObsArray:
        seed: Any = None if seeds is None else list(seeds)
        fresh = self._read(check_reset(self.env.reset(seed=seed, options={"reset_mask": mask.copy()}))[0])
        self._lengths[mask] = 0
        if obs is None:
            return fresh
        merged = copy_obs(obs)
        _assign(merged, mask, fresh, mask)
        return merged

    def _read(self, raw: Any) -> ObsArray:
        obs = self._reader.batch(raw)
        self._check_obs(obs)
        return obs

    def _check_obs(self, obs: ObsArray) -> None:
        if not self._reader.all_finite(obs):
            raise self._reader.non_finite(obs, self.num_steps)

    def _check_reward(self, reward: Array) -> None:
        if reward.shape != (self.num_envs,):
            raise EnvError(f"rewards of shape {reward.shape}: {self.num_envs} envs must give ({self.num_envs},).")
        if not all_finite(reward):
            raise non_finite("reward", reward, self.num_steps)


def autoreset_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """The vector env's autoreset mode, from `metadata["autoreset_mode"]` (the enum, its name or its value).

    Raises:
        EnvError: missing, or none of the three.
    """
    given = (env.metadata or {}).get("autoreset_mode")
    for mode in AutoresetMode:
        if given in (mode, mode.name, mode.value):
            return mode
    raise EnvError(
        f'{env} has metadata["autoreset_mode"] = {given!r}. Set it to gymnasium.vector.AutoresetMode.NEXT_STEP, '
        "SAME_STEP or DISABLED, as the vector env starts its next episodes."
    )


def tree_row(tree: Any, index: int) -> Any:
    """Row `index` of arrays [B, ...] nested in dicts and tuples, or element `index` of an object array of B."""
    if isinstance(tree, dict):
        return {key: tree_row(leaf, index) for key, leaf in tree.items()}
    if isinstance(tree, tuple):
        return tuple(tree_row(leaf, index) for leaf in tree)
    return tree[index]


def _assign(target: ObsArray, rows: Any, source: ObsArray, source_rows: Any) -> None:
    if isinstance(target, dict):
        assert isinstance(source, dict)
        for path, array in target.items():
            array[rows] = source[path][source_rows]
    else:
        assert not isinstance(source, dict)
        target[rows] = source[source_rows]
