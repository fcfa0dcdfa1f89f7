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
    """A gymnasium vector env, in any of the three autoreset modes.

    Gymnasium's own ones with NEXT_STEP, its default, are told to reset before they would spend a step on it.
    """

    env: VectorEnv[Any, Any, Any]
    is_vector = True
    _of_episodes = (*EnvPool._of_episodes, "_lengths", "_reset_by_itself")

    def __init__(
        self, env: VectorEnv[Any, Any, Any], *, max_episode_len: int | None = None, owns_env: bool = True
    ) -> None:
        """
        Args:
            env: the vector env; its `metadata["autoreset_mode"]` says how it starts its next episodes. The pool itself
                resets those that say `info["needs_reset"]`, whose episode is then cut off.
            max_episode_len: in env steps; an episode that reaches it is cut off. Only where some of the envs can be
                reset: gymnasium's own vector envs, and others whose autoreset is DISABLED.
            owns_env: whether `close` closes the vector env.
        Raises:
            ConfigurationError: not a vector env, a space that cannot be served, `max_episode_len` where no episode can
                be ended from outside, or an AsyncVectorEnv that would reset twice.
            EnvError: the vector env does not say its autoreset mode.
        """
        check_is_env(env)
        self.env, self.num_envs, self.is_lent = env, env.num_envs, not owns_env
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self._mode = autoreset_mode(env)
        self.can_seed_each = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self.can_reset_some = self.can_seed_each or self._mode == AutoresetMode.DISABLED
        if max_episode_len and not self.can_reset_some:
            raise ConfigurationError(
                f"max_episode_len={max_episode_len}: a vector env with autoreset {self._mode.name} ends its episodes "
                "itself. Wrap each env in gymnasium.wrappers.TimeLimit before making the vector env, or give an id or "
                "a factory of one env instead."
            )
        next_step = self._mode == AutoresetMode.NEXT_STEP
        if next_step and isinstance(env.unwrapped, AsyncVectorEnv) and not env.unwrapped.shared_memory:
            raise ConfigurationError(
                f"{env}: without shared memory, AsyncVectorEnv with NEXT_STEP autoreset forgets that it was reset, and "
                "resets again in the next step. Make it with shared_memory=True, or another autoreset_mode."
            )
        # a vector wrapper that counts or averages observations would see those of a reset twice: left to itself
        self.spends_steps_on_resets = next_step and not isinstance(env, SyncVectorEnv | AsyncVectorEnv)
        owned = isinstance(env, SyncVectorEnv | AsyncVectorEnv) and env.copy
        self._reader = ObsReader(self.observation_space, self.num_envs, owned=owned)
        self._to_action = ActionReader(self.action_space, self.num_envs).batch
        self._max_len = max_episode_len or 0
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._obs: ObsArray
        self._over: Mask | None = np.ones(self.num_envs, np.bool_)  # those that wait for `begin_episodes`
        self._reset_by_itself: Mask | None = None  # those of them that the vector env has reset, or is about to

    def reset(self, seed: int | Seeds | None = None) -> ObsArray:
        if not isinstance(seed, int | None):
            self._check_seeds()
            seed = list(seed)
        self._obs = self._read(check_reset(self.env.reset(seed=seed))[0])  # type: ignore[arg-type]
        self._over = self._reset_by_itself = None
        self._lengths[:] = 0
        return self._obs

    def begin_episodes(self, seeds: Seeds | None = None) -> ObsArray:
        if self._over is None:
            return self._obs
        mask = self._over if self._reset_by_itself is None else self._over & ~self._reset_by_itself
        if seeds is not None:
            self._check_seeds()
            mask = mask | (self._over & np.array([seed is not None for seed in seeds]))
        if mask.any():
            whole = mask.all() or not self.can_reset_some
            self._obs = self.reset(seeds) if whole else self._reset_some(mask, seeds)
        self._over = None
        return self._obs

    def step(self, action: Array) -> Step:
        result = self.env.step(self._to_action(action))
        try:
            raw_obs, raw_reward, raw_terminated, raw_truncated, infos = result
        except (TypeError, ValueError):
            raise bad_step(result) from None
        self.num_steps += 1
        obs = self._obs = self._read(raw_obs)
        reward = np.array(raw_reward, np.float32)
        terminated, truncated = np.array(raw_terminated, np.bool_), np.array(raw_truncated, np.bool_)
        valid = None
        if self._reset_by_itself is not None:
            if self.spends_steps_on_resets and self._reset_by_itself.any():
                valid = ~self._reset_by_itself
                reward[self._reset_by_itself] = 0.0
                terminated &= valid
                truncated &= valid
            self._reset_by_itself = None
        self._check_reward(reward)
        ended = terminated | truncated
        if self._mode != AutoresetMode.DISABLED and np.count_nonzero(ended):
            obs = self._after_end(obs, ended, infos)
        if infos and "needs_reset" in infos:
            truncated |= self._asked_for_reset(infos, ended, valid)
            ended = terminated | truncated
        if self._max_len:
            self._lengths += 1 if valid is None else valid
            truncated |= self._lengths >= self._max_len
            ended = terminated | truncated
            self._lengths[ended] = 0
        if np.count_nonzero(ended):
            self._over = ended
        return Step(obs, reward, terminated, truncated, valid, infos)

    def end_episodes(self, mask: Mask) -> None:
        if not mask.any():
            return
        over = mask.copy() if self._over is None else self._over | mask
        self._check_can_reset(over)
        self._over = over

    def abandon_episodes(self) -> None:
        self._over, self._reset_by_itself = np.ones(self.num_envs, np.bool_), None

    def close(self) -> None:
        if not (self.is_lent or self._closed):
            self._closed = True
            self.env.close()

    def _after_end(self, obs: ObsArray, ended: Mask, infos: dict[str, Any]) -> ObsArray:
        """What truly followed, when the vector env has ended some episode that it resets by itself."""
        if self._mode == AutoresetMode.SAME_STEP:
            self._reset_by_itself = ended
            obs = copy_obs(obs)
            for index in np.flatnonzero(ended):
                _assign(obs, index, self._reader.one(self._final_obs(infos, int(index))), 0)
            self._check_obs(obs)
        elif self.spends_steps_on_resets:
            self._reset_by_itself = ended
        return obs

    def _asked_for_reset(self, infos: dict[str, Any], ended: Mask, valid: Mask | None) -> Mask:
        """Which envs [B] say `info["needs_reset"]`; those of them that have not `ended` did not reset themselves."""
        asked = np.array(infos["needs_reset"], np.bool_) & np.asarray(infos.get("_needs_reset", True), np.bool_)
        if valid is not None:
            asked &= valid
        if np.count_nonzero(asked & ~ended):
            self._check_can_reset(asked | ended, 'info["needs_reset"]: ')
        return asked

    def _check_can_reset(self, over: Mask, reason: str = "") -> None:
        if not (self.can_reset_some or over.all()):
            raise ConfigurationError(
                f"{reason}{self.env} cannot reset some of its envs: gymnasium's vector envs can, and others with "
                'metadata["autoreset_mode"] DISABLED and reset(options={"reset_mask": mask}).'
            )

    def _final_obs(self, infos: dict[str, Any], index: int) -> Any:
        if "final_obs" not in infos:
            raise EnvError(
                f'{self.env} says autoreset SAME_STEP, but gave no infos["final_obs"] when an episode ended. '
                "Without it the last observation is lost: provide it, or use NEXT_STEP or DISABLED."
            )
        return tree_row(infos["final_obs"], index)

    def _reset_some(self, mask: Mask, seeds: Seeds | None) -> ObsArray:
        seed: Any = None if seeds is None else list(seeds)
        fresh = self._read(check_reset(self.env.reset(seed=seed, options={"reset_mask": mask.copy()}))[0])
        if self._reset_by_itself is not None:
            self._reset_by_itself = self._reset_by_itself & ~mask
        self._lengths[mask] = 0
        merged = copy_obs(self._obs)
        _assign(merged, mask, fresh, mask)
        return merged

    def _check_seeds(self) -> None:
        if not self.can_seed_each:
            raise ConfigurationError(
                f"{self.env} takes no seeds for single envs: use SyncVectorEnv, an id or a factory."
            )

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
