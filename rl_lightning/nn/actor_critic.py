"""A policy and a value function over the same observations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from rl_lightning.nn.distributions import Distribution
from rl_lightning.nn.encoders import make_encoder, passes_through
from rl_lightning.nn.heads import CategoricalHead, GaussianHead, make_policy_head
from rl_lightning.nn.layers import Layers, hooks_of
from rl_lightning.nn.mlp import init_orthogonal, mlp
from rl_lightning.types import Array, Extras, ObsArray, ObsTensor


class PassedOnHost(NamedTuple):
    """What `ActorCritic.pass_on_host` found.

    Attributes:
        parameters: of the network.
        outputs: log-probability, entropy and value, each [N].
        back: from the derivatives of a loss by these three, [N] each (of the first two also a number), to its gradients
            by `parameters`.
    """

    parameters: list[Tensor]
    outputs: tuple[Array, Array, Array]
    back: Callable[[Any, Any, Any], list[Tensor]]


class ActorCritic(nn.Module):
    """pi(a | s) and V(s). Only the convolutions over images, where there are any, are shared by the two.

    Orthogonal weights: gain sqrt(2) in hidden layers, 0.01 for the policy, 1 for the value.

    Args:
        observation_space, action_space: of one env.
        hidden_sizes, activation: of the policy's and of the value function's own layers (`mlp`).
    Raises:
        ConfigurationError: a space that no encoder or head serves.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        *,
        hidden_sizes: Sequence[int],
        activation: str,
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(observation_space)
        policy_layers, num_features = mlp(self.encoder.out_features, hidden_sizes, activation)
        value_layers, _ = mlp(self.encoder.out_features, hidden_sizes, activation)
        value_head = nn.Linear(num_features, 1)
        for layer in (self.encoder, *policy_layers, *value_layers):
            init_orthogonal(layer, gain=math.sqrt(2))
        init_orthogonal(value_head, gain=1.0)
        self.policy_layers = Layers(*policy_layers, *make_policy_head(num_features, action_space))
        self.value_layers = Layers(*value_layers, value_head)
        self.is_bounded = isinstance(action_space, spaces.Box)
        if isinstance(action_space, spaces.Box):
            self.register_buffer("low", torch.from_numpy(action_space.low).float(), persistent=False)
            self.register_buffer("high", torch.from_numpy(action_space.high).float(), persistent=False)

    def forward(self, obs: ObsTensor) -> tuple[Distribution, Tensor]:
        """The policy at B observations and their values [B], in one pass."""
        features = self.encoder(obs)
        return self.policy_layers(features), self.value_layers(features).squeeze(-1)

    def policy(self, obs: ObsTensor) -> Distribution:
        """The policy alone."""
        policy: Distribution = self.policy_layers(self.encoder(obs))
        return policy

    def value(self, obs: ObsTensor) -> Tensor:
        """The values [B] alone."""
        value: Tensor = self.value_layers(self.encoder(obs)).squeeze(-1)
        return value

    def act(self, obs: ObsTensor, *, explore: bool, with_log_prob: bool = False) -> tuple[Tensor, Extras]:
        """Sample from the policy, or take its mode.

        Returns:
            action [B, *A] as the env takes it. For Box it is clipped to the bounds, and the extras hold the "sample"
            before clipping: that is what the policy chose, and so what it learns from. If asked for, they also hold
            "log_prob" [B] of what was chosen.
        """
        policy = self.policy(obs)
        sample = policy.sample() if explore else policy.mode()
        extras = {"log_prob": policy.log_prob(sample)} if with_log_prob else {}
        if self.is_bounded:
            return sample.clamp(self.low, self.high), {"sample": sample, **extras}
        return sample, extras

    def act_on_host(self, obs: ObsArray, *, explore: bool) -> tuple[Array, dict[str, Array]] | None:
        """`act` in NumPy, for small networks on the host; None where that is not possible."""
        if not passes_through(self.encoder, obs):
            return None
        assert not isinstance(obs, dict)
        started = self.policy_layers.start_on_host(obs)
        if started is None or len(started[1]) != 1:
            return None
        numbers, (head,) = started
        if not isinstance(head, CategoricalHead | GaussianHead):
            return None
        sample = head.act_on_host(numbers, explore=explore)
        if sample is None or not self.is_bounded:
            return None if sample is None else (sample, {})
        return sample.clip(self.low.numpy(), self.high.numpy()), {"sample": sample}

    def pass_on_host(self, obs: Array, action: Array, *, max_products: int) -> PassedOnHost | None:
        """Log-probabilities, entropies and values without autograd, with the way back; None where that cannot be.

        Args:
            obs, action: [N, *O] and [N, *A].
            max_products: rows times weights at most, of each of the two networks.
        """
        if not passes_through(self.encoder, obs) or any(hooks_of(self)):
            return None
        layers = self.policy_layers, self.value_layers
        if not all(isinstance(each, Layers) for each in layers):
            return None
        policy, value = (each.pass_on_host(obs, max_products=max_products) for each in layers)
        if policy is None or value is None or len(policy.others) != 1 or value.others:
            return None
        head = policy.others[0]
        if not (type(head) is CategoricalHead or type(head) is GaussianHead) or any(hooks_of(head)):
            return None
        judged = head.judge_on_host(policy.output, action)
        if judged is None:
            return None

        def back(by_log_prob: Any, by_entropy: Any, by_value: Any) -> list[Tensor]:
            of_numbers, of_head = judged.back(by_log_prob, by_entropy)
            return [*policy.back(of_numbers), *value.back(by_value[:, None]), *map(torch.from_numpy, of_head)]

        parameters = [*policy.parameters, *value.parameters, *head.parameters()]
        return PassedOnHost(parameters, (judged.log_prob, judged.entropy, value.output[:, 0]), back)
