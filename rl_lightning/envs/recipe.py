"""How to make envs: plain, picklable data that a worker process or an evaluation can make its own envs from."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing

from rl_lightning.envs.checks import check_is_env
from rl_lightning.envs.lockstep_pool import LockstepPool
from rl_lightning.envs.pool import EnvPool, SinglePool
from rl_lightning.envs.subprocess_pool import SubprocessPool
from rl_lightning.envs.vector_pool import VectorPool
from rl_lightning.types import ConfigurationError, check_counts

Vectorization: TypeAlias = Literal["sync", "async", "vector_entry_point"]
EnvSource: TypeAlias = str | EnvSpec | gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | Callable[..., Any]

_VECTORIZATIONS = ("sync", "async", "vector_entry_point")
_UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError)
_EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "ale_py": "atari"}


@dataclass(frozen=True)
class EnvRecipe:
    """What `make` makes a pool of envs from.

    A recipe can be sent to another process, lambdas and local functions included; only a recipe of a live env cannot.

    Attributes:
        source: a gymnasium id ("CartPole-v1", "package:Name-v0"), an EnvSpec, a factory that returns an env or a vector
            env, or a live env or vector env (which `make` then wraps, and `EnvPool.close` leaves open).
        num_envs: how many envs. A vector env has its own number.
        vectorization: "sync" steps the envs one after another in this process, "async" each in a process of its own,
            "vector_entry_point" uses the id's own vectorised version.
        env_kwargs: passed to the env's constructor, or to the factory.
        wrappers: applied to each env in this order, the first innermost; callables from env to env.
        max_episode_len: in env steps; an episode that reaches it is cut off (truncated).
        num_workers: "async" only: how many processes share the envs. None: one for each.
        restart_workers: "async" only: how many processes that die, hang or raise may be replaced in all; the open
            episodes of their envs are cut off. 0: the first is an error.
        worker_timeout_s: "async" only: a process in which one step or reset of an env, or making it, takes longer has
            hung. None: it may take its time.
    """

    source: EnvSource
    num_envs: int = 1
    vectorization: Vectorization = "sync"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    wrappers: tuple[Callable[[Any], Any], ...] = ()
    max_episode_len: int | None = None
    num_workers: int | None = None
    restart_workers: int = 0
    worker_timeout_s: float | None = 300.0

    def __post_init__(self) -> None:
        if self.vectorization not in _VECTORIZATIONS:
            raise ConfigurationError(f"vectorization={self.vectorization!r}: one of {', '.join(_VECTORIZATIONS)}.")
        check_counts(num_envs=self.num_envs, max_episode_len=self.max_episode_len, num_workers=self.num_workers)
        if not (isinstance(self.restart_workers, int) and self.restart_workers >= 0):
            raise ConfigurationError(
                f"restart_workers={self.restart_workers!r}: it must be a whole number, at least 0."
            )
        if self.vectorization != "async" and (self.num_workers is not None or self.restart_workers):
            raise ConfigurationError(
                f"num_workers={self.num_workers}, restart_workers={self.restart_workers} are for "
                f'vectorization="async", and it is {self.vectorization!r}.'
            )
        if not isinstance(self.source, str | EnvSpec) and not callable(self.source):
            check_is_env(self.source)
        if self._is_live:
            self._check_live()

    def make(self) -> EnvPool:
        """New envs, ready for `reset`; of a live env, that very env.

        Raises:
            ConfigurationError: no such id, a missing package, or settings that do not go together.
        """
        if isinstance(self.source, VectorEnv):
            return VectorPool(self.source, max_episode_len=self.max_episode_len, owns_env=False)
        if isinstance(self.source, gym.Env):
            return SinglePool(self.source, max_episode_len=self.max_episode_len, owns_env=False)
        if self.vectorization == "vector_entry_point":
            return VectorPool(self._make_entry_point())
        first = _make_env(self)
        if isinstance(first, VectorEnv):
            return self._adopt(first)
        if self.vectorization == "async":
            first.close()
            return self._make_async(first)
        if self.num_envs == 1:
            return SinglePool(first, max_episode_len=self.max_episode_len)
        parts: list[Callable[[], gym.Env[Any, Any]]] = [lambda: first]
        parts += [functools.partial(_make_env, self)] * (self.num_envs - 1)
        envs = SyncVectorEnv(parts, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        return LockstepPool(envs, max_episode_len=self.max_episode_len)

    def replace(self, **changes: Any) -> EnvRecipe:
        """The same recipe with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def evaluation(self) -> EnvRecipe:
        """The recipe of envs that evaluation can have for itself: this one, or for a live env, one like it.

        Raises:
            ConfigurationError: nothing tells how the live env was made.
        """
        if not self._is_live:
            return self
        source = cast(gym.Env[Any, Any] | VectorEnv[Any, Any, Any], self.source)
        spec = source.spec
        if spec is None or any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
            raise ConfigurationError(
                f"evaluation needs an env of its own, and {source} does not say how it was made. Give a gymnasium id, "
                "a factory (a function that returns an env) or an EnvModule instead of the env itself."
            )
        if isinstance(source, VectorEnv):
            return EnvRecipe(functools.partial(gym.make_vec, spec), max_episode_len=self.max_episode_len)
        return EnvRecipe(spec, max_episode_len=self.max_episode_len)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._is_live:
            raise ConfigurationError(
                f"{self.source} cannot be sent to another process: an env that survives pickling may come back freshly "
                "reset. Give a gymnasium id, a factory or an EnvModule instead of the env itself."
            )
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        try:
            # Unlike pickle, this takes lambdas and local functions, and gymnasium depends on it anyway.
            return _unpickle, (cloudpickle.dumps(fields), _registered_here())
        except _UNPICKLABLE as error:
            raise ConfigurationError(
                f"{self.source} cannot be sent to another process ({error}). Give a gymnasium id, or a function that "
                "makes the env from scratch and holds no open files, locks, renderers or the like."
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> EnvRecipe:
        # Nothing in it changes, and a live env must stay the one that it is.
        return self

    @property
    def _is_live(self) -> bool:
        return isinstance(self.source, gym.Env | VectorEnv)

    def _check_live(self) -> None:
        own = self.source.num_envs if isinstance(self.source, VectorEnv) else 1
        if self.num_envs not in (1, own) or self.vectorization != "sync" or self.env_kwargs or self.wrappers:
            raise ConfigurationError(
                f"{self.source} is one live env: num_envs, vectorization, env_kwargs and wrappers need a gymnasium id "
                "or a factory to make envs from."
            )
        object.__setattr__(self, "num_envs", own)

    def _adopt(self, env: VectorEnv[Any, Any, Any]) -> EnvPool:
        if self.num_envs not in (1, env.num_envs) or self.vectorization != "sync" or self.wrappers:
            env.close()
            raise ConfigurationError(
                f"the factory returned {env}, a vector env of {env.num_envs} envs: num_envs={self.num_envs}, "
                f"vectorization={self.vectorization!r} and wrappers need a factory of one env. Leave them out."
            )
        return VectorPool(env, max_episode_len=self.max_episode_len)

    def _make_async(self, like: gym.Env[Any, Any]) -> EnvPool:
        return SubprocessPool(
            functools.partial(_make_env, self),
            self.num_envs,
            observation_space=like.observation_space,
            action_space=like.action_space,
            max_episode_len=self.max_episode_len,
            num_workers=self.num_workers,
            restart_workers=self.restart_workers,
            timeout_s=self.worker_timeout_s,
        )

    def _make_entry_point(self) -> VectorEnv[Any, Any, Any]:
        if not isinstance(self.source, str | EnvSpec) or self.wrappers:
            raise ConfigurationError(
                'vectorization="vector_entry_point" needs a gymnasium id and no wrappers: it makes all envs as one.'
            )
        kwargs = dict(self.env_kwargs)
        spec = self.source if isinstance(self.source, EnvSpec) else _from_registry(_spec_of, self.source)
        if spec.vector_entry_point is None:
            raise ConfigurationError(f'{spec.id} has no vectorised version. Use vectorization="sync" or "async".')
        if self.max_episode_len is not None:
            kwargs["max_episode_steps"] = min(self.max_episode_len, spec.max_episode_steps or self.max_episode_len)
        mode = gym.VectorizeMode.VECTOR_ENTRY_POINT
        made = _from_registry(gym.make_vec, self.source, num_envs=self.num_envs, vectorization_mode=mode, **kwargs)
        return cast(VectorEnv[Any, Any, Any], made)


def as_recipe(env: Any) -> EnvRecipe:
    """The recipe of anything that an env can be given as: a gymnasium id, an EnvSpec, an env, a vector env, a factory
    of either, or a recipe.

    Raises:
        ConfigurationError: none of these, or an env of the old `gym` package.
    """
    return env if isinstance(env, EnvRecipe) else EnvRecipe(env)


def _make_env(recipe: EnvRecipe) -> Any:
    """One env, wrapped; or the vector env that a factory returned."""
    source = recipe.source
    env: Any
    if isinstance(source, str | EnvSpec):
        # Pools check every step themselves; gymnasium's checker would do it again, slower.
        env = _without_order_check(_from_registry(gym.make, source, disable_env_checker=True, **recipe.env_kwargs))
    else:
        assert callable(source)
        env = source(**recipe.env_kwargs)
        check_is_env(env)
    if isinstance(env, VectorEnv):
        return env
    for wrap in recipe.wrappers:
        env = wrap(env)
        check_is_env(env)
    return env


def _without_order_check(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The env without gymnasium's check that `reset` comes before `step`, which costs time: pools see to that."""
    outer, layer = None, env
    while isinstance(layer, gym.Wrapper):
        if type(layer) is not OrderEnforcing:
            outer = layer
        elif outer is None:
            env = layer.env
        else:
            outer.env = layer.env
        layer = layer.env
    return env


def _unpickle(fields: bytes, registered: dict[str, bytes]) -> EnvRecipe:
    contents = cloudpickle.loads(fields)
    for env_id in registered.keys() - gym.registry.keys():
        gym.registry[env_id] = cloudpickle.loads(registered[env_id])
    return EnvRecipe(**contents)


def _registered_here() -> dict[str, bytes]:
    """The ids that are not gymnasium's own, pickled: a worker does not run what has registered them here."""
    specs: dict[str, bytes] = {}
    for env_id, spec in gym.registry.items():
        entry = spec.entry_point
        if not (entry if isinstance(entry, str) else getattr(entry, "__module__", "")).startswith("gymnasium."):
            with contextlib.suppress(*_UNPICKLABLE):  # whoever makes one of these there is told that it is unknown
                specs[env_id] = cloudpickle.dumps(spec)
    return specs


def _from_registry(function: Callable[..., Any], source: str | EnvSpec, **kwargs: Any) -> Any:
    """Call one of gymnasium's functions that look an id up, and say the cure where it fails."""
    # Atari's package registers its ids only once it is imported.
    name = f"ale_py:{source}" if isinstance(source, str) and source.startswith("ALE/") else source
    try:
        return function(name, **kwargs)
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise ConfigurationError(f"{error} {_nearest(str(source))}") from error
    except gym.error.DependencyNotInstalled as error:
        raise _missing_package(source, error) from error
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS and "registration via importing a module failed" not in str(error):
            raise
        raise _missing_package(source, error) from error


def _spec_of(name: str) -> EnvSpec:
    """`gymnasium.spec`, which does not take the "package:" of an id."""
    package, _, env_id = name.rpartition(":")
    if package:
        importlib.import_module(package)
    return gym.spec(env_id)


def _nearest(env_id: str) -> str:
    name = env_id.rpartition(":")[2]
    by_lower = {known.lower(): known for known in gym.registry}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if not near:
        return "Known ids: gymnasium.pprint_registry(). If a package of yours registers it, write 'package:Name-v0'."
    return f"Nearest ids: {', '.join(by_lower[match] for match in near)}."


def _missing_package(source: str | EnvSpec, error: Exception) -> ConfigurationError:
    env_id = source if isinstance(source, str) else source.id
    text = str(error).lower()
    extra = next((extra for package, extra in _EXTRAS.items() if package in text), None)
    cure = f'pip install "rl-lightning[{extra}]"' if extra else "install the package that the message names"
    return ConfigurationError(f"{env_id} needs a package that is not installed: {cure}. ({error})")
