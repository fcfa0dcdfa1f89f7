"""REINFORCE (Williams, 1992, doi:10.1007/BF00992696): the policy gradient of whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import Space
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.on_policy import advantages_of_rollout, chosen_action, make_actor_critic
from rl_lightning.functional import explained_variance, gae, normalize
from rl_lightning.memory import EpisodeMemory
from rl_lightning.optim import Adam
from rl_lightning.types import Array, Batch, Extras, Metrics, ObsArray, ObsTensor, StepFn, tree_map


class REINFORCE(Agent):
    """For Discrete, MultiDiscrete, MultiBinary and Box actions; one optimizer, "policy".

    A learning step follows every `num_episodes` episodes, and only whole ones count (`EpisodeMemory`). A truncated
    episode goes on where there is a baseline: its last value counts for what was cut off. Without one, nothing is known
    of that, and the return ends there.

    Tunables: `entropy_weight`.

    Args:
        lr: Adam's learning rate.
        discount: per env step.
        num_episodes: in a learning step, over all envs.
        baseline: learn the value function, and subtract it from the returns.
        normalize_advantage: the returns, less the baseline, to mean 0 and standard deviation 1 in each learning step.
        entropy_weight: of the policy's entropy, in nats, in the objective.
        value_weight: of the baseline's squared error in the loss.
        max_grad_norm: the norm that the gradient of all parameters together is clipped to. None: no limit.
        hidden_sizes, activation: of the policy network and of the value network.
    """

    entropy_weight: Tensor
    why_not_compiled = "episodes have a length of their own each time"

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        discount: float = 0.99,
        num_episodes: int = 8,
        baseline: bool = True,
        normalize_advantage: bool = True,
        entropy_weight: float = 0.0,
        value_weight: float = 0.5,
        max_grad_norm: float | None = 0.5,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.lr = lr
        self.discount = discount
        self.num_episodes = num_episodes
        self.has_baseline = baseline
        self.normalize_advantage = normalize_advantage
        self.value_weight = value_weight
        self.max_grad_norm = max_grad_norm
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.add_tunable("entropy_weight", entropy_weight)

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the policy and the value network."""
        self.observation_space, self.action_space = observation_space, action_space
        self.network = make_actor_critic(self)

    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        """Sample from the policy, or take its mode; the value network does not run."""
        return self.network.act(obs, explore=explore)

    def act_on_host(self, obs: ObsArray, *, explore: bool) -> tuple[Array, dict[str, Array]] | None:
        return self.network.act_on_host(obs, explore=explore)

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        """One learning step on whole episodes, one after another, fields [T, 1, ...]."""
        obs, action = (
            tree_map(lambda leaf: leaf.flatten(0, 1), field) for field in (batch["obs"], chosen_action(batch))
        )
        policy = self.network.policy(obs)
        value = self.network.value(obs) if self.has_baseline else None
        advantage = self.advantage(batch, None if value is None else value.detach().view_as(batch["reward"])).flatten()
        weight = normalize(advantage) if self.normalize_advantage else advantage

        policy_loss = -(policy.log_prob(action) * weight).mean()
        entropy = policy.entropy().mean()
        loss = policy_loss - self.entropy_weight * entropy
        metrics: dict[str, Tensor] = {"policy_loss": policy_loss.detach(), "entropy": entropy.detach()}
        if value is not None:
            target = advantage + value.detach()
            value_loss = F.mse_loss(value, target)
            loss = loss + self.value_weight * value_loss
            metrics["value_loss"] = value_loss.detach()
            metrics["explained_variance"] = explained_variance(value.detach(), target)
        step("policy", loss)
        return metrics

    @torch.no_grad()
    def advantage(self, episodes: Batch, value: Tensor | None) -> Tensor:
        """[T, 1] discounted sums of the rewards to come in each episode, less the values [T, 1] of their states."""
        decays = {"discount": self.discount, "trace_decay": 1.0}
        if value is not None:
            advantage: Tensor = advantages_of_rollout(self.network, episodes, value, **decays)
            return advantage
        zeros, ends = torch.zeros_like(episodes["reward"]), episodes["terminated"] | episodes["truncated"]
        total: Tensor = gae(episodes["reward"], zeros, zeros, episodes["terminated"], ends, **decays)
        return total

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam, over the policy and, where there is one, the baseline."""
        network = self.network
        parts = [network] if self.has_baseline else [network.encoder, network.policy_layers]
        return {"policy": Adam([parameter for part in parts for parameter in part.parameters()], lr=self.lr)}

    def make_memory(self, num_envs: int) -> EpisodeMemory:
        """Whole episodes, each learned from once."""
        return EpisodeMemory(self.num_episodes, num_envs)
