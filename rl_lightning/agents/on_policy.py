"""What the agents that learn from rollouts share."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import Space, spaces
from torch import Tensor

from rl_lightning.nn import ActorCritic
from rl_lightning.types import Batch, ObsTensor, tree_map

MAX_ROWS_AT_ONCE = 4096
"""Transitions passed through a network together when a whole rollout is evaluated: thousands of images need memory."""


def has_policy(action_space: Space[Any]) -> bool:
    """Whether `ActorCritic` has a policy for this kind of space."""
    return isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box)


def chosen_action(batch: Batch) -> Tensor:
    """What the policy sampled, before it was clipped to the env's bounds."""
    sample: Tensor = batch["sample"] if "sample" in batch else batch["action"]
    return sample


def evaluate_rollout(network: ActorCritic, rollout: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Pass a whole rollout through the network, once.

    V(s_{t+1}) is V(s) of the next row, except at an episode's end and in the last row, where no row holds the state
    that followed: there it is computed from `next_obs`.

    Args:
        rollout: fields [T, B, ...], on the network's device.
    Returns:
        log_prob of the chosen actions, value V(s_t) and next_value V(s_{t+1}), each [T, B].
    """
    num_steps, num_envs = rollout["reward"].shape
    unfollowed = rollout["terminated"] | rollout["truncated"]
    unfollowed[-1] = True
    log_probs, values, last_values = [], [], []
    steps_at_once = max(MAX_ROWS_AT_ONCE // num_envs, 1)
    for start in range(0, num_steps, steps_at_once):
        part = _rows(rollout, start, start + steps_at_once)
        policy, value = network(part["obs"])
        log_probs.append(policy.log_prob(chosen_action(part)))
        values.append(value)
        last = unfollowed[start : start + steps_at_once].flatten()
        last_values.append(network.value(_where(last, part["next_obs"])))
    value = torch.cat(values).view(num_steps, num_envs)
    next_value = value.roll(-1, dims=0)
    next_value[unfollowed] = torch.cat(last_values)
    return torch.cat(log_probs).view(num_steps, num_envs), value, next_value


def _rows(rollout: Batch, start: int, stop: int) -> Batch:
    """The steps from `start` to `stop`, flattened to [(stop - start) * B, ...]."""
    part: Batch = tree_map(lambda field: field[start:stop].flatten(0, 1), rollout)
    return part


def _where(mask: Tensor, obs: ObsTensor) -> ObsTensor:
    selected: ObsTensor = tree_map(lambda leaf: leaf[mask], obs)
    return selected
