"""What agents that learn from replay share: targets, errors, the memory's pace, and deterministic policies."""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rl_lightning.memory import ReplayMemory
from rl_lightning.nn import (
    ActionBounds,
    Critics,
    GaussianNoise,
    Normalization,
    OrnsteinUhlenbeckNoise,
    Policy,
    UniformWarmUp,
)
from rl_lightning.optim import Adam
from rl_lightning.types import Array, Batch, ConfigurationError, Extras, ObsArray, ObsTensor

M = TypeVar("M", bound=nn.Module)


class Replaying(Protocol):
    """The numbers of an agent that its memory follows."""

    discount: float
    num_steps: int
    batch_size: int
    learning_starts: int
    update_every: int
    updates_per_step: float

    @property
    def buffer_size(self) -> int | None: ...


def replay_memory(agent: Replaying, num_envs: int, *, alpha: float = 0.0) -> ReplayMemory:
    """A replay memory with the agent's pace; uniform, or prioritized with the exponent `alpha`.

    Raises:
        ConfigurationError: one of the agent's numbers is out of range.
    """
    assert agent.buffer_size is not None
    return ReplayMemory(
        agent.buffer_size,
        num_envs=num_envs,
        batch_size=agent.batch_size,
        learning_starts=agent.learning_starts,
        update_every=agent.update_every,
        updates_per_step=agent.updates_per_step,
        num_steps=agent.num_steps,
        discount=agent.discount,
        alpha=alpha,
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


def target_of(network: M) -> M:
    """A copy that no gradient trains, to follow the network."""
    return copy.deepcopy(network).requires_grad_(False)


def bootstrapped(batch: Batch, next_value: Tensor, *, discount: float) -> Tensor:
    """What the critics are to say: reward + `next_discount` * next_value.

    Args:
        batch: with reward and terminated, [N] each, and n where rewards are sums over n steps.
        next_value: [N], of the states that followed. After a termination nothing follows; a truncated episode still
            bootstraps.
    Returns:
        [N].
    """
    target: Tensor = batch["reward"] + next_discount(batch, discount) * next_value.masked_fill(batch["terminated"], 0.0)
    return target


def next_discount(batch: Batch, discount: float) -> Tensor:
    """[N], what the state that followed counts: discount ** n, n being 1 without n-step returns."""
    factor: Tensor = discount ** batch["n"] if "n" in batch else torch.full_like(batch["reward"], discount)
    return factor


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


class Deterministic(Protocol):
    """The parts of an agent whose policy gives an action, to which training adds noise."""

    lr: float
    normalization: Normalization
    policy: Policy
    critic: Critics
    bounds: ActionBounds
    noise: GaussianNoise | OrnsteinUhlenbeckNoise
    noise_std: Tensor
    warm_up: UniformWarmUp


def act_deterministically(agent: Deterministic, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
    """`Agent.act`: the policy's action, in training with noise, and uniformly random at first."""
    action: Tensor = agent.policy(agent.normalization.obs(obs)).detach()
    if explore:
        agent.normalization.update(obs)
        action = agent.warm_up(agent.noise(action, agent.noise_std))
    return agent.bounds.to_env(action), {}


def act_deterministically_on_host(
    agent: Deterministic, obs: ObsArray, *, explore: bool
) -> tuple[Array, dict[str, Array]] | None:
    """`Agent.act_on_host`, to `act_deterministically`."""
    action = agent.policy.on_host(agent.normalization.obs_on_host(obs))
    if action is None:
        return None
    if explore:
        agent.normalization.update_on_host(obs)
        action = agent.warm_up(agent.noise(torch.from_numpy(action), agent.noise_std)).numpy()
    return agent.bounds.to_env_on_host(action), {}


def critic_and_actor(agent: Deterministic) -> dict[str, Optimizer]:
    """Adam, one for the critics and one for the policy."""
    return {
        "critic": Adam(agent.critic.parameters(), lr=agent.lr),
        "actor": Adam(agent.policy.parameters(), lr=agent.lr),
    }
