"""Soft actor-critic (Haarnoja et al., 2018, arXiv:1801.01290), with a learned temperature (arXiv:1812.05905).

For Discrete actions: Christodoulou, 2019, arXiv:1910.07207.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from gymnasium import Space, spaces
from torch import Tensor, nn
from torch.optim import Optimizer

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.off_policy import bootstrapped, check_tau, replay_memory, squared_error, target_of
from rl_lightning.functional import polyak_update
from rl_lightning.memory import ReplayMemory
from rl_lightning.nn import (
    ActionBounds,
    CategoricalHead,
    Critics,
    Normalization,
    Policy,
    SquashedGaussianHead,
    UniformWarmUp,
)
from rl_lightning.optim import Adam
from rl_lightning.types import Array, Batch, ConfigurationError, Extras, Metrics, ObsArray, ObsTensor, StepFn


class SAC(Agent):
    """For Box actions with finite bounds, and Discrete ones; optimizers "critic", "actor" and, unless the temperature
    is fixed, "alpha".

    Tunables: `entropy_weight`, where it is fixed.

    Args:
        lr: Adam's learning rate, of all three.
        discount: per env step.
        num_steps: rewards to sum before bootstrapping (n-step return).
        buffer_size: transitions that the replay memory keeps.
        batch_size: transitions in a learning step.
        learning_starts: env steps before the first learning step; the actions in these are uniformly random.
        update_every: env steps between two learning phases.
        updates_per_step: learning steps for each env step, on average; a phase has `update_every` times as many.
        tau: how far the target critics move to the trained ones in each learning step.
        entropy_weight: alpha, the temperature: what a nat of the policy's entropy is worth in reward; where it is
            learned, at first.
        learns_entropy_weight: move it so that the policy's entropy becomes `target_entropy`.
        target_entropy: in nats, for Box of actions scaled to -1..1. None: minus the number of an action's
            dimensions, or 0.98 of the highest possible for Discrete.
        max_grad_norm: the norm that each optimizer's gradient is clipped to. None: no limit.
        normalize_obs: by mean and standard deviation of all observations that it acted on in training
            (`nn.Normalization`); the memory has them as they came.
        hidden_sizes: of the policy and of each critic.
    Raises:
        ConfigurationError: a number out of range, or two that contradict each other.
    """

    entropy_weight: Tensor
    async_modes: Collection[str] = ("shared", "actor_learner")

    def __init__(
        self,
        *,
        lr: float = 3e-4,
        discount: float = 0.99,
        num_steps: int = 1,
        buffer_size: int = 1_000_000,
        batch_size: int = 256,
        learning_starts: int = 1_000,
        update_every: int = 1,
        updates_per_step: float = 1.0,
        tau: float = 0.005,
        entropy_weight: float = 1.0,
        learns_entropy_weight: bool = True,
        target_entropy: float | None = None,
        max_grad_norm: float | None = None,
        normalize_obs: bool = False,
        hidden_sizes: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        check_tau(self, tau)
        if learns_entropy_weight and not entropy_weight > 0:
            raise ConfigurationError(f"SAC(entropy_weight={entropy_weight}): one that is learned starts above 0.")
        if target_entropy is not None and not learns_entropy_weight:
            raise ConfigurationError(
                f"SAC(target_entropy={target_entropy}, learns_entropy_weight=False): nothing moves the entropy to its "
                "target. Leave one of the two out."
            )
        self.lr = lr
        self.discount = discount
        self.num_steps = num_steps
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.update_every = update_every
        self.updates_per_step = updates_per_step
        self.tau = tau
        self.learns_entropy_weight = learns_entropy_weight
        self.target_entropy = target_entropy
        self.max_grad_norm = max_grad_norm
        self.normalize_obs = normalize_obs
        if normalize_obs:
            self.async_modes = ("shared",)
        self.hidden_sizes = hidden_sizes
        if learns_entropy_weight:
            self.log_alpha = nn.Parameter(torch.tensor(math.log(entropy_weight)))
        else:
            self.add_tunable("entropy_weight", entropy_weight)

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the policy, the two critics and their targets."""
        self.observation_space, self.action_space = observation_space, action_space
        self.normalization = Normalization(observation_space, obs=self.normalize_obs, reward=False)
        sizes = self.hidden_sizes
        if isinstance(action_space, spaces.Discrete):
            num_actions, self.bounds = int(action_space.n), None
            self.head: CategoricalHead | SquashedGaussianHead = CategoricalHead([num_actions], ())
            self.policy = Policy(observation_space, num_actions, head=self.head, hidden_sizes=sizes)
            self.critic = Critics(
                observation_space, action_size=0, num_outputs=num_actions, num_critics=2, hidden_sizes=sizes
            )
            self.warm_up = UniformWarmUp(self.learning_starts, num_actions)
            default_entropy = 0.98 * math.log(num_actions)
        elif isinstance(action_space, spaces.Box):
            self.bounds = ActionBounds(action_space)
            self.head = SquashedGaussianHead()
            self.policy = Policy(observation_space, 2 * self.bounds.size, head=self.head, hidden_sizes=sizes)
            self.critic = Critics(observation_space, action_size=self.bounds.size, num_critics=2, hidden_sizes=sizes)
            self.warm_up = UniformWarmUp(self.learning_starts)
            default_entropy = -float(self.bounds.size)
        else:
            raise self.unsupported("a Box or Discrete action space")
        self.entropy_goal = default_entropy if self.target_entropy is None else self.target_entropy
        self.target = target_of(self.critic)

    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        """Sample from the policy, or take its mode; uniformly random at first."""
        policy = self.policy(self.normalization.obs(obs))
        if explore:
            self.normalization.update(obs)
        action = self.warm_up(policy.sample()) if explore else policy.mode()
        return (action if self.bounds is None else self.bounds.to_env(action)), {}

    def act_on_host(self, obs: ObsArray, *, explore: bool) -> tuple[Array, dict[str, Array]] | None:
        numbers = self.policy.on_host(self.normalization.obs_on_host(obs))
        action = None if numbers is None else self.head.act_on_host(numbers, explore=explore)
        if action is None:
            return None
        if explore:
            self.normalization.update_on_host(obs)
            action = self.warm_up(torch.from_numpy(action)).numpy()
        return (action if self.bounds is None else self.bounds.to_env_on_host(action)), {}

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        """One learning step on a batch of obs, action, reward, next_obs, terminated, and n for n-step returns."""
        obs, next_obs = (self.normalization.obs(batch[name]) for name in ("obs", "next_obs"))
        alpha = self.log_alpha.detach().exp() if self.learns_entropy_weight else self.entropy_weight

        with torch.no_grad():
            next_value, _ = self._soft_value(next_obs, self.target, alpha)
            target = bootstrapped(batch, next_value, discount=self.discount)
        value = self._value(obs, batch["action"])
        critic_loss = 0.5 * squared_error(value, target, batch)
        step("critic", critic_loss)

        soft_value, log_prob = self._soft_value(obs, self.critic.fixed, alpha)
        actor_loss = -soft_value.mean()
        step("actor", actor_loss)

        entropy = -log_prob.detach().mean()
        if self.learns_entropy_weight:
            step("alpha", self.log_alpha * (entropy - self.entropy_goal))

        polyak_update(self.target, self.critic, tau=self.tau)
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "entropy": entropy,
            "entropy_weight": alpha,
            "q_mean": value.detach().mean(),
        }

    def _value(self, obs: ObsTensor, action: Tensor) -> Tensor:
        """[2, N], what the critics say of the actions that were taken."""
        if self.bounds is not None:
            value: Tensor = self.critic(obs, self.bounds.from_env(action))
            return value
        values: Tensor = self.critic(obs)
        return values.gather(2, action.long().expand(2, -1).unsqueeze(2)).squeeze(2)

    def _soft_value(self, obs: ObsTensor, critic: Callable[..., Tensor], alpha: Tensor) -> tuple[Tensor, Tensor]:
        """V(s) = E[min Q(s, a) - alpha log pi(a | s)] and E[log pi(a | s)], [N] each.

        The expectation over the policy is exact for Discrete actions, and of one sample for Box.
        """
        policy = self.policy(obs)
        if self.bounds is not None:
            action, log_prob = policy.sample_with_log_prob()
            return critic(obs, action).amin(dim=0) - alpha * log_prob, log_prob
        log_probs, values = policy.log_probs, critic(obs).amin(dim=0)
        probs = log_probs.exp()
        return (probs * (values - alpha * log_probs)).sum(dim=1), (probs * log_probs).sum(dim=1)

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam, one for each part."""
        optimizers: dict[str, Optimizer] = {
            "critic": Adam(self.critic.parameters(), lr=self.lr),
            "actor": Adam(self.policy.parameters(), lr=self.lr),
        }
        if self.learns_entropy_weight:
            optimizers["alpha"] = Adam([self.log_alpha], lr=self.lr)
        return optimizers

    def make_memory(self, num_envs: int) -> ReplayMemory:
        """A uniform replay memory with the agent's pace."""
        return replay_memory(self, num_envs)
