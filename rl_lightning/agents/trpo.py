"""Trust region policy optimisation (Schulman et al., 2015, arXiv:1502.05477).

Its advantages are those of generalised advantage estimation (Schulman et al., 2016, arXiv:1506.02438).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from gymnasium import Space
from torch import Tensor, distributed
from torch.nn import Parameter
from torch.nn import functional as F
from torch.optim import Optimizer

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.on_policy import (
    advantages_of_rollout,
    chosen_action,
    make_actor_critic,
    make_normalization,
    values_of_rollout,
)
from rl_lightning.functional import conjugate_gradient, explained_variance, normalize
from rl_lightning.memory import RolloutMemory
from rl_lightning.nn import Distribution
from rl_lightning.optim import Adam
from rl_lightning.transfer import to_device
from rl_lightning.types import (
    Array,
    Batch,
    ConfigurationError,
    Extras,
    Metrics,
    ObsArray,
    ObsTensor,
    StepFn,
    check_counts,
)

BACKTRACK = 0.5
"""How much of the last step the line search tries next."""


class TRPO(Agent):
    """For Discrete, MultiDiscrete, MultiBinary and Box actions; one optimizer, "value".

    The policy has none: each `update`, on a whole rollout, moves it by a natural gradient step whose length follows
    from `max_kl`. Gradient clipping and the learning rate are of the value function alone, which learns afterwards.
    Convolutions over images belong to the policy; the value function learns from their features.

    Args:
        lr: Adam's learning rate, of the value function.
        discount: per env step.
        trace_decay: lambda of the advantage estimates (`functional.gae`).
        num_steps: length of a rollout, in steps of each env.
        num_epochs: the value function's passes over each rollout.
        num_minibatches: its learning steps in a pass.
        max_kl: how far the policy may move in an update: its mean KL divergence from the old one, in nats.
        damping: added to the diagonal of the Fisher matrix.
        num_products: products with the Fisher matrix, each by a pass through the network, to find the direction.
        num_backtracks: shorter steps to try where the full one moves too far or is no better; after them, none.
        max_grad_norm: the norm that the gradient of the value function is clipped to. None: no limit.
        normalize_advantage: to mean 0 and standard deviation 1 in each rollout.
        normalize_obs: by mean and standard deviation of all observations before the rollout (`nn.Normalization`).
        normalize_reward: by the standard deviation of the discounted return.
        hidden_sizes, activation: of the policy network and of the value network.
    Raises:
        ConfigurationError: a number out of range.
    """

    explained_variance: Tensor
    async_modes = ()  # a line search on parameters that others move at the same time finds nothing
    why_not_compiled = "a line search decides by what it has found"

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        discount: float = 0.99,
        trace_decay: float = 0.95,
        num_steps: int = 1024,
        num_epochs: int = 10,
        num_minibatches: int = 16,
        max_kl: float = 0.01,
        damping: float = 0.1,
        num_products: int = 15,
        num_backtracks: int = 10,
        max_grad_norm: float | None = None,
        normalize_advantage: bool = True,
        normalize_obs: bool = False,
        normalize_reward: bool = False,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        check_counts(num_epochs=num_epochs, num_minibatches=num_minibatches, num_products=num_products)
        if not (max_kl > 0 and damping >= 0 and num_backtracks >= 0):
            given = f"max_kl={max_kl}, damping={damping}, num_backtracks={num_backtracks}"
            raise ConfigurationError(f"TRPO({given}): max_kl must be above 0, the others at least 0.")
        self.lr = lr
        self.discount = discount
        self.trace_decay = trace_decay
        self.num_steps = num_steps
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.max_kl = max_kl
        self.damping = damping
        self.num_products = num_products
        self.num_backtracks = num_backtracks
        self.max_grad_norm = max_grad_norm
        self.normalize_advantage = normalize_advantage
        self.normalize_obs = normalize_obs
        self.normalize_reward = normalize_reward
        self.hidden_sizes = hidden_sizes
        self.activation = activation
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
        """What to learn from a rollout: fields obs, action, advantage, return, each [T, B, ...]."""
        rollout = self.normalization.rollout(to_device(rollout, self.explained_variance.device))
        value = values_of_rollout(self.network, rollout)
        decays = {"discount": self.discount, "trace_decay": self.trace_decay}
        advantage = advantages_of_rollout(self.network, rollout, value, **decays)
        target = advantage + value
        self.explained_variance = explained_variance(value, target)
        return {"obs": rollout["obs"], "action": chosen_action(rollout), "advantage": advantage, "return": target}

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        """Move the policy once, then fit the value function, to what `prepare` made of a rollout, [N, ...]."""
        with torch.autocast(self.explained_variance.device.type, enabled=False):  # curvature needs its digits
            metrics = self._improve_policy(batch)
        with torch.no_grad():
            features = self.network.encoder(batch["obs"])
        for rows in self._minibatches(len(features)):
            value = self.network.value_layers(features[rows]).squeeze(-1)
            value_loss = F.mse_loss(value, batch["return"][rows])
            step("value", value_loss)
        return {**metrics, "value_loss": value_loss.detach(), "explained_variance": self.explained_variance}

    def _improve_policy(self, batch: Batch) -> Metrics:
        """Appendix C: the natural gradient's direction, the length that `max_kl` allows, then a line search."""
        obs, action = batch["obs"], batch["action"]
        advantage = normalize(batch["advantage"]) if self.normalize_advantage else batch["advantage"]
        policy = self.network.policy(obs)
        old = policy.detach()
        old_log_prob = old.log_prob(action)

        def surrogate(policy: Distribution) -> Tensor:
            return ((policy.log_prob(action) - old_log_prob).exp() * advantage).mean()

        parameters = self.policy_parameters()
        gradient = _gradient(surrogate(policy), parameters)
        # Its value and gradient are 0 here, its Hessian is the Fisher matrix.
        kl_gradient = _gradient(old.kl_divergence(policy).mean(), parameters, create_graph=True)

        def fisher_product(vector: Tensor) -> Tensor:
            return _over_ranks(_gradient(kl_gradient @ vector, parameters)) + self.damping * vector

        gradient = _over_ranks(gradient)
        direction = conjugate_gradient(fisher_product, gradient, num_steps=self.num_products)
        curvature = direction @ fisher_product(direction)
        start = _flatten(parameters)
        full_step = direction * (2 * self.max_kl / curvature).sqrt() if curvature > 0 else torch.zeros_like(start)
        with torch.no_grad():
            before = _over_ranks(surrogate(old))

            def try_step(share: float) -> tuple[Tensor, Tensor]:
                _assign(parameters, start + share * full_step)
                moved = self.network.policy(obs)
                return _over_ranks(surrogate(moved)) - before, _over_ranks(old.kl_divergence(moved).mean())

            share, improvement, kl = self._search(try_step)
            if share == 0.0:
                _assign(parameters, start)
        entropy = old.entropy().mean()
        return {"improvement": improvement, "kl": kl, "step_share": share, "entropy": entropy}

    def _search(self, try_step: Callable[[float], tuple[Tensor, Tensor]]) -> tuple[float, Tensor, Tensor]:
        """The longest share of the full step that is better and within `max_kl`; 0 where none is."""
        share = 1.0
        for _ in range(1 + self.num_backtracks):
            improvement, kl = try_step(share)
            if improvement > 0 and kl <= self.max_kl:
                return share, improvement, kl
            share *= BACKTRACK
        return 0.0, torch.zeros_like(improvement), torch.zeros_like(kl)

    def _minibatches(self, num_rows: int) -> Iterator[Tensor]:
        device = self.explained_variance.device
        for _ in range(self.num_epochs):
            yield from torch.randperm(num_rows, device=device).tensor_split(min(self.num_minibatches, num_rows))

    def policy_parameters(self) -> list[Parameter]:
        """What an update of the policy moves."""
        return [*self.network.encoder.parameters(), *self.network.policy_layers.parameters()]

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam, for the value function alone."""
        return {"value": Adam(self.network.value_layers.parameters(), lr=self.lr)}

    def make_memory(self, num_envs: int) -> RolloutMemory:
        """Rollouts of `num_steps` steps of each env, each learned from at once."""
        return RolloutMemory(self.num_steps, num_envs, prepare=self.prepare)


def _gradient(value: Tensor, parameters: list[Parameter], *, create_graph: bool = False) -> Tensor:
    """[P], of all parameters one after another; the graph of `value` stays."""
    return _flatten(torch.autograd.grad(value, parameters, retain_graph=True, create_graph=create_graph))


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _assign(parameters: list[Parameter], flat: Tensor) -> None:
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))


def _over_ranks(mean: Tensor) -> Tensor:
    """The mean over all processes that train together, as `step` does with gradients."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean
