"""The state of envs as tensors and plain data, put back in place: nothing is pickled, and nothing that a file names is
imported or called.

An env's state is what its attributes hold, and those of the objects within it: numbers, arrays, random generators. They
go back into an env that was made anew, to the same places; what else lies there (models, windows, functions) is as its
constructor made it. Simulators that keep their state where Python does not see it have adapters: MuJoCo and ALE; so has
an env with the methods of `StatefulEnv`. Whether that is all there is to an env, `why_not_exact` tries out.
"""

from __future__ import annotations

import enum
import functools
import random
import types
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv

from rl_lightning.envs.atari_state import load_emulator, save_emulator
from rl_lightning.types import ConfigurationError, plain_state

Saved: TypeAlias = Any
"""A tuple of what kind it is and its parts; or None, a truth value, a number, or a text, as they are."""

_PLAIN = (bool, int, float, str, bytes)
_NEVER = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
_LEFT_OUT = frozenset({"spec", "_cached_spec", "metadata", "_metadata", "mujoco_renderer", "viewer", "screen", "clock"})
"""Attributes that say how an env was made, or what it is shown with."""
_GENERATORS: dict[str, Callable[[], Any]] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
_HIDDEN_STATE = frozenset({"Box2D", "multiprocessing", "mujoco", "pygame"})
"""Packages whose objects keep their state where Python does not see it."""
_MOST_LEVELS = 60


@runtime_checkable
class StatefulEnv(Protocol):
    """An env that saves its state itself."""

    def state_dict(self) -> Any:
        """All of it, its random generator included, as numbers, texts, arrays, and containers of those."""

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state_dict` was called, in an env that was made as that one was."""


def capture(env: Any) -> Saved:
    """The state of an env or vector env, between two steps."""
    return _Capture().save(env, ())


def restore(env: Any, saved: Saved) -> None:
    """Put back what `capture` gave, in an env that was made as that one was.

    Raises:
        ConfigurationError: it was made otherwise; the message says where they differ.
    """
    _Restore().load(saved, env, ())


def capture_attributes(owner: Any, names: tuple[str, ...]) -> Saved:
    """The values of some attributes."""
    return _Capture().save({name: getattr(owner, name) for name in names}, ())


def restore_attributes(owner: Any, names: tuple[str, ...], saved: Saved) -> None:
    """Put back what `capture_attributes` gave."""
    values = _Restore().load(saved, {}, ())
    for name in names:
        setattr(owner, name, values[name])


class _Capture:
    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, tuple[str, ...]]] = {}  # with the object, lest its number is given anew

    def save(self, value: Any, path: tuple[str, ...]) -> Saved:
        if type(value) is bytes:  # as they are, none at all would come back from a file as a call
            return ("bytes", torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0).byte())
        if value is None or type(value) in _PLAIN:
            return value
        if isinstance(value, np.generic) and not isinstance(value, np.void):
            return ("scalar", *_bytes_of(np.asarray(value)))
        if isinstance(value, enum.Enum):
            return ("enum", value.name)
        if isinstance(value, _NEVER) or len(path) > _MOST_LEVELS:
            return ("as_made",)
        if id(value) in self._seen:
            return ("same_as", list(self._seen[id(value)][1]))
        self._seen[id(value)] = value, path
        return self._contents(value, path)

    def _contents(self, value: Any, path: tuple[str, ...]) -> Saved:
        if isinstance(value, np.ndarray):
            return ("array", *_bytes_of(value)) if value.dtype.kind in "biufcSU" else ("as_made",)
        if isinstance(value, torch.Tensor):
            return ("tensor", value.detach().cpu().clone())
        if isinstance(value, np.random.Generator):
            return ("generator", plain_state(value.bit_generator.state))
        if isinstance(value, np.random.RandomState):
            return ("random_state", plain_state(value.get_state(legacy=False)))
        if isinstance(value, random.Random):
            return ("python_random", value.getstate())
        if isinstance(value, list | tuple | deque):
            kind = "deque" if isinstance(value, deque) else "list" if isinstance(value, list) else "tuple"
            items = [self.save(item, (*path, str(i))) for i, item in enumerate(value)]
            return (kind, items, value.maxlen) if isinstance(value, deque) else (kind, items)
        if isinstance(value, set | frozenset):
            if all(type(item) in _PLAIN for item in value):
                return ("set", sorted(value, key=repr), isinstance(value, frozenset))
            return ("as_made",)
        if isinstance(value, dict):
            keys = [key for key in value if key is None or type(key) in _PLAIN]
            return ("dict", [[key, self.save(value[key], (*path, str(key)))] for key in keys])
        return self._object(value, path)

    def _object(self, value: Any, path: tuple[str, ...]) -> Saved:
        if isinstance(value, AsyncVectorEnv):
            raise ConfigurationError(
                f"{value} has its envs in processes that cannot be asked for their state. Use GymEnvModule("
                "vectorization='async') in its place, or a SyncVectorEnv."
            )
        if str(getattr(type(value), "__module__", "Box2D")).split(".")[0] in _HIDDEN_STATE:
            return ("as_made",)
        parts: dict[str, Saved] = {}
        for name, (save, _) in _ADAPTERS.items():
            if (found := save(value)) is not None:
                parts[name] = self.save(found, (*path, name))
                if name == "own":
                    return ("object", _class_name(value), [], parts)
        attributes = _attributes(value)
        if not attributes and not parts:
            return ("as_made",)
        saved = [[name, self.save(item, (*path, name))] for name, item in attributes.items()]
        return ("object", _class_name(value), [pair for pair in saved if pair[1] != ("as_made",)], parts)


class _Restore:
    def __init__(self) -> None:
        self._done: dict[tuple[str, ...], Any] = {}
        self._used: dict[int, Any] = {}  # what is already in some place, and may be in no other one by accident

    def load(self, saved: Saved, now: Any, path: tuple[str, ...]) -> Any:
        """What belongs in the place of `now`: `now` itself, changed, where it can be."""
        if not isinstance(saved, tuple):
            return saved
        kind, *parts = saved
        if kind == "same_as":
            return self._done.get(tuple(parts[0]), now)
        load = getattr(self, f"_{kind}", None) if kind in _KINDS else None
        if load is None:
            raise ConfigurationError(f"the env's state at {_name(path)} is of a kind {kind!r} that is not known here.")
        if id(now) in self._used and kind in _HELD:
            now = None
        try:
            value = load(now, path, *parts)
        except ConfigurationError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, SystemError) as error:
            raise ConfigurationError(f"the env's state does not fit at {_name(path)}: {error}.") from error
        self._done[path] = value
        if kind in _HELD:
            self._used[id(value)] = value
        return value

    def _as_made(self, now: Any, path: tuple[str, ...]) -> Any:
        return now

    def _scalar(self, now: Any, path: tuple[str, ...], dtype: str, shape: list[int], data: torch.Tensor) -> Any:
        return _array(dtype, shape, data)[()]

    def _bytes(self, now: Any, path: tuple[str, ...], data: torch.Tensor) -> Any:
        return data.numpy().tobytes()

    def _enum(self, now: Any, path: tuple[str, ...], name: str) -> Any:
        return type(now)[name]

    def _array(self, now: Any, path: tuple[str, ...], dtype: str, shape: list[int], data: torch.Tensor) -> Any:
        array = _array(dtype, shape, data)
        if type(now) is np.ndarray and (now.dtype, now.shape) == (array.dtype, array.shape) and now.flags.writeable:
            now[...] = array  # others may hold it too
            return now
        return array

    def _tensor(self, now: Any, path: tuple[str, ...], tensor: torch.Tensor) -> Any:
        return tensor.to(now.device) if isinstance(now, torch.Tensor) else tensor

    def _generator(self, now: Any, path: tuple[str, ...], state: dict[str, Any]) -> Any:
        if not isinstance(now, np.random.Generator) or type(now.bit_generator).__name__ != state["bit_generator"]:
            now = np.random.Generator(_GENERATORS[state["bit_generator"]]())
        now.bit_generator.state = state
        return now

    def _random_state(self, now: Any, path: tuple[str, ...], state: dict[str, Any]) -> Any:
        now = now if isinstance(now, np.random.RandomState) else np.random.RandomState()
        now.set_state(state)
        return now

    def _python_random(self, now: Any, path: tuple[str, ...], state: Any) -> Any:
        now = now if isinstance(now, random.Random) else random.Random()
        version, numbers, gauss = state
        now.setstate((version, tuple(numbers), gauss))
        return now

    def _items(self, now: Any, path: tuple[str, ...], items: list[Saved]) -> list[Any]:
        old = list(now) if isinstance(now, list | tuple | deque) else []
        old += [None] * (len(items) - len(old))
        return [self.load(item, old[i], (*path, str(i))) for i, item in enumerate(items)]

    def _list(self, now: Any, path: tuple[str, ...], items: list[Saved]) -> Any:
        values = self._items(now, path, items)
        if not isinstance(now, list):
            return values
        now[:] = values
        return now

    def _tuple(self, now: Any, path: tuple[str, ...], items: list[Saved]) -> Any:
        values = self._items(now, path, items)
        if isinstance(now, tuple) and type(now) is not tuple:  # a named one
            return tuple.__new__(type(now), values)
        return tuple(values)

    def _deque(self, now: Any, path: tuple[str, ...], items: list[Saved], maxlen: int | None) -> Any:
        values = self._items(now, path, items)
        if not isinstance(now, deque) or now.maxlen != maxlen:
            return deque(values, maxlen)
        now.clear()
        now.extend(values)
        return now

    def _set(self, now: Any, path: tuple[str, ...], items: list[Any], is_frozen: bool) -> Any:
        return frozenset(items) if is_frozen else set(items)

    def _dict(self, now: Any, path: tuple[str, ...], pairs: list[list[Any]]) -> Any:
        old = dict(now) if isinstance(now, dict) else {}
        values = {key: self.load(item, old.get(key), (*path, str(key))) for key, item in pairs}
        if not isinstance(now, dict):
            return values
        for key in [key for key in now if key not in values and (key is None or type(key) in _PLAIN)]:
            del now[key]
        now.update(values)
        return now

    def _object(
        self, now: Any, path: tuple[str, ...], name: str, attributes: list[list[Any]], parts: dict[str, Saved]
    ) -> Any:
        if _class_name(now) != name:
            raise ConfigurationError(
                f"the env's state at {_name(path)} is of {name}, and this env has {_class_name(now)} there. Make the "
                "env as the one of the checkpoint was made."
            )
        self._done[path] = self._used[id(now)] = now
        known = vars(now) if hasattr(now, "__dict__") else {}
        for key, item in attributes:
            if not isinstance(key, str) or key.startswith("__"):
                raise ConfigurationError(f"the env's state at {_name(path)} has no attribute {key!r}.")
            before = known.get(key, getattr(now, key, None) if key not in known else None)
            value = self.load(item, before, (*path, key))
            if value is not before or key not in known:
                object.__setattr__(now, key, value)
        for kind, (_, load) in _ADAPTERS.items():
            if kind in parts:
                load(now, self.load(parts[kind], None, (*path, kind)))
        return now


_KINDS = frozenset(
    [
        "as_made",
        "scalar",
        "bytes",
        "enum",
        "array",
        "tensor",
        "generator",
        "random_state",
        "python_random",
        "list",
        "tuple",
        "deque",
        "set",
        "dict",
        "object",
    ]
)


_HELD = frozenset({"array", "generator", "random_state", "python_random", "list", "deque", "dict", "object"})
"""Kinds that are changed in place."""


def _attributes(value: Any) -> dict[str, Any]:
    if isinstance(value, gym.Space):  # how it is made is not state, but what it draws from is
        names = ("_np_random", "spaces", "feature_space", "node_space", "edge_space")
        return {name: vars(value)[name] for name in names if name in vars(value)}
    attributes = dict(vars(value)) if hasattr(value, "__dict__") else {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                attributes[name] = getattr(value, name)
    return {name: item for name, item in attributes.items() if name not in _LEFT_OUT}


def _bytes_of(array: Any) -> tuple[str, list[int], torch.Tensor]:
    data = np.frombuffer(array.tobytes(), np.uint8).copy()
    return array.dtype.str, list(array.shape), torch.from_numpy(data)


def _array(dtype: str, shape: list[int], data: torch.Tensor) -> Any:
    if np.dtype(dtype).kind not in "biufcSU":
        raise ValueError(f"arrays of {dtype!r} are not saved")
    return np.frombuffer(data.numpy().tobytes(), np.dtype(dtype)).reshape(shape).copy()


def _class_name(value: Any) -> str:
    return f"{getattr(type(value), '__module__', '')}.{type(value).__qualname__}"


def _name(path: tuple[str, ...]) -> str:
    return ".".join(("env", *path))


# ---- simulators, and envs that know best themselves ------------------------------------------------------------------


def _save_own(env: Any) -> Any:
    return env.state_dict() if isinstance(env, gym.Env) and isinstance(env, StatefulEnv) else None


def _load_own(env: Any, state: Any) -> None:
    env.load_state_dict(state)


def _save_ale(env: Any) -> Any:
    ale: Any = vars(env).get("ale") if isinstance(env, gym.Env) else None
    if not hasattr(ale, "cloneState"):
        return None
    if getattr(env, "continuous", False) and ale.getFloat("repeat_action_probability") > 0.0:
        raise ConfigurationError(
            f"{env} repeats continuous actions, and does not tell which. Use discrete ones, or "
            "repeat_action_probability=0.0."
        )
    return save_emulator(ale)


def _load_ale(env: Any, state: dict[str, Any]) -> None:
    load_emulator(env.ale, state)


def _save_mujoco(env: Any) -> Any:
    is_one = issubclass(type(env), gym.Env) and {"model", "data"} <= vars(env).keys()
    if not is_one or str(type(vars(env)["data"]).__module__).split(".")[0] != "mujoco":
        return None
    import mujoco

    state = np.empty(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(env.model, env.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return {"state": state, **{f"data.{name}": array.copy() for name, array in _mujoco_arrays(env.data).items()}}


def _load_mujoco(env: Any, saved: dict[str, Any]) -> None:
    import mujoco

    for _ in range(2):  # what follows from the state first, and what lags behind it, as the sensors of a step, last
        mujoco.mj_setState(env.model, env.data, saved["state"], mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(env.model, env.data)
    for name, array in _mujoco_arrays(env.data).items():
        if f"data.{name}" in saved and saved[f"data.{name}"].shape == array.shape:
            array[...] = saved[f"data.{name}"]
    mujoco.mj_setState(env.model, env.data, saved["state"], mujoco.mjtState.mjSTATE_INTEGRATION)


def _mujoco_arrays(data: Any) -> dict[str, Any]:
    """The arrays of MuJoCo's data whose sizes do not depend on the contacts of the moment."""
    found = {}
    for name in dir(data):
        if not name.startswith(("_", "efc_", "solver", "timer", "warning", "iefc", "iM_", "contact")):
            array = getattr(data, name)
            if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.flags.writeable:
                found[name] = array
    return found


_ADAPTERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    "own": (_save_own, _load_own),
    "ale": (_save_ale, _load_ale),
    "mujoco": (_save_mujoco, _load_mujoco),
}
