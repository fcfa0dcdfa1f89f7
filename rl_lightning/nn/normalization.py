"""Observations and rewards on a common scale, by statistics that are saved with the agent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from rl_lightning.envs.spaces import leaf_spaces
from rl_lightning.types import Array, Batch, ConfigurationError, ObsArray, ObsTensor, tree_map

LIMIT = 10.0
"""How far from 0 a normalised observation or reward may be, in standard deviations; what is further is clipped."""


class RunningMoments(nn.Module):
    """Mean and variance of all rows seen so far, number by number; 0 and 1 before the first.

    Under data-parallel training the rows of all ranks count, and every rank must update at the same time.

    Source:
        Chan et al., 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    mean: Tensor
    variance: Tensor
    scale: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("scale", torch.ones(shape))  # 1 / standard deviation
        self.register_buffer("count", torch.tensor(0))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take in rows [N, *shape], each once."""
        rows = rows.to(self.mean.dtype)
        variance, mean = torch.var_mean(rows, dim=0, correction=0) if len(rows) else (self.variance, self.mean)
        for part in _of_all_ranks(torch.stack([torch.full_like(mean, len(rows)), mean, variance])):
            self._merge(*part)
        self.scale.copy_(self.variance.add(1e-8).rsqrt())

    def _merge(self, number: Tensor, mean: Tensor, variance: Tensor) -> None:
        total = (self.count + number).clamp(min=1)
        share = number / total
        move = mean - self.mean
        self.variance.lerp_(variance, share).add_(move.square() * share * (1 - share))
        self.mean.add_(move * share)
        self.count.add_(number.flatten()[0].long())


class Normalization(nn.Module):
    """What an agent with `normalize_obs` or `normalize_reward` sees in place of what its env gives.

    Observations: every number of a Box of floats less its mean, over its standard deviation. Rewards: over the standard
    deviation of the discounted return up to then; their mean stays, for it may tell a good end from a bad one. The
    statistics change in `update` and `rollout` alone, never by acting: agents that learn from rollouts call the latter
    once for each, others the former with what they act on in training.

    Args:
        observation_space: of one env.
        obs, reward: whether to normalise them.
        discount: of the return, per env step.
    Raises:
        ConfigurationError: `obs`, and the observations have no numbers to normalise.
    Source:
        Schulman's and others' code for PPO, as described by Engstrom et al., 2020, section 3. arXiv:2005.12729.
    """

    returns: Tensor
    run_buffers = ("returns",)

    def __init__(self, observation_space: Space[Any], *, obs: bool, reward: bool, discount: float = 0.99) -> None:
        super().__init__()
        self.discount = discount
        leaves = leaf_spaces(observation_space).items() if obs else ()
        shapes = {path: leaf.shape for path, leaf in leaves if isinstance(leaf, spaces.Box) and leaf.dtype.kind == "f"}
        if obs and not shapes:
            raise ConfigurationError(
                f"normalize_obs=True: observation space {observation_space} has no Box of floats, and nothing else is "
                "normalised (images are scaled as it is). Leave it out."
            )
        self._index = {path: i for i, path in enumerate(shapes)}
        self.obs_moments = nn.ModuleList(RunningMoments(shape) for shape in shapes.values())
        self.return_moments = RunningMoments(()) if reward else None
        self.register_buffer("returns", torch.zeros(0), persistent=False)  # [B] discounted, of episodes going on

    def obs(self, obs: ObsTensor) -> ObsTensor:
        """Observations [..., *O] normalised, by the statistics of now."""
        if not self._index:
            return obs
        if isinstance(obs, dict):
            return {path: self._normalized(path, leaf) if path in self._index else leaf for path, leaf in obs.items()}
        return self._normalized("", obs)

    def _normalized(self, path: str, obs: Tensor) -> Tensor:
        moments = self._moments(path)
        return ((obs - moments.mean) * moments.scale).clamp(-LIMIT, LIMIT)

    def obs_on_host(self, obs: ObsArray) -> ObsArray:
        """`obs` in NumPy, bit for bit, for an agent on the host."""
        if not self._index:
            return obs
        if isinstance(obs, dict):
            return {path: self._on_host(path, leaf) if path in self._index else leaf for path, leaf in obs.items()}
        return self._on_host("", obs)

    def _on_host(self, path: str, obs: Array) -> Array:
        moments = self._moments(path)
        numbers: Array = np.clip((obs - moments.mean.numpy()) * moments.scale.numpy(), -LIMIT, LIMIT)
        return numbers

    def update(self, obs: ObsTensor, valid: Tensor | None = None) -> None:
        """Let observations [..., *O] count, each once; only those that are `valid` [...], where it is given."""
        for path in self._index:
            rows = obs[path] if isinstance(obs, dict) else obs
            moments = self._moments(path)
            flat = rows.reshape(-1, *moments.mean.shape)
            moments.update(flat if valid is None else flat[valid.flatten()])

    def update_on_host(self, obs: ObsArray) -> None:
        """`update` with arrays, for an agent on the host."""
        if self._index:
            self.update(tree_map(torch.from_numpy, obs))

    def rollout(self, rollout: Batch) -> Batch:
        """A rollout, fields [T, B, ...], with its observations as they were acted on and its rewards scaled.

        Then its observations count too, for what is acted on next; its rewards count before they are scaled.
        """
        normalized, valid = dict(rollout), rollout.get("valid")
        if self._index:
            normalized |= {name: self.obs(rollout[name]) for name in ("obs", "next_obs")}
            self.update(rollout["obs"], valid)
        if self.return_moments is not None:
            returns = self._returns(rollout["reward"], rollout["terminated"] | rollout["truncated"], valid)
            self.return_moments.update(returns.flatten() if valid is None else returns[valid])
            normalized["reward"] = (rollout["reward"] * self.return_moments.scale).clamp(-LIMIT, LIMIT)
        return normalized

    def _returns(self, reward: Tensor, done: Tensor, valid: Tensor | None) -> Tensor:
        """[T, B] discounted sums of the rewards of each episode so far."""
        if self.returns.shape != reward.shape[1:]:
            self.returns = torch.zeros_like(reward[0])
        returns = torch.empty_like(reward)
        if valid is not None:
            reward = reward.masked_fill(~valid, 0.0)
        for t in range(len(reward)):
            returns[t] = self.discount * self.returns + reward[t]
            self.returns = returns[t].masked_fill(done[t], 0.0)
        return returns

    def _moments(self, path: str) -> RunningMoments:
        moments = self.obs_moments[self._index[path]]
        assert isinstance(moments, RunningMoments)
        return moments


def _of_all_ranks(moments: Tensor) -> list[Tensor]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [moments]
    parts = [torch.empty_like(moments) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, moments)
    return parts
