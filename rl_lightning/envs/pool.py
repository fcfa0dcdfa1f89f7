"""The one interface through which everything steps envs: B of them at once, whatever made them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

from rl_lightning.envs.actions import ActionReader
from rl_lightning.envs.checks import FLOAT32_MAX, bad_step, check_is_env, first_result, non_finite
from rl_lightning.envs.observations import ObsReader
from rl_lightning.types import Array, EnvError, ObsArray, tree_map

Mask: TypeAlias = NDArray[np.bool_]
Seeds: TypeAlias = Sequence[int | None]


# Copying a stored array, and building a tuple without its Python constructor, save a microsecond a step together.
_zero = np.zeros(1, np.float32).copy
_no = np.zeros(1, np.bool_).copy
_new_tuple = tuple.__new__


class Step(NamedTuple):
    """What B envs gave back for one action each.

    Attributes:
        obs: [B, *O] to act on next: an env whose episode ended has its new episode's first observation here (with
            NEXT_STEP autoreset one step later).
        reward: [B] float32, as the env gave it.
        terminated: [B] bool, the env ended the episode.
        truncated: [B] bool, the episode was cut off.
        next_obs: [B, *O] the true successor, at an episode's end its last observation. The same object as `obs`
            wherever the two do not differ.
        valid: [B] bool, False where an env only reset itself (NEXT_STEP autoreset): reward 0, no flags, nothing to
            learn. None where all are valid.
        infos: the env's own info (one env: its dict; a vector env: gymnasium's dict of arrays).
    """

    obs: ObsArray
    reward: NDArray[np.float32]
    terminated: Mask
    truncated: Mask
    next_obs: ObsArray
    valid: Mask | None
    infos: dict[str, Any]


class EnvPool(ABC):
    """B envs that are stepped together and start their next episodes by themselves.

    Every array that a pool returns belongs to the caller: no later step writes into it. Observations have the space's
    dtype (float64 becomes float32); Dict and Tuple spaces give {path: array}, see `leaf_spaces`. An exception that an
    env raises comes through unchanged.

    Attributes:
        num_envs: B.
        observation_space: of one env.
        action_space: of one env. `step` takes integers that count from 0, whatever the space's own start.
        env: the gymnasium env or vector env inside.
        num_steps: how often `step` ran; errors name it.
        can_reset_some: whether `reset_envs` can reset some of the envs and leave the others alone.
        can_seed_each: whether `reset_envs` takes seeds.
    """

    num_envs: int
    observation_space: Space[Any]
    action_space: Space[Any]
    env: Any
    num_steps: int = 0
    can_reset_some: bool = True
    can_seed_each: bool = True

    @abstractmethod
    def reset(self, seed: int | None = None) -> ObsArray:
        """Start a new episode in every env; env i is seeded with `seed + i`. Returns [B, *O].

        Raises:
            EnvError: the observation does not fit the space, or the env speaks the old gym API.
            NonFiniteError: a NaN or an infinity in the observation.
        """

    @abstractmethod
    def step(self, action: Array) -> Step:
        """Take one action [B, *A] in each env.

        Raises:
            EnvError: an action outside the space; an observation, reward or result that breaks the env's contract.
            NonFiniteError: a NaN or an infinity in an observation or a reward.
        """

    @abstractmethod
    def reset_envs(self, mask: Mask, seeds: Seeds | None = None) -> ObsArray:
        """Start a new episode where `mask` [B] is True, env i with `seeds[i]` if given.

        Returns:
            [B, *O] to act on next: first observations where `mask` is True, the current ones elsewhere.
        Raises:
            ConfigurationError: the vector env can only be reset as a whole, or takes no seed for each env.
        """

    def close(self) -> None:
        """Close the envs, unless the user lent them. May be called twice."""


class SinglePool(EnvPool):
    """One gymnasium env, reset at once when its episode ends."""

    def __init__(self, env: gym.Env[Any, Any], *, max_episode_len: int | None = None, owns_env: bool = True) -> None:
        """
        Args:
            env: the env. `info["needs_reset"]` from its `step` cuts the episode off.
            max_episode_len: in env steps; an episode that reaches it is cut off (truncated).
            owns_env: whether `close` closes the env.
        Raises:
            ConfigurationError: not a gymnasium env, or a space that cannot be served.
        """
        check_is_env(env)
        self.env, self.num_envs, self._owns_env = env, 1, owns_env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._reader = ObsReader(env.observation_space, 1)
        self._read, self._all_finite = self._reader.one, self._reader.all_finite
        self._to_action = ActionReader(env.action_space, 1).one
        self._max_len = max_episode_len or 0
        self._len = 0
        self._obs: ObsArray | None = None

    def reset(self, seed: int | None = None) -> ObsArray:
        self._obs = self._first_obs(seed)
        return self._obs

    def step(self, action: Array) -> Step:
        result = self.env.step(self._to_action(action))
        try:
            raw_obs, raw_reward, is_terminated, is_truncated, info = result
        except (TypeError, ValueError):
            raise bad_step(result) from None
        self.num_steps += 1
        self._len += 1
        obs = next_obs = self._read(raw_obs)
        if not self._all_finite(obs):
            raise self._reader.non_finite(obs, self.num_steps)
        reward, terminated, truncated = _zero(), _no(), _no()
        try:
            # One comparison refuses NaN, infinities, and what float32 cannot hold.
            if not -FLOAT32_MAX <= raw_reward <= FLOAT32_MAX:
                raise non_finite("reward", np.array([raw_reward], np.float64), self.num_steps)
            reward[0] = raw_reward
        except (TypeError, ValueError):
            raise EnvError(
                f"reward {raw_reward!r} is not a number: `step` must return one as its second value."
            ) from None
        if is_terminated:
            terminated[0] = True
        if is_truncated or self._len == self._max_len or (info and info.get("needs_reset")):
            truncated[0] = not is_terminated or is_truncated
            is_truncated = True
        if is_terminated or is_truncated:
            obs = self._first_obs(None)
        self._obs = obs
        return _new_tuple(Step, (obs, reward, terminated, truncated, next_obs, None, info))

    def reset_envs(self, mask: Mask, seeds: Seeds | None = None) -> ObsArray:
        if mask[0] or self._obs is None:
            return self.reset(seeds[0] if seeds else None)
        return copy_obs(self._obs)

    def close(self) -> None:
        if self._owns_env:
            self._owns_env = False
            self.env.close()

    def _first_obs(self, seed: int | None) -> ObsArray:
        obs = self._read(first_result(self.env, seed)[0])
        if not self._all_finite(obs):
            raise self._reader.non_finite(obs, self.num_steps)
        self._len = 0
        return obs


def copy_obs(obs: ObsArray) -> ObsArray:
    """A copy that shares no memory with `obs`."""
    copied: ObsArray = tree_map(np.copy, obs)
    return copied
