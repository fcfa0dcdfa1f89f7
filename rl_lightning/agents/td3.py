"""Twin delayed deep deterministic policy gradient (Fujimoto et al., 2018, arXiv:1802.09477)."""

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
from rl_lightning.types import Array, Batch, Extras, Metrics, ObsArray, ObsTensor, StepFn, check_counts


class TD3(Agent):
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
        tau: how far the targets move to the trained networks each time.
        policy_delay: learning steps of the critics for each of the policy and the targets.
        noise: what training adds to actions that are scaled to -1..1, "gaussian" or "ornstein_uhlenbeck".
        noise_std: its standard deviation; of what is new in each step, where it wanders.
        target_noise_std: of the normal noise on the next action, which smooths the target.
        target_noise_clip: the most that this noise may be.
        max_grad_norm: the norm that each optimizer's gradient is clipped to. None: no limit.
        normalize_obs: by mean and standard deviation of all observations that it acted on in training
            (`nn.Normalization`); the memory has them as they came.
        hidden_sizes: of the policy and of each critic; the default is that of the paper's code.
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
        policy_delay: int = 2,
        noise: Noise = "gaussian",
        noise_std: float = 0.1,
        target_noise_std: float = 0.2,
        target_noise_clip: float = 0.5,
        max_grad_norm: float | None = None,
        normalize_obs: bool = False,
        hidden_sizes: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        check_tau(self, tau)
        check_counts(policy_delay=policy_delay)
        check_not_negative(
            self, noise_std=noise_std, target_noise_std=target_noise_std, target_noise_clip=target_noise_clip
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
        self.policy_delay = policy_delay
        self.target_noise_std = target_noise_std
        self.target_noise_clip = target_noise_clip
        self.max_grad_norm = max_grad_norm
        self.normalize_obs = normalize_obs
        if normalize_obs:
            self.async_modes = ("shared",)
        self.hidden_sizes = hidden_sizes
        self.num_updates = 0
        self.warm_up = UniformWarmUp(learning_starts)
        self.noise = make_noise(noise)
        self.add_tunable("noise_std", noise_std)

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the policy, the two critics, and the targets of all three."""
        self.observation_space, self.action_space = observation_space, action_space
        if not isinstance(action_space, spaces.Box):
            raise self.unsupported("a Box action space")
        self.bounds = ActionBounds(action_space)
        size, sizes = self.bounds.size, self.hidden_sizes
        self.normalization = Normalization(observation_space, obs=self.normalize_obs, reward=False)
        self.policy = Policy(observation_space, size, head=nn.Tanh(), hidden_sizes=sizes)
        self.critic = Critics(observation_space, action_size=size, num_critics=2, hidden_sizes=sizes)
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
            limit = self.target_noise_clip
            noise = (torch.randn_like(action) * self.target_noise_std).clamp(-limit, limit)
            next_action = (self.target_policy(next_obs) + noise).clamp(-1, 1)
            next_value = self.target_critic(next_obs, next_action).amin(dim=0)
            target = bootstrapped(batch, next_value, discount=self.discount)
        value = self.critic(obs, action)
        critic_loss = squared_error(value, target, batch)
        step("critic", critic_loss)
        metrics = {"critic_loss": critic_loss.detach(), "q_mean": value.detach().mean()}

        self.num_updates += 1
        if self.num_updates % self.policy_delay == 0:
            actor_loss = -self.critic.fixed(obs, self.policy(obs), num_critics=1).mean()
            step("actor", actor_loss)
            metrics["actor_loss"] = actor_loss.detach()
            polyak_update(self.target_critic, self.critic, tau=self.tau)
            polyak_update(self.target_policy, self.policy, tau=self.tau)
        return metrics

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam, one for the critics and one for the policy."""
        return critic_and_actor(self)

    def make_memory(self, num_envs: int) -> ReplayMemory:
        """A uniform replay memory with the agent's pace."""
        return replay_memory(self, num_envs)

    def get_extra_state(self) -> dict[str, int]:
        """The number of learning steps so far: it says when the policy is next learned."""
        return {"num_updates": self.num_updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Put back what `get_extra_state` gave."""
        self.num_updates = state["num_updates"]
