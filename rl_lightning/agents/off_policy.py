"""What agents with critics of states and actions share: targets, errors, and the memory's pace."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rl_lightning.memory import ReplayMemory
from rl_lightning.types import Batch, ConfigurationError


class Replaying(Protocol):
    """The numbers of an agent that its memory follows."""

    discount: float
    num_steps: int
    buffer_size: int
    batch_size: int
    learning_starts: int
    update_every: int
    updates_per_step: float


def replay_memory(agent: Replaying, num_envs: int) -> ReplayMemory:
    """A uniform replay memory with the agent's pace."""
    return ReplayMemory(
        agent.buffer_size,
        num_envs=num_envs,
        batch_size=agent.batch_size,
        learning_starts=agent.learning_starts,
        update_every=agent.update_every,
        updates_per_step=agent.updates_per_step,
        num_steps=agent.num_steps,
        discount=agent.discount,
    )


def check_tau(agent: object, tau: float) -> None:
    """Raise ConfigurationError unless `tau` is in (0, 1]."""
    if not 0 < tau <= 1:
        raise ConfigurationError(f"{type(agent).__name__}(tau={tau}): tau must be in (0, 1].")


def check_not_negative(agent: object, **numbers: float) -> None:
    """Raise ConfigurationError unless each number is at least 0; it is named."""
    for name, number in numbers.items():
        if not number >= 0:
            raise ConfigurationError(f"{type(agent).__name__}({name}={number}): {name} must be at least 0.")


def bootstrapped(batch: Batch, next_value: Tensor, *, discount: float) -> Tensor:
    """What the critics are to say: reward + discount ** n * next_value, n being 1 without n-step returns.

    Args:
        batch: with reward and terminated, [N] each, and n where rewards are sums over n steps.
        next_value: [N], of the states that followed. After a termination nothing follows; a truncated episode still
            bootstraps.
    Returns:
        [N].
    """
    factor = discount ** batch["n"] if "n" in batch else discount
    target: Tensor = batch["reward"] + factor * next_value.masked_fill(batch["terminated"], 0.0)
    return target


def squared_error(value: Tensor, target: Tensor, batch: Batch) -> Tensor:
    """The mean over N transitions of M critics' squared errors, summed over the critics.

    Where the batch has the importance `weight` [N] of each transition, it counts by that, and the mean size of its
    errors is put beside it, as "td_error" [N].

    Args:
        value: [M, N].
        target: [N].
    """
    error = value - target
    squared = error.square()
    if "weight" in batch:
        squared = squared * batch["weight"]
        batch["td_error"] = error.detach().abs().mean(dim=0)
    return squared.mean(dim=1).sum()
