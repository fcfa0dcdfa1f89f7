"""What the processes of asynchronous training have in common: parameters, the optimizers' state, learning rates."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from rl_lightning.agents import Agent, ForeignAgent
from rl_lightning.optim import PackedOptimizer
from rl_lightning.types import ConfigurationError
from rl_lightning.workers import check_free_memory

_SHARED_MEMORY = Path("/dev/shm")
"""Where torch has tensors that are shared; containers make it small."""


@dataclass
class Parts:
    """Modules and optimizers by name, whose numbers processes share or copy from each other."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]

    @classmethod
    def of(cls, agent: Agent, optimizers: Mapping[str, Optimizer]) -> Parts:
        """Of an agent of ours all of it, and its optimizers; of one from elsewhere its `shared_attributes`.

        Raises:
            ConfigurationError: the agent from elsewhere does not say what to share.
        """
        if not isinstance(agent, ForeignAgent):
            return cls({"agent": agent}, dict(optimizers))
        named = {name: getattr(agent.foreign, name) for name in getattr(agent.foreign, "shared_attributes", ())}
        modules = {name: value for name, value in named.items() if isinstance(value, nn.Module)}
        others = {name: value for name, value in named.items() if isinstance(value, Optimizer)}
        if not modules:
            name = type(agent.foreign).__name__
            raise ConfigurationError(
                f"{name} names no module in `shared_attributes`, and what its workers learn would be lost with them. "
                "Add the names of the attributes that hold it, modules and optimizers: "
                "shared_attributes = ('model', 'optimizer')."
            )
        return cls(modules, others)

    def shared_copy(self, *, packed: bool = True) -> Parts:
        """A copy in memory that other processes can have too.

        Args:
            packed: whether the parameters of a `PackedOptimizer` lie side by side; a compiler wants them apart.
        Raises:
            ConfigurationError: there is not enough of it.
        """
        for optimizer in self.optimizers.values():
            _complete(optimizer)
        copied = copy.deepcopy(self)
        for module in copied.modules.values():
            module.cpu()
        for optimizer in copied.optimizers.values():
            _complete(optimizer)  # packed anew, for the parameters were copied one by one
            if isinstance(optimizer, PackedOptimizer) and not packed:
                optimizer.unpack()
        tensors = copied.tensors()
        if _SHARED_MEMORY.exists():
            check_free_memory(sum(tensor.nbytes for tensor in tensors), str(_SHARED_MEMORY))
        for tensor in tensors:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        return copied

    def tensors(self) -> list[Tensor]:
        """Every parameter, buffer and number of the optimizers' state, in an order that copies have too."""
        found: list[Tensor] = []
        for module in self.modules.values():
            found += [*module.parameters(), *module.buffers()]
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    state = optimizer.state[parameter]
                    found += [state[name] for name in sorted(state) if isinstance(state[name], Tensor)]
        return found

    @torch.no_grad()
    def copy_(self, other: Parts) -> None:
        """Take over the numbers of `other`, which is a copy of this."""
        torch._foreach_copy_(self.tensors(), other.tensors())

    def learning_rates(self) -> list[float]:
        """Of every group of every optimizer, in order."""
        return [float(group["lr"]) for group in self.groups()]

    def set_learning_rates(self, rates: list[float]) -> None:
        """Put in what `learning_rates` gave."""
        for group, rate in zip(self.groups(), rates, strict=True):
            group["lr"] = rate

    def groups(self) -> Iterator[dict[str, Any]]:
        """Of every optimizer, in order."""
        for optimizer in self.optimizers.values():
            yield from optimizer.param_groups


def share_acting_buffers(shared: nn.Module, own: nn.Module) -> None:
    """Let `own` have those buffers of `shared`, which it is a copy of, that acting changes (`acting_buffers`)."""
    for theirs, ours in zip(shared.modules(), own.modules(), strict=True):
        for name in getattr(theirs, "acting_buffers", ()):
            ours._buffers[name] = theirs._buffers[name]


def own_copy(shared: Parts, own: Agent | None = None) -> tuple[Agent, dict[str, list[tuple[Parameter, Parameter]]]]:
    """An agent whose trained parameters are its own, and whose every other number is the shared one.

    Args:
        shared: an agent of ours with its optimizers, in shared memory.
        own: the agent to take, built. None: a copy of the shared one.
    Returns:
        the agent, and for each optimizer the parameters that it steps, each shared one beside the agent's own.
    Raises:
        ConfigurationError: `own` has other parameters than the shared one.
    """
    agent = shared.modules["agent"]
    own = copy.deepcopy(agent) if own is None else own  # type: ignore[assignment]
    assert isinstance(own, Agent)
    shapes = [{name: tensor.shape for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
              for module in (agent, own)]  # fmt: skip
    if shapes[0] != shapes[1]:
        raise ConfigurationError(
            f"make_agent returned an agent with the tensors {shapes[1]}; the first one it made has {shapes[0]}. All "
            "workers share one set of them, so make_agent(i) must make the same networks for every i."
        )
    trained = {id(parameter) for group in shared.groups() for parameter in group["params"]}
    pairs: dict[int, tuple[Parameter, Parameter]] = {}
    for theirs, ours in zip(agent.modules(), own.modules(), strict=True):
        for name, parameter in theirs._parameters.items():
            if parameter is None:
                continue
            if id(parameter) in trained:
                pairs[id(parameter)] = parameter, ours._parameters[name]  # type: ignore[assignment]
            else:
                ours._parameters[name] = parameter
        ours._buffers.update(theirs._buffers)
    by_optimizer = {
        name: [pairs[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        for name, optimizer in shared.optimizers.items()
    }
    with torch.no_grad():
        for shared_one, own_one in pairs.values():
            own_one.copy_(shared_one)
    return own, by_optimizer


@torch.no_grad()
def _complete(optimizer: Optimizer) -> None:
    """Make the state that an optimizer otherwise makes in its first step, so that it can be shared before that."""
    if isinstance(optimizer, PackedOptimizer):
        optimizer.pack()
    for state in optimizer.state.values():  # some count in plain numbers, which cannot be shared
        if isinstance(state.get("step"), int | float):
            state["step"] = torch.tensor(float(state["step"]))
    missing = [p for group in optimizer.param_groups for p in group["params"] if p not in optimizer.state]
    if not missing:
        return
    settings = [{name: group.get(name) for name in ("lr", "weight_decay")} for group in optimizer.param_groups]
    kept = [(parameter, parameter.grad, parameter.clone()) for parameter in missing]
    for group in optimizer.param_groups:
        group.update({name: 0.0 for name in ("lr", "weight_decay") if name in group})
    for parameter in missing:
        parameter.grad = torch.zeros_like(parameter)
    type(optimizer).step(optimizer)  # not a scheduler's wrapper, which counts
    for parameter, gradient, value in kept:
        parameter.grad = gradient
        parameter.copy_(value)
        state = optimizer.state[parameter]
        if isinstance(state.get("step"), Tensor):
            state["step"].zero_()
    for group, before in zip(optimizer.param_groups, settings, strict=True):
        group.update({name: value for name, value in before.items() if value is not None})
