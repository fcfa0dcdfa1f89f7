"""Scripted envs: their episodes are known in advance, so that every expected number can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl_lightning.envs import EnvPool
from rl_lightning.envs.pool import Step

LOW_HIGH = spaces.Box(-1000.0, 1000.0, (2,), np.float32)


class Scripted(gym.Env):
    """Episodes of given lengths, over and over.

    Observation: [episode number, step within it]. Reward: `reward`, or with `rewards` the next of those.
    """

    def __init__(
        self,
        lengths: Sequence[int] = (3,),
        *,
        reward: float = 1.0,
        rewards: Sequence[float] = (),
        truncates: bool = False,
        action_space: gym.Space | None = None,
        observation_space: gym.Space | None = None,
    ) -> None:
        self.lengths, self.reward, self.rewards, self.truncates = list(lengths), reward, list(rewards), truncates
        self.observation_space = observation_space or LOW_HIGH
        self.action_space = action_space or spaces.Discrete(2)
        self.episode, self.t, self.steps = -1, 0, 0
        self.actions: list[Any] = []
        self.seeds: list[int | None] = []
        self.closed = 0

    def observe(self) -> Any:
        return np.array([self.episode, self.t], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        reward = self.rewards[self.steps % len(self.rewards)] if self.rewards else self.reward
        self.t, self.steps = self.t + 1, self.steps + 1
        over = self.t >= self.lengths[self.episode % len(self.lengths)]
        return self.observe(), reward, over and not self.truncates, over and self.truncates, {}

    def close(self) -> None:
        self.closed += 1


class Nested(Scripted):
    """The same episodes with a Dict observation that holds a Tuple."""

    def __init__(self, lengths: Sequence[int] = (3,), **kwargs: Any) -> None:
        parts = {"clock": spaces.Box(0.0, 1000.0, (), np.float32), "pair": spaces.Tuple([LOW_HIGH, spaces.Discrete(9)])}
        super().__init__(lengths, observation_space=spaces.Dict(parts), **kwargs)

    def observe(self) -> Any:
        return {"clock": np.array(self.t, np.float32), "pair": (super().observe(), self.episode % 9)}


class ReusesMemory(Scripted):
    """Writes every observation into the same array, as envs that care for speed do."""

    def __init__(self, lengths: Sequence[int] = (3,)) -> None:
        super().__init__(lengths)
        self.memory = np.zeros(2, np.float32)

    def observe(self) -> Any:
        self.memory[:] = self.episode, self.t
        return self.memory


class GivesObservation(Scripted):
    """Returns `first` from `reset` and `later` from `step`, whatever the space says."""

    def __init__(self, first: Any, later: Any = None, observation_space: gym.Space | None = None) -> None:
        super().__init__((100,), observation_space=observation_space)
        self.first, self.later = first, first if later is None else later

    def observe(self) -> Any:
        return self.first if self.t == 0 else self.later


class NotFiniteAt(Scripted):
    """`value` instead of one number, in step `at` (counted from 1) of the env's life."""

    def __init__(self, at: int, *, field: str = "observation", value: float = float("nan"), length: int = 100) -> None:
        super().__init__((length,))
        self.at, self.field, self.value = at, field, value

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.steps == self.at and self.field == "observation":
            obs[1] = self.value
        if self.steps == self.at and self.field == "reward":
            reward = self.value
        return obs, reward, terminated, truncated, info


class NeedsReset(Scripted):
    """Asks to be reset after every `every` steps of an episode, without ending it."""

    def __init__(self, every: int = 2) -> None:
        super().__init__((100,))
        self.every = every

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        *rest, info = super().step(action)
        return *rest, {"needs_reset": self.t == self.every}


class Broken(Scripted):
    """Raises in `reset` or in `step`."""

    def __init__(self, where: str) -> None:
        super().__init__((100,))
        self.where = where

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self.where == "reset":
            raise ValueError("sensor unplugged")
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.where == "step":
            raise ValueError("sensor unplugged")
        return super().step(action)


class OldReset(Scripted):
    """The old gym API: `reset` returns the observation alone."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class OldSeed(Scripted):
    """The old gym API: `reset` takes no seed."""

    def reset(self) -> Any:
        return super().reset()[0]


class OldStep(Scripted):
    """The old gym API: `step` returns four values."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


class Noisy(Scripted):
    """Rewards drawn from the env's own generator, episodes of three steps: the seed decides the return."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, _, *rest = super().step(action)
        return obs, float(self.np_random.integers(1000)), *rest


def go(pool: EnvPool, times: int = 1) -> list[Step]:
    """Step as everybody should: begin what is to begin, then take action 0 everywhere."""
    steps = []
    for _ in range(times):
        pool.begin_episodes()
        steps.append(pool.step(np.zeros(pool.num_envs, int)))
    return steps
