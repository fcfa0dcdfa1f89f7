"""Proximal policy optimisation with a clipped objective (Schulman et al., 2017, arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import Space
from torch import Tensor
from torch.optim import Optimizer

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.on_policy import (
    advantages_of_rollout,
    chosen_action,
    evaluate_rollout,
    make_actor_critic,
    make_normalization,
)
from rl_lightning.functional import explained_variance, normalize
from rl_lightning.memory import RolloutMemory
from rl_lightning.nn.forward_pass import ForwardPass, forward_pass
from rl_lightning.optim import Adam
from rl_lightning.transfer import to_device
from rl_lightning.types import Array, Batch, ConfigurationError, Extras, Metrics, ObsArray, ObsTensor, StepFn


class PPO(Agent):
    """For Discrete, MultiDiscrete, MultiBinary and Box actions; one optimizer, "actor_critic".

    Tunables: `clip_range`, `entropy_weight`.

    Args:
        lr: Adam's learning rate.
        discount: per env step.
        trace_decay: lambda of the advantage estimates (`functional.gae`).
        num_steps: length of a rollout, in steps of each env.
        num_epochs: passes over each rollout.
        num_minibatches: learning steps in a pass.
        clip_range: how far the probability of an action may move from the rollout's, as a ratio to it, before the
            objective is cut off.
        clip_range_value: the same for the value function, in units of the return. None: no limit.
        entropy_weight: of the policy's entropy, in nats, in the objective.
        value_weight: of the value function's squared error in the loss.
        max_grad_norm: the norm that the gradient of all parameters together is clipped to. None: no limit.
        normalize_advantage: to mean 0 and standard deviation 1 in each minibatch.
        target_kl: leave out the rest of a rollout's learning steps once the policy has moved further than this, in
            nats. None: no limit.
        normalize_obs: by mean and standard deviation of all observations before the rollout (`nn.Normalization`).
        normalize_reward: by the standard deviation of the discounted return.
        hidden_sizes, activation: of the policy network and of the value network.
    Raises:
        ConfigurationError: a number out of range.
    """

    clip_range: Tensor
    entropy_weight: Tensor
    approx_kl: Tensor
    explained_variance: Tensor

    def __init__(
        self,
        *,
        lr: float = 3e-4,
        discount: float = 0.99,
        trace_decay: float = 0.95,
        num_steps: int = 128,
        num_epochs: int = 4,
        num_minibatches: int = 4,
        clip_range: float = 0.2,
        clip_range_value: float | None = None,
        entropy_weight: float = 0.0,
        value_weight: float = 0.5,
        max_grad_norm: float | None = 0.5,
        normalize_advantage: bool = True,
        target_kl: float | None = None,
        normalize_obs: bool = False,
        normalize_reward: bool = False,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if not clip_range > 0:
            raise ConfigurationError(f"PPO(clip_range={clip_range}): it must be above 0, or the policy never moves.")
        self.lr = lr
        self.discount = discount
        self.trace_decay = trace_decay
        self.num_steps = num_steps
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.clip_range_value = clip_range_value
        self.value_weight = value_weight
        self.max_grad_norm = max_grad_norm
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.normalize_obs = normalize_obs
        self.normalize_reward = normalize_reward
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.add_tunable("clip_range", clip_range)
        self.add_tunable("entropy_weight", entropy_weight)
        # Buffers, so that a checkpoint between two minibatches of a rollout still has them.
        self.register_buffer("approx_kl", torch.zeros(()))
        self.register_buffer("explained_variance", torch.zeros(()))

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the policy and the value network."""
        self.observation_space, self.action_space = observation_space, action_space
        self.network = make_actor_critic(self)
        self.normalization = make_normalization(self)

    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        """Sample from the policy, or take its mode; the value network does not run."""
        return self.network.act(self.normalization.obs(obs), explore=explore)

    def act_on_host(self, obs: ObsArray, *, explore: bool) -> tuple[Array, dict[str, Array]] | None:
        return self.network.act_on_host(self.normalization.obs_on_host(obs), explore=explore)

    @torch.no_grad()
    def prepare(self, rollout: Batch) -> Batch:
        """What to learn from a rollout: fields obs, action, log_prob, advantage, return, each [T, B, ...]."""
        rollout = self.normalization.rollout(to_device(rollout, self.approx_kl.device))
        log_prob, value = evaluate_rollout(self.network, rollout)
        decays = {"discount": self.discount, "trace_decay": self.trace_decay}
        advantage = advantages_of_rollout(self.network, rollout, value, **decays)
        self.explained_variance = explained_variance(value, advantage + value)
        return {
            "obs": rollout["obs"],
            "action": chosen_action(rollout),
            "log_prob": log_prob,
            "advantage": advantage,
            "return": advantage + value,
        }

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        """One learning step on a minibatch of what `prepare` made."""
        now = forward_pass(self.network, batch["obs"], batch["action"])
        xp, share = now.xp, 1.0 / len(batch["return"])
        given = normalize(batch["advantage"]) if self.normalize_advantage else batch["advantage"]
        advantage, clip_range = now.numbers(given), now.numbers(self.clip_range)
        entropy_weight = now.numbers(self.entropy_weight)

        log_ratio = now.log_prob - now.numbers(batch["log_prob"])
        ratio = xp.exp(log_ratio)
        gain = ratio * advantage  # and its derivative by the log-probability
        # The same as min(ratio * A, clip(ratio, 1 - c, 1 + c) * A), equation 7, for either sign of A.
        limit = advantage + clip_range * abs(advantage)
        policy_loss = -share * xp.minimum(gain, limit).sum()
        value_loss, by_value = self._value_loss(now, batch)
        entropy = share * now.entropy.sum()
        now.minimise(
            step,
            "actor_critic",
            policy_loss + self.value_weight * value_loss - entropy_weight * entropy,
            log_prob=-share * (gain * (gain < limit)),
            entropy=-share * entropy_weight,
            value=self.value_weight * by_value,
        )

        # Schulman's estimate of KL(old || new): unbiased and never negative (joschu.net/blog/kl-approx.html).
        move = ratio - 1.0
        approx_kl = share * (move - log_ratio).sum()
        self.approx_kl.fill_(approx_kl)
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": approx_kl,
            "clip_fraction": share * (abs(move) > clip_range).sum(),
        }
        return {**now.metrics(metrics), "explained_variance": self.explained_variance}

    def _value_loss(self, now: ForwardPass, batch: Batch) -> tuple[Any, Any]:
        """The mean squared error of the values, and its derivatives [N] by them."""
        target, share = now.numbers(batch["return"]), 1.0 / len(now.value)
        error = now.value - target
        if self.clip_range_value is not None:
            old = target - now.numbers(batch["advantage"])
            move = now.value - old
            within = abs(move) < self.clip_range_value
            clipped = old + move.clip(-self.clip_range_value, self.clip_range_value) - target
            is_larger = abs(clipped) > abs(error)
            error, counts = now.xp.where(is_larger, clipped, error), within | ~is_larger
            return share * (error * error).sum(), 2.0 * share * (error * counts)
        return share * (error * error).sum(), 2.0 * share * error

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam, with the epsilon that the authors' code uses."""
        return {"actor_critic": Adam(self.network.parameters(), lr=self.lr, eps=1e-5)}

    def make_memory(self, num_envs: int) -> RolloutMemory:
        """Rollouts of `num_steps` steps of each env."""
        return RolloutMemory(
            self.num_steps,
            num_envs,
            num_epochs=self.num_epochs,
            num_minibatches=self.num_minibatches,
            prepare=self.prepare,
            should_stop=None if self.target_kl is None else self.has_moved_too_far,
        )

    def has_moved_too_far(self) -> bool:
        """Whether the policy's last learning step started further than `target_kl` from the rollout's policy."""
        return self.target_kl is not None and bool(self.approx_kl > self.target_kl)
