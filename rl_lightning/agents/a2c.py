"""Advantage actor-critic (Mnih et al., 2016, arXiv:1602.01783).

With `AsyncStrategy` it is the paper's A3C, whose workers learn on their own; with one of the other strategies all envs
are in step. With `v_trace` it is IMPALA's learner (Espeholt et al., 2018, arXiv:1802.01561).
"""

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
    make_actor_critic,
    make_normalization,
    next_values_of_rollout,
)
from rl_lightning.functional import explained_variance, normalize, v_trace
from rl_lightning.memory import RolloutMemory
from rl_lightning.nn.forward_pass import ForwardPass, forward_pass
from rl_lightning.optim import Adam, RMSprop
from rl_lightning.transfer import to_device
from rl_lightning.types import Array, Batch, Extras, Metrics, Numbers, ObsArray, ObsTensor, StepFn, tree_map


class A2C(Agent):
    """For Discrete, MultiDiscrete, MultiBinary and Box actions; one optimizer, "actor_critic".

    Tunables: `entropy_weight`.

    Args:
        lr: the optimizer's learning rate.
        discount: per env step.
        trace_decay: lambda of the advantage estimates (`functional.gae`); 1 is the paper's n-step return.
        num_steps: length of a rollout, in steps of each env; one learning step follows each.
        entropy_weight: of the policy's entropy, in nats, in the objective.
        value_weight: of the value function's squared error in the loss.
        max_grad_norm: the norm that the gradient of all parameters together is clipped to. None: no limit.
        normalize_advantage: to mean 0 and standard deviation 1 in each rollout.
        normalize_obs: by mean and standard deviation of all observations before the rollout (`nn.Normalization`).
        normalize_reward: by the standard deviation of the discounted return.
        use_rmsprop: the paper's optimizer; False is Adam.
        v_trace: correct for the policy having changed since it acted (`functional.v_trace`), as it has where actors do
            not wait for the learner: `AsyncStrategy(mode="actor_learner")`.
        hidden_sizes, activation: of the policy network and of the value network.
    """

    entropy_weight: Tensor

    def __init__(
        self,
        *,
        lr: float = 7e-4,
        discount: float = 0.99,
        trace_decay: float = 1.0,
        num_steps: int = 5,
        entropy_weight: float = 0.0,
        value_weight: float = 0.5,
        max_grad_norm: float | None = 0.5,
        normalize_advantage: bool = False,
        normalize_obs: bool = False,
        normalize_reward: bool = False,
        use_rmsprop: bool = True,
        v_trace: bool = False,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.lr = lr
        self.discount = discount
        self.trace_decay = trace_decay
        self.num_steps = num_steps
        self.value_weight = value_weight
        self.max_grad_norm = max_grad_norm
        self.normalize_advantage = normalize_advantage
        self.normalize_obs = normalize_obs
        self.normalize_reward = normalize_reward
        self.use_rmsprop = use_rmsprop
        self.v_trace = v_trace
        self.async_modes = ("shared", "actor_learner") if v_trace else ("shared",)
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.add_tunable("entropy_weight", entropy_weight)

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the policy and the value network."""
        self.observation_space, self.action_space = observation_space, action_space
        self.network = make_actor_critic(self)
        self.normalization = make_normalization(self)

    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        """Sample from the policy, or take its mode; the value network does not run."""
        return self.network.act(self.normalization.obs(obs), explore=explore, with_log_prob=self.v_trace)

    def act_on_host(self, obs: ObsArray, *, explore: bool) -> tuple[Array, dict[str, Array]] | None:
        if self.v_trace:
            return None
        return self.network.act_on_host(self.normalization.obs_on_host(obs), explore=explore)

    @torch.no_grad()
    def prepare(self, rollout: Batch) -> Batch:
        """What to learn from a rollout: the same fields, normalised."""
        return self.normalization.rollout(to_device(rollout, self.entropy_weight.device))

    def advantage(self, rollout: Batch, value: Tensor) -> Tensor:
        """[T, B] estimates of a rollout's advantages, from the values [T, B] of its states."""
        decays = {"discount": self.discount, "trace_decay": self.trace_decay}
        advantage: Tensor = advantages_of_rollout(self.network, rollout, value, **decays)
        return advantage

    @torch.no_grad()
    def targets(self, rollout: Batch, value: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Value targets and advantages of a rollout, from the values of its states and how likely its actions now are.

        Every argument and result is [T, B].
        """
        if not self.v_trace:
            advantage = self.advantage(rollout, value)
            return advantage + value, advantage
        next_value = next_values_of_rollout(self.network, rollout, value)
        terminated, done = rollout["terminated"], rollout["terminated"] | rollout["truncated"]
        decays = {"discount": self.discount, "trace_decay": self.trace_decay}
        log_ratio = log_prob - rollout["log_prob"]
        return v_trace(rollout["reward"], value, next_value, terminated, done, log_ratio, **decays)

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        """One learning step on a whole rollout, fields [T, B, ...]; rows that are not `valid` do not count."""
        now = forward_pass(self.network, tree_map(_flat, batch["obs"]), _flat(chosen_action(batch)))
        target, advantage = self._targets(now, batch)
        share: Any = 1.0 / len(target)  # of each row in a mean over all
        kept: Any = slice(None)
        if "valid" in batch:
            is_kept = _flat(batch["valid"])
            kept, share = now.numbers(is_kept), now.numbers(is_kept / is_kept.sum())
            target, advantage = now.xp.where(kept, target, now.value), now.xp.where(kept, advantage, 0.0)
        if self.normalize_advantage:
            advantage[kept] = now.numbers(normalize(now.tensor(advantage[kept])))
        entropy_weight = now.numbers(self.entropy_weight)

        error = now.value - target
        policy_loss = -(share * now.log_prob * advantage).sum()
        value_loss = (share * error * error).sum()
        entropy = (share * now.entropy).sum()
        now.minimise(
            step,
            "actor_critic",
            policy_loss + self.value_weight * value_loss - entropy_weight * entropy,
            log_prob=-share * advantage,
            entropy=-share * entropy_weight,
            value=2.0 * self.value_weight * (share * error),
        )
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "explained_variance": explained_variance(now.value[kept], target[kept]),
        }
        return now.metrics(metrics)

    def _targets(self, now: ForwardPass, batch: Batch) -> tuple[Numbers, Numbers]:
        """`targets` of a rollout that was passed through the network, [N] each."""
        shape = batch["reward"].shape
        value, log_prob = now.tensor(now.value).view(shape), now.tensor(now.log_prob).view(shape)
        target, advantage = self.targets(batch, value, log_prob)
        return now.numbers(target.flatten()), now.numbers(advantage.flatten())

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """RMSprop with the paper's decay, or Adam."""
        parameters = self.network.parameters()
        if self.use_rmsprop:
            return {"actor_critic": RMSprop(parameters, lr=self.lr, alpha=0.99, eps=1e-5)}
        return {"actor_critic": Adam(parameters, lr=self.lr, eps=1e-5)}

    def make_memory(self, num_envs: int) -> RolloutMemory:
        """Rollouts of `num_steps` steps of each env, each learned from once and whole."""
        prepare = self.prepare if self.normalize_obs or self.normalize_reward else None
        return RolloutMemory(self.num_steps, num_envs, prepare=prepare, whole=True)


def _flat(leaf: Tensor) -> Tensor:
    """[T, B, ...] -> [T * B, ...]."""
    return leaf.flatten(0, 1)
