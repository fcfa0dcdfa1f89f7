"""A worker's side of `SubprocessPool`: its envs, and the memory in which the pool finds what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import Space, spaces

from rl_lightning.envs.checks import bad_reward, bad_step, first_result
from rl_lightning.envs.observations import ObsReader
from rl_lightning.envs.spaces import leaf_spaces
from rl_lightning.envs.state import capture, restore
from rl_lightning.types import ObsArray, tree_map
from rl_lightning.workers import SharedBlock, WorkerContext

RESET, CALL, SET, CAPTURE, RESTORE = "reset", "call", "set", "capture", "restore"
"""What a message asks for, beside its argument. A ring without a message asks for a step."""


def block_of(reader: ObsReader, action_space: Space[Any], num_envs: int, num_workers: int) -> SharedBlock:
    """Memory for what B envs give and take in one step, and for how many commands each worker was given and has done.

    Raises:
        ConfigurationError: the machine has not that much memory left.
    """
    empty = reader.empty()
    leaves = empty if isinstance(empty, dict) else {"": empty}
    assert action_space.shape is not None
    fields: dict[str, Any] = {f"obs.{path}": (leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    fields |= {"action": ((num_envs, *action_space.shape), action_space.dtype), "reward": ((num_envs,), np.float64)}
    fields |= dict.fromkeys(("terminated", "truncated", "resting"), ((num_envs,), np.bool_))
    return SharedBlock(fields | dict.fromkeys(("asked", "done"), ((num_workers,), np.int64)))


def obs_in(block: SharedBlock, space: Space[Any]) -> ObsArray:
    """The block's observations, as an `ObsReader` of `space` lays them out."""
    leaves = {path: block[f"obs.{path}"] for path in leaf_spaces(space)}
    return leaves.get("", leaves)


def step_envs(
    context: WorkerContext, make_env: Callable[[], gym.Env[Any, Any]], rows: slice, block: SharedBlock, max_len: int
) -> None:
    """The worker's function: make the envs of these rows, do as asked until the pool stops, close them."""
    envs: list[gym.Env[Any, Any]] = []
    try:
        for _ in range(rows.start, rows.stop):
            envs.append(make_env())
            context.beat()
        share = _Share(context, envs, rows, block, max_len)
        while True:
            block["done"][context.number] = block["asked"][context.number]
            context.ring()
            messages = context.messages(None)
            if context.stopping:
                return
            if not messages:
                share.step()
            for what, argument in messages:
                share.obey(what, argument)
    finally:
        for env in envs:
            env.close()


class _Share:
    """The envs of one worker."""

    def __init__(
        self, context: WorkerContext, envs: list[gym.Env[Any, Any]], rows: slice, block: SharedBlock, max_len: int
    ) -> None:
        self._context, self._envs, self._max_len = context, envs, max_len
        self._asked = block["asked"]
        space, action_space = envs[0].observation_space, envs[0].action_space
        self._put = ObsReader(space, len(envs)).put
        self._obs: ObsArray = tree_map(lambda leaf: leaf[rows], obs_in(block, space))
        self._action, self._reward, self._resting = block["action"][rows], block["reward"][rows], block["resting"][rows]
        self._terminated, self._truncated = block["terminated"][rows], block["truncated"][rows]
        self._takes_number = isinstance(action_space, spaces.Discrete)
        self._lengths = [0] * len(envs)

    def step(self) -> None:
        """Take one step in each env that is awake."""
        for i, env in enumerate(self._envs):
            if self._resting[i]:
                continue
            self._context.beat()
            result: Any = env.step(self._action[i] if self._takes_number else self._action[i, ...].copy())
            try:
                obs, reward, terminated, truncated, info = result
            except (TypeError, ValueError):
                raise bad_step(result) from None
            self._put(self._obs, i, obs)
            try:
                self._reward[i] = reward + 0.0  # which text is not
            except (TypeError, ValueError):
                raise bad_reward(reward) from None
            self._lengths[i] = length = self._lengths[i] + 1
            self._terminated[i] = bool(terminated)
            self._truncated[i] = truncated or length == self._max_len or bool(info and info.get("needs_reset"))
            self._context.env_step += 1

    def obey(self, what: str, argument: Any) -> None:
        """Do what a message asks for."""
        if what == RESET:
            for i, seed in argument.items():
                self._context.beat()
                self._put(self._obs, i, first_result(self._envs[i], seed)[0])
                self._lengths[i] = 0
        else:
            name, arguments = argument
            if what in (CAPTURE, RESTORE):
                results = [getattr(self, f"_{what}")(i, each) for i, each in enumerate(arguments)]
            else:
                results = [_DO[what](env, name, each) for env, each in zip(self._envs, arguments, strict=True)]
            self._context.send((int(self._asked[self._context.number]), results))

    def _capture(self, i: int, _: None) -> Any:
        return [self._lengths[i], capture(self._envs[i])]

    def _restore(self, i: int, saved: Any) -> None:
        self._lengths[i], state = saved
        restore(self._envs[i], state)


def _call(env: gym.Env[Any, Any], name: str, arguments: tuple[Sequence[Any], Mapping[str, Any]]) -> Any:
    found = env.get_wrapper_attr(name)
    args, kwargs = arguments
    return found(*args, **kwargs) if callable(found) else found


def _set(env: gym.Env[Any, Any], name: str, value: Any) -> None:
    env.set_wrapper_attr(name, value)


_DO: dict[str, Callable[[gym.Env[Any, Any], str, Any], Any]] = {CALL: _call, SET: _set}
