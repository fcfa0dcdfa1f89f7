"""From what an env returns to arrays that the caller owns, checked against the space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from rl_lightning.envs.checks import all_finite, non_finite
from rl_lightning.envs.spaces import flatten_obs, leaf_spaces
from rl_lightning.types import Array, ConfigurationError, EnvError, NonFiniteError, ObsArray


class ObsReader:
    """Copies observations into arrays of the space's dtype (float64 becomes float32) and checks their shape.

    Attributes:
        one: observation of one env, as the env returned it -> [1, *O].
        batch: observations of B envs, as the vector env returned them -> [B, *O]. Both raise EnvError where shape,
            dtype or nesting do not fit the space.
        put: `put(obs, i, value)` copies one env's observation into row i of what `empty` gave.
        all_finite: whether there is no NaN or infinity in what `one` or `batch` returned.
    """

    one: Callable[[Any], ObsArray]
    batch: Callable[[Any], ObsArray]
    put: Callable[[Any, int, Any], None]
    all_finite: Callable[[Any], bool]

    def __init__(self, space: Space[Any], num_envs: int, *, owned: bool = False) -> None:
        """
        Args:
            space: of one env.
            owned: the env gives a new array at every step, so that `batch` need not copy it.
        Raises:
            ConfigurationError: a part of the space is not Box, Discrete, MultiDiscrete or MultiBinary.
        """
        self.space = space
        self._leaves = {path: _Leaf(path, leaf, num_envs, owned) for path, leaf in leaf_spaces(space).items()}
        self._floating = tuple(path for path, leaf in self._leaves.items() if leaf.floating)
        only = self._leaves.get("")
        self.one = self._nested_one if only is None else only.one
        self.batch = self._nested_batch if only is None else only.batch
        self.put = self._nested_put if only is None else only.put
        self.all_finite = self._nested_all_finite if only is None or not only.floating else all_finite
        if not self._floating:
            self.all_finite = _always

    def non_finite(self, obs: ObsArray, step: int) -> NonFiniteError:
        """The error for an observation that is not `all_finite`, naming env, field, value and `step`."""
        arrays = ((path, obs[path] if isinstance(obs, dict) else obs) for path in self._floating)
        path, array = next((path, array) for path, array in arrays if not all_finite(array))
        return non_finite(_name(path), array, step)

    def _nested_all_finite(self, obs: Any) -> bool:
        return all(all_finite(obs[path]) for path in self._floating)

    def _nested_one(self, obs: Any) -> ObsArray:
        flat = self._flatten(obs)
        return {path: leaf.one(flat[path]) for path, leaf in self._leaves.items()}

    def _nested_batch(self, obs: Any) -> ObsArray:
        flat = self._flatten(obs)
        return {path: leaf.batch(flat[path]) for path, leaf in self._leaves.items()}

    def _nested_put(self, obs: Any, index: int, value: Any) -> None:
        flat = self._flatten(value)
        for path, leaf in self._leaves.items():
            leaf.put(obs[path], index, flat[path])

    def empty(self) -> ObsArray:
        """Room for the observations of B envs."""
        only = self._leaves.get("")
        return only.empty() if only is not None else {path: leaf.empty() for path, leaf in self._leaves.items()}

    def _flatten(self, obs: Any) -> Any:
        try:
            return flatten_obs(self.space, obs)
        except (KeyError, IndexError, TypeError) as error:
            raise EnvError(
                f"observation {_short(obs)} is not nested as {self.space} is ({error!r}). Fix the env or its "
                "observation_space."
            ) from error


class _Leaf:
    """One array of an observation."""

    def __init__(self, path: str, space: Space[Any], num_envs: int, owned: bool) -> None:
        if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise ConfigurationError(
                f"{_name(path)} has space {space}, which is not supported. Use Box, Discrete, MultiDiscrete, "
                "MultiBinary, or a Dict or Tuple of those: wrap the env in gymnasium.wrappers.TransformObservation."
            )
        assert space.shape is not None and space.dtype is not None
        self.path, self.space, self._owned = path, space, owned
        wide = space.dtype.kind == "f" and space.dtype.itemsize > 4
        self.dtype = np.dtype(np.float32) if wide else space.dtype
        self.floating = self.dtype.kind == "f"
        self._one_shape = (1, *space.shape)
        self._batch_shape = (num_envs, *space.shape)

    def one(self, value: Any) -> Array:
        if value.__class__ is np.ndarray and value.dtype == self.dtype:
            array = value[None].copy()
        else:
            array = self._convert(value)[None]
        if array.shape != self._one_shape:
            raise self._misfit(np.asarray(value))
        return array

    def batch(self, value: Any) -> Array:
        if value.__class__ is np.ndarray and value.dtype == self.dtype:
            array: Array = value if self._owned else value.copy()
        else:
            array = self._convert(value)
        if array.shape != self._batch_shape:
            raise self._misfit(np.asarray(value))
        return array

    def put(self, array: Array, index: int, value: Any) -> None:
        if not (value.__class__ is np.ndarray and value.dtype == self.dtype and value.shape == self._one_shape[1:]):
            value = self.one(value)[0]
        array[index] = value

    def empty(self) -> Array:
        return np.empty(self._batch_shape, self.dtype)

    def _convert(self, value: Any) -> Array:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise EnvError(f"{_name(self.path)} {_short(value)} is no array: {error}.") from error
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise self._misfit(array)
        return array.astype(self.dtype)

    def _misfit(self, given: Array) -> EnvError:
        return EnvError(
            f"{_name(self.path)} of shape {given.shape}, dtype {given.dtype} does not fit {self.space} (shape "
            f"{self.space.shape}, dtype {self.space.dtype}). Fix the env or its observation_space, or wrap it "
            "(gymnasium.wrappers.ReshapeObservation, DtypeObservation, TransformObservation)."
        )


def _always(obs: Any) -> bool:
    return True


def _name(path: str) -> str:
    return f"observation[{path!r}]" if path else "observation"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
