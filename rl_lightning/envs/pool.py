"""The one interface through which everything steps envs: B of them at once, whatever made them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

from rl_lightning.envs.actions import ActionReader
from rl_lightning.envs.checks import FLOAT32_MAX, bad_reward, bad_step, check_is_env, first_result, non_finite
from rl_lightning.envs.observations import ObsReader
from rl_lightning.envs.state import capture, capture_attributes, restore, restore_attributes
from rl_lightning.types import Array, ObsArray, tree_map

Mask: TypeAlias = NDArray[np.bool_]
Seeds: TypeAlias = Sequence[int | None]


# Copying a stored array, and building a tuple without its Python constructor, save a microsecond a step together.
_zero = np.zeros(1, np.float32).copy
_no = np.zeros(1, np.bool_).copy
_new_tuple = tuple.__new__


class Step(NamedTuple):
    """What B envs gave back for one action each.

    Attributes:
        next_obs: [B, *O] what followed; at an episode's end its last observation.
        reward: [B] float32, as the env gave it.
        terminated: [B] bool, the env ended the episode.
        truncated: [B] bool, the episode was cut off.
        valid: [B] bool, False where an env only reset itself (see `EnvPool.spends_steps_on_resets`) or rests: reward
            0, no flags, nothing to learn. False with `truncated` where an env was lost in this step, and its episode
            ended before it. None where all are valid.
        infos: the env's own info: of one env its dict, of a vector env gymnasium's dict of arrays, of envs in lockstep
            their B dicts, of envs in processes of their own an empty dict.
    """

    next_obs: ObsArray
    reward: NDArray[np.float32]
    terminated: Mask
    truncated: Mask
    valid: Mask | None
    infos: Any


class EnvPool(ABC):
    """B envs that are stepped together. The loop that it lives in::

        pool.reset(seed)
        while True:
            obs = pool.begin_episodes()
            step = pool.step(act(obs))

    An episode that is over stays over until `begin_episodes`, so that its end can be looked at, or another one be run
    in between. Every array that a pool returns belongs to the caller: no later step writes into it. Observations have
    the space's dtype (float64 becomes float32); Dict and Tuple spaces give {path: array}, see `leaf_spaces`. An
    exception that an env raises comes through unchanged; from a process of its own, as a WorkerError.

    Attributes:
        num_envs: B.
        observation_space: of one env.
        action_space: of one env. `step` takes integers that count from 0, whatever the space's own start.
        env: the gymnasium env or vector env inside.
        is_vector: whether that is a vector env.
        is_lent: whether it belongs to the user, and `close` leaves it open.
        num_steps: how often `step` ran; errors name it.
        can_reset_some: whether some of the envs can be reset and the others left alone.
        can_seed_each: whether `begin_episodes` takes seeds.
        spends_steps_on_resets: whether an env whose episode is over spends the next step on resetting itself, which is
            then not `valid`: a vector env with NEXT_STEP autoreset that cannot be told to reset.
        restart_workers: how many lost envs may be replaced; a step in which one is lost is not `valid` there.
        is_exact: whether what `state_dict` holds of the envs is all there is to them; see `why_not_exact`.
    """

    num_envs: int
    observation_space: Space[Any]
    action_space: Space[Any]
    env: Any
    is_vector: bool
    is_lent: bool
    num_steps: int = 0
    can_reset_some: bool = True
    can_seed_each: bool = True
    spends_steps_on_resets: bool = False
    restart_workers: int = 0
    is_exact: bool = True
    _closed: bool = False
    _of_episodes: ClassVar[tuple[str, ...]] = ("_obs", "_over", "num_steps")

    @abstractmethod
    def reset(self, seed: int | Seeds | None = None) -> ObsArray:
        """Start a new episode in every env; env i is seeded with `seed + i`, or `seed[i]`. Returns [B, *O].

        Raises:
            EnvError: the observation does not fit the space, or the env speaks the old gym API.
            NonFiniteError: a NaN or an infinity in the observation.
            ConfigurationError: the vector env takes no seed for each env, and was given several.
        """

    @abstractmethod
    def begin_episodes(self, seeds: Seeds | None = None) -> ObsArray:
        """Start a new episode where the last one is over, env i with `seeds[i]` if given and not None.

        Returns:
            [B, *O] to act on next.
        Raises:
            as `reset`.
        """

    @abstractmethod
    def step(self, action: Array) -> Step:
        """Take one action [B, *A] in each env.

        Raises:
            EnvError: an action outside the space; an observation, reward or result that breaks the env's contract.
            NonFiniteError: a NaN or an infinity in an observation or a reward.
        """

    @abstractmethod
    def end_episodes(self, mask: Mask) -> None:
        """Take the episodes where `mask` [B] is True for over, whatever the env says.

        Raises:
            ConfigurationError: the vector env can only be reset as a whole.
        """

    def rest(self, mask: Mask) -> None:
        """What the envs where `mask` [B] is True do is of no interest until `reset`; a pool that can lets them rest.

        A resting env begins no episode and takes no step: its rows are then not `valid`, as with resets.
        """

    @abstractmethod
    def abandon_episodes(self) -> None:
        """Somebody else has stepped the envs: all begin anew, whatever they were doing."""

    def state_dict(self) -> dict[str, Any]:
        """The envs and their episodes, between two steps: tensors and plain data. Empty where it is not `is_exact`."""
        if not self.is_exact:
            return {}
        return {"pool": capture_attributes(self, self._of_episodes), "envs": self._capture_envs()}

    def load_state_dict(self, state: dict[str, Any]) -> Mask | None:
        """Go on where `state_dict` was called, in envs that were made as those were.

        Returns:
            [B] where an env could not be put back, so that its episode begins anew; None where all could.
        Raises:
            ConfigurationError: the envs were made otherwise.
        """
        if not state:
            self.abandon_episodes()
            return np.ones(self.num_envs, np.bool_)
        self._restore_envs(state["envs"])
        restore_attributes(self, self._of_episodes, state["pool"])
        return None

    def _capture_envs(self) -> Any:
        return capture(self.env)

    def _restore_envs(self, saved: Any) -> None:
        restore(self.env, saved)

    def close(self) -> None:
        """Close the envs, unless the user lent them. May be called twice."""


class SinglePool(EnvPool):
    """One gymnasium env."""

    is_vector = False
    _of_episodes = (*EnvPool._of_episodes, "_len")

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
        self.env, self.num_envs, self.is_lent = env, 1, not owns_env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._reader = ObsReader(env.observation_space, 1)
        self._read, self._all_finite = self._reader.one, self._reader.all_finite
        self._to_action = ActionReader(env.action_space, 1).one
        self._max_len = max_episode_len or 0
        self._len = 0
        self._obs: ObsArray
        self._over = True

    def reset(self, seed: int | Seeds | None = None) -> ObsArray:
        obs = self._read(first_result(self.env, seed if seed is None or isinstance(seed, int) else seed[0])[0])
        if not self._all_finite(obs):
            raise self._reader.non_finite(obs, self.num_steps)
        self._obs, self._len, self._over = obs, 0, False
        return obs

    def begin_episodes(self, seeds: Seeds | None = None) -> ObsArray:
        return self.reset(seeds) if self._over else self._obs

    def step(self, action: Array) -> Step:
        result = self.env.step(self._to_action(action))
        try:
            raw_obs, raw_reward, is_terminated, is_truncated, info = result
        except (TypeError, ValueError):
            raise bad_step(result) from None
        self.num_steps += 1
        self._len += 1
        obs = self._obs = self._read(raw_obs)
        if not self._all_finite(obs):
            raise self._reader.non_finite(obs, self.num_steps)
        reward, terminated, truncated = _zero(), _no(), _no()
        try:
            # One comparison refuses NaN, infinities, and what float32 cannot hold.
            if not -FLOAT32_MAX <= raw_reward <= FLOAT32_MAX:
                raise non_finite("reward", np.array([raw_reward], np.float64), self.num_steps)
            reward[0] = raw_reward
        except (TypeError, ValueError):
            raise bad_reward(raw_reward) from None
        if is_terminated:
            terminated[0] = self._over = True
        if is_truncated or self._len == self._max_len or (info and info.get("needs_reset")):
            truncated[0] = self._over = True
        return _new_tuple(Step, (obs, reward, terminated, truncated, None, info))

    def end_episodes(self, mask: Mask) -> None:
        self._over = self._over or bool(mask[0])

    def abandon_episodes(self) -> None:
        self._over = True

    def close(self) -> None:
        if not (self.is_lent or self._closed):
            self._closed = True
            self.env.close()


def copy_obs(obs: ObsArray) -> ObsArray:
    """A copy that shares no memory with `obs`."""
    copied: ObsArray = tree_map(np.copy, obs)
    return copied
