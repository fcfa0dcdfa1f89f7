"""The words every layer shares: what one step is, what a batch is, and what can go wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = NDArray[Any]
ObsArray: TypeAlias = Array | dict[str, Array]
"""Observations of B envs: one array [B, *O], or for Dict and Tuple spaces one array per leaf, keyed by its path."""
ObsTensor: TypeAlias = Tensor | dict[str, Tensor]
Numbers: TypeAlias = Any
"""Tensors, or arrays where all that belong together are arrays: what is done to them is written alike."""
Extras: TypeAlias = dict[str, Tensor]
"""What an agent wants remembered beside its action, each [B, ...]."""
Batch: TypeAlias = dict[str, Any]
"""Field name -> tensor [N, ...]; `obs` and `next_obs` are a dict of tensors where the space is a Dict or a Tuple."""
Metrics: TypeAlias = Mapping[str, Tensor | float]
StepFn: TypeAlias = Callable[[str, Tensor], None]
"""`step(optimizer_name, loss)`: the agent says what to minimise and in which order, the caller says how."""


class GradientStep(ABC):
    """A `StepFn` that an agent may also give the gradients of a loss to, where it knows them."""

    @abstractmethod
    def __call__(self, name: str, loss: Tensor) -> None:
        """Minimise `loss` with the named optimizer."""

    @abstractmethod
    def takes_gradients(self, parameters: Sequence[Tensor]) -> bool:
        """Whether `with_gradients` may be called in place of this: nobody asks to see a backward pass."""

    @abstractmethod
    def with_gradients(
        self, name: str, loss: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> None:
        """As a call with a loss whose gradients are known, without a backward pass.

        Args:
            loss: its value.
            parameters: what it depends on.
            gradients: by each of them; whoever gave them uses them no more.
        """


class Transition(NamedTuple):
    """One step of B envs, on the host.

    Attributes:
        obs: [B, *O] the observations that were acted on.
        action: [B, *A] as the agent gave them (integers count from 0, whatever the space's own start).
        reward: [B] float32, in the env's own units; neither clipped nor scaled.
        next_obs: [B, *O] what followed. At an episode's end the true last observation, never the first of the next.
        terminated: [B] bool, the env ended the episode: nothing follows, nothing is bootstrapped.
        truncated: [B] bool, the episode was cut off (time limit): the value of `next_obs` still counts.
        extras: what `Agent.act` returned beside the action, each [B, ...].
        valid: [B] bool, False where a vector env only reset itself (autoreset on the next step) and nothing was
            experienced; such rows reach no memory. None where all are valid.
    """

    obs: ObsArray
    action: Array
    reward: NDArray[np.float32]
    next_obs: ObsArray
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    extras: dict[str, Array]
    valid: NDArray[np.bool_] | None = None


class ConfigurationError(ValueError):
    """Arguments that cannot work together, found before any training."""


class ShapeError(ValueError):
    """Arrays or tensors whose shapes do not fit each other."""


class EnvError(RuntimeError):
    """An env that breaks its contract: wrong API, shape or dtype, NaN, an action outside its space."""


class NonFiniteError(ArithmeticError):
    """A NaN or an infinity where training cannot go on: a loss, a reward, an observation."""


class WorkerError(RuntimeError):
    """A worker process failed; the message holds its number, pid, env step and traceback, or how it ended.

    Attributes:
        number: which worker; from 0.
        pid: its process id.
        exit_code: of the process where it died, negative for a signal. None: it raised, or hung and was killed.
    """

    def __init__(
        self, message: str, *, number: int | None = None, pid: int | None = None, exit_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.number, self.pid, self.exit_code = number, pid, exit_code


def check_counts(**counts: Any) -> None:
    """Whether each is a whole number, at least 1, or None.

    Raises:
        ConfigurationError: one is not; it is named.
    """
    for name, value in counts.items():
        if value is not None and not (isinstance(value, int | np.integer) and value >= 1):
            raise ConfigurationError(f"{name}={value!r}: it must be a whole number, at least 1.")


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `function` to an array or to every array of a dict of arrays."""
    if isinstance(tree, dict):
        return {key: tree_map(function, leaf) for key, leaf in tree.items()}
    return function(tree)


def plain_state(value: Any) -> Any:
    """A random generator's state, dicts of arrays, as dicts of lists, which any generator takes for them."""
    if isinstance(value, dict):
        return {key: plain_state(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
