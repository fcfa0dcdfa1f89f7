"""Networks: observations in, distributions and values out."""

from __future__ import annotations

from rl_lightning.nn.actor_critic import ActorCritic
from rl_lightning.nn.bounds import ActionBounds
from rl_lightning.nn.critics import Critics
from rl_lightning.nn.distributions import Bernoulli, Categorical, Distribution, Gaussian
from rl_lightning.nn.encoders import Encoder, make_encoder
from rl_lightning.nn.exploration import GaussianNoise, Noise, OrnsteinUhlenbeckNoise, UniformWarmUp, make_noise
from rl_lightning.nn.heads import CategoricalHead, make_policy_head
from rl_lightning.nn.layers import Layers
from rl_lightning.nn.mlp import init_orthogonal, mlp
from rl_lightning.nn.noisy import NoisyLinear
from rl_lightning.nn.normalization import Normalization, RunningMoments
from rl_lightning.nn.policy import Policy
from rl_lightning.nn.q_network import QNetwork
from rl_lightning.nn.returns import CategoricalReturn, MeanReturn, QuantileReturn, Returns
from rl_lightning.nn.squashed import SquashedGaussian, SquashedGaussianHead

__all__ = [
    "ActionBounds",
    "ActorCritic",
    "Bernoulli",
    "Categorical",
    "CategoricalHead",
    "CategoricalReturn",
    "Critics",
    "Distribution",
    "Encoder",
    "Gaussian",
    "GaussianNoise",
    "Layers",
    "MeanReturn",
    "Noise",
    "NoisyLinear",
    "Normalization",
    "OrnsteinUhlenbeckNoise",
    "Policy",
    "QNetwork",
    "QuantileReturn",
    "Returns",
    "RunningMoments",
    "SquashedGaussian",
    "SquashedGaussianHead",
    "UniformWarmUp",
    "init_orthogonal",
    "make_encoder",
    "make_noise",
    "make_policy_head",
    "mlp",
]
