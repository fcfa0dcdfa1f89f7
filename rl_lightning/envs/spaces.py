"""Spaces as the rest of the package sees them: flat, by path, and as plain data for a checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
from gymnasium import Space, spaces

from rl_lightning.types import Array, ConfigurationError, ObsArray


def leaf_spaces(space: Space[Any]) -> dict[str, Space[Any]]:
    """The spaces that hold the numbers, by their path.

    Returns:
        For a Dict or a Tuple, one entry a leaf in the space's own order: nested keys (a tuple's positions as strings)
        joined by ".". For any other space `{"": space}`.
    Raises:
        ConfigurationError: two leaves share one path, because a key holds a "." itself.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return {"": space}
    leaves: dict[str, Space[Any]] = {}
    for key, child in _children(space):
        for path, leaf in leaf_spaces(child).items():
            name = f"{key}.{path}" if path else key
            if name in leaves:
                raise ConfigurationError(f"two parts of {space} share the path {name!r}: rename the key with the dot.")
            leaves[name] = leaf
    return leaves


def reads_alike(space: Space[Any], other: Space[Any]) -> bool:
    """Whether who was made for observations of `space` can take those of `other`: only bounds of Boxes may differ."""
    ours, theirs = leaf_spaces(space), leaf_spaces(other)
    return ours.keys() == theirs.keys() and all(
        (leaf.shape, leaf.dtype.kind) == (theirs[path].shape, theirs[path].dtype.kind)  # type: ignore[union-attr]
        if isinstance(leaf, spaces.Box) and isinstance(theirs[path], spaces.Box)
        else leaf == theirs[path]
        for path, leaf in ours.items()
    )


def flatten_obs(space: Space[Any], obs_batch: Any) -> ObsArray:
    """Lay gymnasium's nested observation of a Dict or Tuple space flat.

    Args:
        space: the space of one env.
        obs_batch: dicts and tuples nested as the space, of arrays [B, ...] (or of one env's values: nothing is
            copied or looked at).
    Returns:
        {path: array} in the order of `leaf_spaces`; `obs_batch` itself where the space is neither Dict nor Tuple.
    Raises:
        KeyError, IndexError, TypeError: the observation is not nested as the space is.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return cast(ObsArray, obs_batch)
    flat: dict[str, Array] = {}
    _flatten_into(flat, space, obs_batch, "")
    return flat


def _flatten_into(flat: dict[str, Array], space: Space[Any], obs: Any, path: str) -> None:
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            _flatten_into(flat, child, obs[key], f"{path}.{key}" if path else str(key))
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            _flatten_into(flat, child, obs[index], f"{path}.{index}" if path else str(index))
    else:
        flat[path] = obs


def nest_obs(space: Space[Any], obs_batch: ObsArray, env: int, path: str = "") -> Any:
    """One env's observation out of a flat batch, nested as its space: what `flatten_obs` laid flat.

    Args:
        space: the space of one env, or of the part of it at `path`.
        obs_batch: [B, *O], or {path: [B, ...]} for a Dict or a Tuple.
        env: which of the B.
        path: of the part, as in `leaf_spaces`.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return (obs_batch[path] if isinstance(obs_batch, dict) else obs_batch)[env]
    prefix = f"{path}." if path else ""
    parts = {key: nest_obs(child, obs_batch, env, f"{prefix}{key}") for key, child in _children(space)}
    return parts if isinstance(space, spaces.Dict) else tuple(parts.values())


def _children(space: spaces.Dict | spaces.Tuple[Any]) -> Iterator[tuple[str, Space[Any]]]:
    if isinstance(space, spaces.Dict):
        return ((str(key), child) for key, child in space.spaces.items())
    return ((str(index), child) for index, child in enumerate(space.spaces))


def space_to_dict(space: Space[Any]) -> dict[str, Any]:
    """A space as plain data: dicts, lists, strings, numbers and None, so that no checkpoint has to name a class.

    Raises:
        ConfigurationError: not a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple.
    """
    if isinstance(space, spaces.Box):
        names = ("low", "high", "bounded_below", "bounded_above")
        bounds = {name: _compact(getattr(space, name)) for name in names}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = space.nvec.tolist(), space.start.tolist()
        return {"type": "MultiDiscrete", "nvec": nvec, "start": start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else [int(size) for size in space.n]}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[key, space_to_dict(child)] for key, child in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_dict(child) for child in space.spaces]}
    raise ConfigurationError(
        f"{space} is not supported. Use Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple, "
        "or wrap the env so that it does."
    )


def space_from_dict(data: dict[str, Any]) -> Space[Any]:
    """The space that `space_to_dict` wrote, equal to the original; its random generator is a fresh one.

    Raises:
        ConfigurationError: `data` names a type that `space_to_dict` never writes.
    """
    build = _BUILDERS.get(data.get("type", ""))
    if build is None:
        raise ConfigurationError(f"unknown space type {data.get('type')!r}. Known: {', '.join(_BUILDERS)}.")
    return build(data)


def _compact(bound: Array) -> Any:
    """One number where all are the same (an image's 0 and 255), else nested lists."""
    if bound.size and (bound == bound.flat[0]).all():
        return bound.flat[0].item()
    return bound.tolist()


def _box(data: dict[str, Any]) -> Space[Any]:
    shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])

    def full(name: str, kind: Any) -> Array:
        value = np.asarray(data[name], dtype=kind)
        return np.full(shape, value, dtype=kind) if value.ndim == 0 else value.reshape(shape)

    space = spaces.Box(full("low", dtype), full("high", dtype), shape=shape, dtype=cast(Any, dtype))
    # An integer Box stores the dtype's limit in place of an infinite bound, so the bounds alone do not tell.
    space.bounded_below = full("bounded_below", np.bool_)
    space.bounded_above = full("bounded_above", np.bool_)
    return space


def _discrete(data: dict[str, Any]) -> Space[Any]:
    return spaces.Discrete(data["n"], start=data["start"], dtype=cast(Any, np.dtype(data["dtype"])))


def _multi_discrete(data: dict[str, Any]) -> Space[Any]:
    return spaces.MultiDiscrete(data["nvec"], dtype=cast(Any, np.dtype(data["dtype"])), start=data["start"])


def _multi_binary(data: dict[str, Any]) -> Space[Any]:
    return spaces.MultiBinary(data["n"])


def _dict(data: dict[str, Any]) -> Space[Any]:
    # An OrderedDict keeps its order; a plain dict would be sorted by key.
    return spaces.Dict(OrderedDict((key, space_from_dict(child)) for key, child in data["spaces"]))


def _tuple(data: dict[str, Any]) -> Space[Any]:
    return spaces.Tuple([space_from_dict(child) for child in data["spaces"]])


_BUILDERS: dict[str, Callable[[dict[str, Any]], Space[Any]]] = {
    "Box": _box,
    "Discrete": _discrete,
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": _multi_binary,
    "Dict": _dict,
    "Tuple": _tuple,
}
