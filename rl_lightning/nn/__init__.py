"""Networks: observations in, distributions and values out."""

from __future__ import annotations

from rl_lightning.nn.actor_critic import ActorCritic
from rl_lightning.nn.distributions import Bernoulli, Categorical, Distribution, Gaussian
from rl_lightning.nn.encoders import Encoder, make_encoder
from rl_lightning.nn.heads import make_policy_head
from rl_lightning.nn.layers import Layers
from rl_lightning.nn.mlp import init_orthogonal, mlp
from rl_lightning.nn.noisy import NoisyLinear
from rl_lightning.nn.normalization import Normalization, RunningMoments
from rl_lightning.nn.q_network import QNetwork
from rl_lightning.nn.returns import CategoricalReturn, MeanReturn, QuantileReturn, Returns

__all__ = [
    "ActorCritic",
    "Bernoulli",
    "Categorical",
    "CategoricalReturn",
    "Distribution",
    "Encoder",
    "Gaussian",
    "Layers",
    "MeanReturn",
    "NoisyLinear",
    "Normalization",
    "QNetwork",
    "QuantileReturn",
    "Returns",
    "RunningMoments",
    "init_orthogonal",
    "make_encoder",
    "make_policy_head",
    "mlp",
]
