"""Deep deterministic policy gradient (Lillicrap et al., 2016, arXiv:1509.02971)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from gymnasium import Space, spaces
from torch import Tensor, nn
from torch.optim import Optimizer

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.off_policy import (
    act_deterministically,
    act_deterministically_on_host,
    bootstrapped,
    check_not_negative,
    check_tau,
    critic_and_actor,
    replay_memory,
    squared_error,
    target_of,
)
from rl_lightning.functional import polyak_update
from rl_lightning.memory import ReplayMemory
from rl_lightning.nn import ActionBounds, Critics, Noise, Normalization, Policy, UniformWarmUp, make_noise
from rl_lightning.types import Array, Batch, Extras, Metrics, ObsArray, ObsTensor, StepFn


class DDPG(Agent):
    """For Box actions with finite bounds; optimizers "critic" and "actor".

    Tunables: `noise_std`.

    Args:
        lr: Adam's learning rate, of both.
        discount: per env step.
        num_steps: rewards to sum before bootstrapping (n-step return).
        buffer_size: transitions that the replay memory keeps.
        batch_size: transitions in a learning step.
        learning_starts: env steps before the first learning step; the actions in these are uniformly random.
        update_every: env steps between two learning phases.
        updates_per_step: learning steps for each env step, on average; a phase has `update_every` times as many.
        tau: how far the targets move to the trained networks in each learning step.
        noise: what training adds to actions that are scaled to -1..1, "gaussian" or "ornstein_uhlenbeck".
        noise_std: its standard deviation; of what is new in each step, where it wanders.
        max_grad_norm: the norm that each optimizer's gradient is clipped to. None: no limit.
        normalize_obs: by mean and standard deviation of all observations that it acted on in training
            (`nn.Normalization`); the memory has them as they came.
        hidden_sizes: of the policy and of the critic.
    Raises:
        ConfigurationError: a number out of range, or an unknown noise.
    """

    noise_std: Tensor
    async_modes: Collection[str] = ("shared", "actor_learner")

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        discount: float = 0.99,
        num_steps: int = 1,
        buffer_size: int = 1_000_000,
        batch_size: int = 256,
        learning_starts: int = 1_000,
        update_every: int = 1,
        updates_per_step: float = 1.0,
        tau: float = 0.005,
        noise: Noise = "ornstein_uhlenbeck",
        noise_std: float = 0.2,
        max_grad_norm: float | None = None,
        normalize_obs: bool = False,
        hidden_sizes: Sequence[int] = (400, 300),
    ) -> None:
        super().__init__()
        check_tau(self, tau)
        check_not_negative(self, noise_std=noise_std)
        self.lr = lr
        self.discount = discount
        self.num_steps = num_steps
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.update_every = update_every
        self.updates_per_step = updates_per_step
        self.tau = tau
        self.max_grad_norm = max_grad_norm
        self.normalize_obs = normalize_obs
        if normalize_obs:
            self.async_modes = ("shared",)
        self.hidden_sizes = hidden_sizes
        self.warm_up = UniformWarmUp(learning_starts)
        self.noise = make_noise(noise)
        self.add_tunable("noise_std", noise_std)

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the policy, the critic, and the targets of both."""
        self.observation_space, self.action_space = observation_space, action_space
        if not isinstance(action_space, spaces.Box):
            raise self.unsupported("a Box action space")
        self.bounds = ActionBounds(action_space)
        size, sizes = self.bounds.size, self.hidden_sizes
        self.normalization = Normalization(observation_space, obs=self.normalize_obs, reward=False)
        self.policy = Policy(observation_space, size, head=nn.Tanh(), hidden_sizes=sizes)
        self.critic = Critics(observation_space, action_size=size, num_critics=1, hidden_sizes=sizes)
        self.target_policy = target_of(self.policy)
        self.target_critic = target_of(self.critic)

    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        """The policy's action, in training with noise, and uniformly random at first."""
        return act_deterministically(self, obs, explore=explore)

    def act_on_host(self, obs: ObsArray, *, explore: bool) -> tuple[Array, dict[str, Array]] | None:
        return act_deterministically_on_host(self, obs, explore=explore)

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        """One learning step on a batch of obs, action, reward, next_obs, terminated, and n for n-step returns."""
        obs, next_obs = (self.normalization.obs(batch[name]) for name in ("obs", "next_obs"))
        action = self.bounds.from_env(batch["action"])

        with torch.no_grad():
            next_value = self.target_critic(next_obs, self.target_policy(next_obs)).squeeze(0)
            target = bootstrapped(batch, next_value, discount=self.discount)
        value = self.critic(obs, action)
        critic_loss = squared_error(value, target, batch)
        step("critic", critic_loss)

        actor_loss = -self.critic.fixed(obs, self.policy(obs)).mean()
        step("actor", actor_loss)

        polyak_update(self.target_critic, self.critic, tau=self.tau)
        polyak_update(self.target_policy, self.policy, tau=self.tau)
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "q_mean": value.detach().mean(),
        }

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam, one for the critic and one for the policy."""
        return critic_and_actor(self)

    def make_memory(self, num_envs: int) -> ReplayMemory:
        """A uniform replay memory with the agent's pace."""
        return replay_memory(self, num_envs)
