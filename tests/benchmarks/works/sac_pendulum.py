"""SAC on Pendulum-v1: a learning step each env step, batch 256, 256-256 relu, the same numbers for all."""

from __future__ import annotations

import math

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks import pendulum
from tests.benchmarks.pendulum import DISCOUNT, LR, TAU

UNIT = "env steps"
AMOUNT = 1_500


def ours(steps: int) -> float:
    """The whole `Trainer.fit`."""
    return pendulum.ours("SAC", steps)


def ours_compiled(steps: int) -> float:
    """The same with `compile=True`."""
    return pendulum.ours_compiled("SAC", steps)


def tight(steps: int) -> float:
    """A plain loop."""
    critics = pendulum.Part(pendulum.network(4, 1), pendulum.network(4, 1))
    actor, log_alpha = pendulum.Part(pendulum.network(3, 2)), nn.Parameter(torch.zeros(()))
    (policy,) = actor.networks
    temperature = torch.optim.Adam([log_alpha], lr=LR, fused=True)

    def sample(obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = policy(obs).chunk(2, dim=-1)
        log_std = log_std.clamp(-20, 2)
        noise = torch.randn_like(mean)
        x = mean + log_std.exp() * noise
        squash = 2 * (math.log(2) - x - F.softplus(-2 * x))
        return x.tanh(), -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - squash

    def learn(batch: dict[str, Tensor]) -> None:
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            action, log_prob = sample(batch["next_obs"])
            next_value = torch.minimum(*critics.values(batch["next_obs"], action, target=True)) - alpha * log_prob
            target = batch["reward"] + DISCOUNT * next_value
        values = critics.values(batch["obs"], batch["action"])
        critics.minimise(0.5 * (F.mse_loss(values[0], target) + F.mse_loss(values[1], target)))
        critics.frozen(is_frozen=True)
        action, log_prob = sample(batch["obs"])
        actor.minimise((alpha * log_prob - torch.minimum(*critics.values(batch["obs"], action))).mean())
        critics.frozen(is_frozen=False)
        log_alpha.grad = -(log_prob.detach().mean() - 1)
        temperature.step()
        critics.follow()

    return pendulum.tight_loop(steps, lambda obs: sample(obs)[0], learn)


def sb3(steps: int) -> float:
    """Stable-Baselines3."""
    from stable_baselines3 import SAC

    from tests.benchmarks.peers import learn_sb3

    return learn_sb3(SAC("MlpPolicy", "Pendulum-v1", **pendulum.sb3_arguments()), steps)


def pfrl(steps: int) -> float:
    """PFRL."""
    import pfrl as peer
    from torch.distributions import Independent, Normal, TransformedDistribution
    from torch.distributions.transforms import TanhTransform

    from tests.benchmarks.peers import train_pfrl

    def squashed(x: Tensor) -> TransformedDistribution:
        mean, log_std = x.chunk(2, dim=1)
        normal = Independent(Normal(mean, log_std.clamp(-20, 2).exp()), 1)
        return TransformedDistribution(normal, [TanhTransform(cache_size=1)])

    policy = nn.Sequential(*pendulum.network(3, 2), peer.nn.Lambda(squashed))
    agent = peer.agents.SoftActorCritic(
        policy=policy,
        policy_optimizer=torch.optim.Adam(policy.parameters(), lr=LR),
        entropy_target=-1,
        temperature_optimizer_lr=LR,
        **pendulum.pfrl_arguments(),
    )
    return train_pfrl(agent, pendulum.make_env, steps)


def tianshou(steps: int) -> float:
    """Tianshou."""
    from tianshou.algorithm import SAC
    from tianshou.algorithm.modelfree.sac import AutoAlpha, SACPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic

    nets, optim = pendulum.tianshou_nets(), AdamOptimizerFactory(lr=LR)
    actor = ContinuousActorProbabilistic(
        preprocess_net=next(nets), action_shape=1, unbounded=True, conditioned_sigma=True
    )
    algorithm = SAC(
        policy=SACPolicy(actor=actor, action_space=gym.make("Pendulum-v1").action_space),
        policy_optim=optim,
        critic=ContinuousCritic(preprocess_net=next(nets)),
        critic_optim=optim,
        critic2=ContinuousCritic(preprocess_net=next(nets)),
        critic2_optim=optim,
        tau=TAU,
        gamma=DISCOUNT,
        alpha=AutoAlpha(target_entropy=-1.0, log_alpha=0.0, optim=optim),
    )
    return pendulum.run_tianshou_off_policy(algorithm, steps)


CONTENDERS = {
    "ours": ours,
    "ours, compiled": ours_compiled,
    "tight loop": tight,
    "SB3": sb3,
    "PFRL": pfrl,
    "Tianshou": tianshou,
}
