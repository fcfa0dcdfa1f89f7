"""TD3 on Pendulum-v1: a learning step each env step, batch 256, 256-256 relu, the same numbers for all."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks import pendulum
from tests.benchmarks.pendulum import DISCOUNT, LR, TAU

UNIT = "env steps"
AMOUNT = 1_500
NOISE = 0.1


def ours(steps: int) -> float:
    """The whole `Trainer.fit`."""
    return pendulum.ours("TD3", steps, noise_std=NOISE)


def ours_compiled(steps: int) -> float:
    """The same with `compile=True`."""
    return pendulum.ours_compiled("TD3", steps, noise_std=NOISE)


def tight(steps: int) -> float:
    """A plain loop."""
    critics = pendulum.Part(pendulum.network(4, 1), pendulum.network(4, 1))
    actor = pendulum.Part(nn.Sequential(*pendulum.network(3, 1), nn.Tanh()))
    (policy,), (target_policy,) = actor.networks, actor.targets
    num_updates = 0

    def act(obs: Tensor) -> Tensor:
        action = policy(obs)
        return (action + NOISE * torch.randn_like(action)).clamp(-1, 1)

    def learn(batch: dict[str, Tensor]) -> None:
        nonlocal num_updates
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(batch["action"])).clamp(-0.5, 0.5)
            action = (target_policy(batch["next_obs"]) + noise).clamp(-1, 1)
            next_value = torch.minimum(*critics.values(batch["next_obs"], action, target=True))
            target = batch["reward"] + DISCOUNT * next_value
        values = critics.values(batch["obs"], batch["action"])
        critics.minimise(F.mse_loss(values[0], target) + F.mse_loss(values[1], target))
        num_updates += 1
        if num_updates % 2 == 0:
            critics.frozen(is_frozen=True)
            action = policy(batch["obs"])
            actor.minimise(-critics.networks[0](torch.cat([batch["obs"], action], dim=1)).mean())
            critics.frozen(is_frozen=False)
            critics.follow()
            actor.follow()

    return pendulum.tight_loop(steps, act, learn)


def sb3(steps: int) -> float:
    """Stable-Baselines3."""
    from stable_baselines3 import TD3
    from stable_baselines3.common.noise import NormalActionNoise

    from tests.benchmarks.peers import learn_sb3

    noise = NormalActionNoise(np.zeros(1), np.full(1, NOISE))
    return learn_sb3(TD3("MlpPolicy", "Pendulum-v1", action_noise=noise, **pendulum.sb3_arguments()), steps)


def pfrl(steps: int) -> float:
    """PFRL."""
    import pfrl as peer

    from tests.benchmarks.peers import train_pfrl

    policy = nn.Sequential(*pendulum.network(3, 1), nn.Tanh(), peer.policies.DeterministicHead())
    agent = peer.agents.TD3(
        policy=policy,
        policy_optimizer=torch.optim.Adam(policy.parameters(), lr=LR),
        explorer=peer.explorers.AdditiveGaussian(scale=NOISE, low=-1.0, high=1.0),
        **pendulum.pfrl_arguments(),
    )
    return train_pfrl(agent, pendulum.make_env, steps)


def tianshou(steps: int) -> float:
    """Tianshou."""
    from tianshou.algorithm import TD3
    from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.exploration import GaussianNoise
    from tianshou.utils.net.continuous import ContinuousActorDeterministic, ContinuousCritic

    nets, optim = pendulum.tianshou_nets(), AdamOptimizerFactory(lr=LR)
    actor = ContinuousActorDeterministic(preprocess_net=next(nets), action_shape=1)
    policy = ContinuousDeterministicPolicy(
        actor=actor,
        exploration_noise=GaussianNoise(sigma=NOISE),
        action_space=gym.make("Pendulum-v1").action_space,
    )
    algorithm = TD3(
        policy=policy,
        policy_optim=optim,
        critic=ContinuousCritic(preprocess_net=next(nets)),
        critic_optim=optim,
        critic2=ContinuousCritic(preprocess_net=next(nets)),
        critic2_optim=optim,
        tau=TAU,
        gamma=DISCOUNT,
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
