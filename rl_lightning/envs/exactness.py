"""Whether the state of an env, saved and put back, is all there is to it: tried out, for nothing else tells."""

from __future__ import annotations

import copy
import io
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rl_lightning.envs.pool import EnvPool, SinglePool, Step
from rl_lightning.envs.recipe import EnvRecipe
from rl_lightning.randomness import random_state, set_random_state
from rl_lightning.types import Array, ConfigurationError

_STEPS_BEFORE, _STEPS_AFTER = 8, 24


def why_not_exact(recipe: EnvRecipe) -> str | None:
    """What keeps envs of this recipe from going on bit for bit where they were saved; None: nothing.

    Two of them are made. One takes some random steps, is saved, and takes some more, which the other one has to repeat.
    A live env is never stepped for that: others like it are, made by its spec, or copies of it. The global random
    generators are afterwards as before.
    """
    before = random_state()
    pools: list[EnvPool] = []
    try:
        try:
            pools = _two_pools(recipe)
            return _difference(*pools)
        except Exception as error:  # whatever it is, the env cannot be saved, and training goes on
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return f"{recipe.source} could not be saved and put back ({what})"
        finally:
            for pool in pools:
                pool.close()
    finally:
        set_random_state(before)


def _two_pools(recipe: EnvRecipe) -> list[EnvPool]:
    source = recipe.source
    if isinstance(source, gym.Env | gym.vector.VectorEnv):
        try:
            recipe = recipe.evaluation()
        except ConfigurationError:
            if isinstance(source, gym.vector.VectorEnv):
                raise
            return [SinglePool(copy.deepcopy(source), max_episode_len=recipe.max_episode_len) for _ in range(2)]
    elif recipe.vectorization != "vector_entry_point":
        recipe = recipe.replace(num_envs=1, vectorization="sync", num_workers=None, restart_workers=0)
    return [recipe.make(), recipe.make()]


def _difference(first: EnvPool, second: EnvPool) -> str | None:
    space = copy.deepcopy(first.action_space)
    space.seed(0)
    actions = [_action(space, first.num_envs) for _ in range(_STEPS_BEFORE + _STEPS_AFTER)]
    first.reset(0)
    for action in actions[:_STEPS_BEFORE]:
        first.begin_episodes()
        first.step(action)
    file = io.BytesIO()
    torch.save([first.state_dict(), random_state()], file)
    expected = _steps(first, actions[_STEPS_BEFORE:])
    file.seek(0)
    state, randomness = torch.load(file, weights_only=True)
    second.load_state_dict(state)
    set_random_state(randomness)
    for number, (a, b) in enumerate(zip(expected, _steps(second, actions[_STEPS_BEFORE:]), strict=True)):
        for name, one, other in zip(("observation", *Step._fields[:4]), a, b, strict=True):
            if not _same(one, other):
                return (
                    f"{first.env} gives another {name.removeprefix('next_')} {number + 1} steps after it was put back"
                )
    return None


def _steps(pool: EnvPool, actions: list[Array]) -> list[tuple[Any, ...]]:
    taken = []
    for action in actions:
        obs = pool.begin_episodes()
        step = pool.step(action)
        taken.append((obs, *step[:4]))
    return taken


def _action(space: gym.Space[Any], num_envs: int) -> Array:
    action: Array = np.stack([np.asarray(space.sample()) for _ in range(num_envs)])
    start = getattr(space, "start", 0)  # actions count from 0 here
    return action - start if action.dtype.kind in "iu" else action


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_same(one[path], other[path]) for path in one)
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
