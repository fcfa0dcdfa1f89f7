"""What every env is held to, and the errors that say how to cure it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from rl_lightning.types import Array, ConfigurationError, EnvError, NonFiniteError

FLOAT32_MAX = float(np.finfo(np.float32).max)
_SMALL = 64


def all_finite(array: Array) -> bool:
    """Whether no value is NaN or infinite; quick for the few numbers of a typical step, and never a numpy warning."""
    if array.size > _SMALL:
        return bool(np.isfinite(array).all())
    # Summing Python floats costs a third of numpy's reduction here, and finite float32 cannot overflow a float64 sum.
    total: float = sum(array.ravel().tolist())
    return total - total == 0.0


def non_finite(field: str, array: Array, step: int) -> NonFiniteError:
    """The error for the first number of `array` [B, ...] that float32 cannot hold, at the pool's `step` (0: reset)."""
    env, *inner = (int(part) for part in np.argwhere(~(np.abs(array) <= FLOAT32_MAX))[0])
    value = array[(env, *inner)]
    name = f"{field}[{', '.join(str(part) for part in inner)}]" if inner else field
    return NonFiniteError(
        f"env {env} gave {name} = {value} at step {step:_} of this pool. Fix the env, or replace the value in a "
        "wrapper (gymnasium.wrappers.TransformObservation, TransformReward)."
    )


def check_is_env(env: Any) -> None:
    """Refuse what is not a gymnasium env or vector env.

    Raises:
        ConfigurationError: an env of the old `gym` package, or no env at all.
    """
    if isinstance(env, gym.Env | VectorEnv):
        return
    kind = type(env)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if any(base.__module__.partition(".")[0] == "gym" for base in kind.__mro__):
        raise ConfigurationError(
            f"{name} is an env of the old `gym` package. Port it to gymnasium (reset returns (obs, info), step returns "
            "five values), or wrap it with shimmy's GymV21CompatibilityV0 or GymV26CompatibilityV0."
        )
    raise ConfigurationError(f"{name} is no env: it must inherit from gymnasium.Env or gymnasium.vector.VectorEnv.")


def first_result(env: gym.Env[Any, Any], seed: int | None, options: dict[str, Any] | None = None) -> Any:
    """What `reset` of one env returned: an observation and an info dict.

    Raises:
        EnvError: the env speaks the old gym API. Whatever else the env raises comes through unchanged.
    """
    try:
        result = env.reset(seed=seed, options=options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error) and "reset" in str(error):
            raise EnvError(f"the env has no reset(*, seed=None, options=None): {error}. {_OLD_API}") from error
        raise
    return check_reset(result)


def check_reset(result: Any) -> Any:
    """Return `result` of a `reset` if it is a pair of an observation and an info dict, else raise EnvError."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        return result
    raise EnvError(f"reset() returned {_describe(result)}, not a pair (observation, info dict). {_OLD_API}")


def bad_step(result: Any) -> EnvError:
    """The error for a `step` that did not return five values."""
    return EnvError(
        f"step() returned {_describe(result)}, not (observation, reward, terminated, truncated, info). {_OLD_API}"
    )


def bad_reward(reward: Any) -> EnvError:
    """The error for a reward that is no number."""
    return EnvError(f"reward {reward!r} is not a number: `step` must return one as its second value.")


def as_rewards(rewards: list[Any], step: int) -> NDArray[np.float32]:
    """The rewards of B envs at the pool's `step`, [B] float32.

    Raises:
        EnvError: one is not a number.
        NonFiniteError: one is NaN, or nothing that float32 can hold.
    """
    try:
        for reward in rewards:
            if not -FLOAT32_MAX <= reward <= FLOAT32_MAX:
                raise non_finite("reward", np.array(rewards, np.float64), step)
        return np.array(rewards, np.float32)
    except (TypeError, ValueError):
        raise EnvError(f"rewards {rewards!r} are not numbers: `step` must return one as its second value.") from None


_OLD_API = "This is the old gym API: port the env to gymnasium, or wrap it with shimmy."


def _describe(result: Any) -> str:
    if isinstance(result, tuple):
        return f"a tuple of {len(result)} ({', '.join(type(part).__name__ for part in result)})"
    return f"one {type(result).__name__}"
