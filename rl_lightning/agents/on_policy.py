"""What the agents that learn from rollouts share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from rl_lightning.functional import gae
from rl_lightning.functional.advantage import runs_in_numpy
from rl_lightning.nn import ActorCritic, Normalization
from rl_lightning.types import Batch, ConfigurationError, Numbers, ObsTensor, tree_map

MAX_ROWS_AT_ONCE = 4096
"""Transitions passed through a network together when a whole rollout is evaluated: thousands of images need memory."""


class Acting(Protocol):
    """What an agent's networks are made from."""

    observation_space: Space[Any]
    action_space: Space[Any]
    hidden_sizes: Sequence[int]
    activation: str

    def unsupported(self, kind: str) -> ConfigurationError: ...


class Normalizing(Protocol):
    """What an agent says of its normalisation."""

    observation_space: Space[Any]
    discount: float
    normalize_obs: bool
    normalize_reward: bool


def make_actor_critic(agent: Acting) -> ActorCritic:
    """The policy and the value network for the agent's spaces.

    Raises:
        ConfigurationError: there is no policy for this kind of action.
    """
    if not isinstance(agent.action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box):
        raise agent.unsupported("a Discrete, MultiDiscrete, MultiBinary or Box action space")
    return ActorCritic(
        agent.observation_space, agent.action_space, hidden_sizes=agent.hidden_sizes, activation=agent.activation
    )


def make_normalization(agent: Normalizing) -> Normalization:
    """What the agent was asked to normalise."""
    return Normalization(
        agent.observation_space, obs=agent.normalize_obs, reward=agent.normalize_reward, discount=agent.discount
    )


def chosen_action(batch: Batch) -> Tensor:
    """What the policy sampled, before it was clipped to the env's bounds."""
    sample: Tensor = batch["sample"] if "sample" in batch else batch["action"]
    return sample


def evaluate_rollout(network: ActorCritic, rollout: Batch) -> tuple[Tensor, Tensor]:
    """Pass a whole rollout through the network, once.

    Args:
        rollout: fields [T, B, ...], on the network's device.
    Returns:
        log_prob of the chosen actions, and value V(s_t), each [T, B].
    """
    log_probs, values = [], []
    for part in _parts(rollout):
        policy, value = network(part["obs"])
        log_probs.append(policy.log_prob(chosen_action(part)))
        values.append(value)
    shape = rollout["reward"].shape
    return torch.cat(log_probs).view(shape), torch.cat(values).view(shape)


def values_of_rollout(network: ActorCritic, rollout: Batch) -> Tensor:
    """V(s_t) [T, B] of a whole rollout [T, B, ...]: the policy does not run."""
    return torch.cat([network.value(part["obs"]) for part in _parts(rollout)]).view(rollout["reward"].shape)


def next_values_of_rollout(network: ActorCritic, rollout: Batch, value: Numbers) -> Numbers:
    """V(s_{t+1}) [T, B]: V(s) of the next row, except at an episode's end and in the last row, where no row holds the
    state that followed: there it is computed from `next_obs`.
    """
    unfollowed = rollout["terminated"] | rollout["truncated"]
    unfollowed[-1] = True
    if isinstance(value, np.ndarray):
        next_value = np.empty_like(value)
        next_value[:-1] = value[1:]
        last_obs = tree_map(lambda leaf: torch.from_numpy(leaf[unfollowed]), rollout["next_obs"])
        next_value[unfollowed] = _values(network, last_obs).numpy()
        return next_value
    if torch.compiler.is_compiling():  # how many rows are chosen is not known in advance: all of them, then
        after = network.value(tree_map(lambda leaf: leaf.flatten(0, 1), rollout["next_obs"])).view_as(value)
        return torch.where(unfollowed, after, value.roll(-1, dims=0))
    next_value = value.roll(-1, dims=0)
    next_value[unfollowed] = _values(network, tree_map(lambda leaf: leaf[unfollowed], rollout["next_obs"]))
    return next_value


@torch.no_grad()
def advantages_of_rollout(
    network: ActorCritic, rollout: Batch, value: Numbers, *, discount: float, trace_decay: float
) -> Numbers:
    """Advantage estimates [T, B] (`functional.gae`) of a rollout [T, B, ...] whose states have the values [T, B]."""
    if isinstance(value, Tensor) and runs_in_numpy(value):
        names = ("reward", "next_obs", "terminated", "truncated")
        rollout = {name: tree_map(Tensor.numpy, rollout[name]) for name in names}
        decays = {"discount": discount, "trace_decay": trace_decay}
        return torch.from_numpy(advantages_of_rollout(network, rollout, value.detach().numpy(), **decays))
    next_value = next_values_of_rollout(network, rollout, value)
    terminated, done = rollout["terminated"], rollout["terminated"] | rollout["truncated"]
    return gae(rollout["reward"], value, next_value, terminated, done, discount=discount, trace_decay=trace_decay)


def _values(network: ActorCritic, obs: ObsTensor) -> Tensor:
    """V of observations [N, ...], [N]."""
    if isinstance(obs, Tensor) and len(obs) <= MAX_ROWS_AT_ONCE:
        return network.value(obs)
    parts = _zipped(tree_map(lambda leaf: leaf.split(MAX_ROWS_AT_ONCE), obs))
    return torch.cat([network.value(part) for part in parts])


def _zipped(pieces: Any) -> list[ObsTensor]:
    """From observations whose every leaf is cut into pieces to pieces of observations."""
    if not isinstance(pieces, dict):
        return list(pieces)
    return [dict(zip(pieces, leaves, strict=True)) for leaves in zip(*pieces.values(), strict=True)]


def _parts(rollout: Batch) -> Iterator[Batch]:
    """The rollout in parts of at most `MAX_ROWS_AT_ONCE` rows, flattened."""
    num_steps, num_envs = rollout["reward"].shape
    steps_at_once = max(MAX_ROWS_AT_ONCE // num_envs, 1)
    for start in range(0, num_steps, steps_at_once):
        yield _rows(rollout, start, start + steps_at_once)


def _rows(rollout: Batch, start: int, stop: int) -> Batch:
    """The steps from `start` to `stop`, flattened to [(stop - start) * B, ...]."""
    part: Batch = tree_map(lambda field: field[start:stop].flatten(0, 1), rollout)
    return part
