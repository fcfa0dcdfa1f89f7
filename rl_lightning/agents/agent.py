"""The base of every agent: a plain module that acts and learns, and knows nothing of Lightning."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from gymnasium import Space
from torch import Tensor, nn
from torch.optim import Optimizer

from rl_lightning.memory.memory import Memory
from rl_lightning.types import Array, Batch, ConfigurationError, Extras, Metrics, ObsArray, ObsTensor, StepFn


class Agent(nn.Module, ABC):
    """Networks, how to act, and how to learn from one batch.

    The loop it lives in::

        agent.build(observation_space, action_space)            # once, before anything else
        memory = agent.make_memory(num_envs)
        while True:
            action, extras = agent.act(obs, explore=True)       # no gradients
            memory.add(...)
            for batch in memory.batches():
                agent.update(batch, step)

    A subclass names its constructor's arguments as plain data (numbers, strings, lists), because they are saved in
    every checkpoint, and `RLModule.load_from_checkpoint` builds the agent anew from them.
    """

    registry: ClassVar[dict[str, type[Agent]]] = {}
    """Agent classes by name: a checkpoint names one of these, and nothing that it names is ever imported."""

    max_grad_norm: float | None = None
    """The caller of `update` clips the gradient norm of each optimizer's parameters to this before it steps; None: no
    limit. `Trainer(gradient_clip_val=...)` overrides it."""

    learns_by_itself: ClassVar[bool] = False
    """Whether it learns where it is told what happened, with optimizers of its own, and `update` is never called."""

    why_not_compiled: ClassVar[str | None] = None
    """What keeps its learning step from being one compiled graph, for the warning that says so; None: nothing."""
    async_modes: Collection[str] = ("shared",)
    """The modes of `AsyncStrategy` that train it: "actor_learner" needs an agent that learns from what an older policy
    did."""

    built: bool = False
    """Whether `build` has been called."""

    init_args: dict[str, Any]
    observation_space: Space[Any]
    action_space: Space[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Agent.registry[cls.__name__] = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> Agent:
        self = super().__new__(cls)
        # Partial, for copy and pickle call this with no arguments; `__init__` itself complains about missing ones.
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        object.__setattr__(self, "init_args", dict(list(bound.arguments.items())[1:]))
        return self

    def __init__(self) -> None:
        super().__init__()
        self.tunables: tuple[str, ...] = ()

    @abstractmethod
    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the networks for one env's spaces. Called once, before anything else.

        Raises:
            ConfigurationError: the agent cannot serve one of the spaces; both are named.
        """

    @abstractmethod
    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        """Choose an action for each of B envs.

        Args:
            obs: [B, *O], dtype as the space has it; a dict of such tensors for Dict and Tuple spaces.
            explore: True in training; False asks for the best action known.
        Returns:
            action [B, *A] as the env takes it (integers count from 0), and what to remember beside it, each [B, ...].
        """

    def act_on_host(self, obs: ObsArray, *, explore: bool) -> tuple[Array, dict[str, Array]] | None:
        """`act` on the host, from arrays to arrays, where an agent can do that quicker: with a small network, most of
        what acting costs is torch's overhead.

        Returns:
            as `act`; None where it cannot, and `act` is to be asked. A subclass that overrides `act` alone is never
            asked for this.
        """
        return None

    @abstractmethod
    def update(self, batch: Batch, step: StepFn) -> Metrics:
        """One learning step: compute each loss and hand it to `step(optimizer_name, loss)`, in order.

        Returns:
            what to log, as detached tensors (no `.item()`: they are reduced only when they are logged).
        """

    @abstractmethod
    def configure_optimizers(self) -> dict[str, Optimizer]:
        """The optimizers by the names that `update` steps."""

    @abstractmethod
    def make_memory(self, num_envs: int) -> Memory:
        """The default memory, with the agent's own update schedule."""

    def schedules(self) -> dict[str, tuple[float, float, int]]:
        """Values that change as training goes on: name -> (start, stop, env steps from start to stop).

        The Trainer adds a `LinearInterpolation` for each, unless the user gave one for the same name.
        """
        return {}

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """A context to be evaluated in; every module's training flag is afterwards as it was, also after an error."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def run_state(self) -> dict[str, Tensor]:
        """What belongs to a run and not to what was learned, and is in no `state_dict`: by module and name.

        A module names such tensors in its attribute `run_buffers`.
        """
        return {
            f"{path}.{name}": getattr(module, name).clone()
            for path, module in self.named_modules()
            for name in getattr(module, "run_buffers", ())
        }

    def load_run_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `run_state` gave."""
        modules = dict(self.named_modules())
        for key, tensor in state.items():
            path, _, name = key.rpartition(".")
            if path in modules and name in getattr(modules[path], "run_buffers", ()):
                setattr(modules[path], name, tensor.clone())

    def join_workers(self, number: int, num_workers: int) -> None:
        """Called once in worker `number` of asynchronous training: time to explore otherwise than the other workers."""

    def add_tunable(self, name: str, value: float) -> None:
        """Register a number that callbacks may change while training runs, in every process that shares the agent."""
        self.register_buffer(name, torch.tensor(float(value)))
        self.tunables += (name,)

    def set_value(self, name: str, value: float) -> None:
        """Change a tunable in place.

        Raises:
            ConfigurationError: the agent has no such value; the message lists those it has.
        """
        if name not in self.tunables:
            known = ", ".join([*self.tunables, "learning_rate"])
            raise ConfigurationError(f"{type(self).__name__} has no such value {name!r}. It has: {known}.")
        getattr(self, name).fill_(value)

    def unsupported(self, kind: str) -> ConfigurationError:
        """The error for a space that this agent cannot serve; `kind` is what it can."""
        return ConfigurationError(
            f"{type(self).__name__} needs {kind}. The env has observation space {self.observation_space} and action "
            f"space {self.action_space}. Choose another agent, or wrap the env."
        )
