"""PFRL's agents on small networks, and what its loops need to step gymnasium's envs."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pfrl
import torch
from torch import nn


class Serial(pfrl.env.VectorEnv):
    """Several old envs, one after the other."""

    def __init__(self, envs):
        self.envs, self.num_envs, self.last = envs, len(envs), [None] * len(envs)

    def step(self, actions):
        results = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        self.last, rewards, dones, infos = map(list, zip(*results, strict=True))
        return list(self.last), rewards, dones, infos

    def reset(self, mask=None):
        for i, env in enumerate(self.envs):
            if mask is None or not mask[i]:
                self.last[i] = env.reset()
        return list(self.last)

    def seed(self, seeds):
        raise NotImplementedError

    def close(self):
        for env in self.envs:
            env.close()


def observation(obs):
    return np.asarray(obs, np.float32)


def dqn(seed=0):
    pfrl.utils.set_random_seed(seed)
    head = pfrl.q_functions.DiscreteActionValueHead()
    network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2), head)
    explorer = pfrl.explorers.LinearDecayEpsilonGreedy(1.0, 0.05, 5_000, lambda: np.random.randint(2))
    return pfrl.agents.DQN(
        network,
        torch.optim.Adam(network.parameters(), lr=1e-3),
        pfrl.replay_buffers.ReplayBuffer(50_000),
        0.99,
        explorer,
        replay_start_size=100,
        target_update_interval=500,
        phi=observation,
    )


def actor_critic(policy_outputs=2, inputs=4):
    policy = pfrl.policies.SoftmaxCategoricalHead()
    return pfrl.nn.Branched(
        nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, policy_outputs), policy),
        nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 1)),
    )


def ppo(seed=0):
    pfrl.utils.set_random_seed(seed)
    network = actor_critic()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    return pfrl.agents.PPO(
        network, optimizer, update_interval=128, minibatch_size=32, epochs=2, phi=observation,
        act_deterministically=True,
    )  # fmt: skip


def a2c(seed=0, num_envs=2):
    pfrl.utils.set_random_seed(seed)
    network = actor_critic()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    return pfrl.agents.A2C(network, optimizer, gamma=0.99, num_processes=num_envs, update_steps=5, phi=observation)


def sac(seed=0):
    pfrl.utils.set_random_seed(seed)

    def squashed(output):
        mean, log_scale = torch.chunk(output, 2, dim=1)
        normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_scale.clamp(-5, 2).exp()), 1)
        transforms = [torch.distributions.transforms.TanhTransform(cache_size=1)]
        return torch.distributions.TransformedDistribution(normal, transforms)

    def critic():
        return nn.Sequential(pfrl.nn.ConcatObsAndAction(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    policy = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2), pfrl.nn.lmbda.Lambda(squashed))
    networks = policy, critic(), critic()
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in networks]
    return pfrl.agents.SoftActorCritic(
        *networks, *optimizers, pfrl.replay_buffers.ReplayBuffer(10_000), 0.99, replay_start_size=50,
        minibatch_size=16, burnin_action_func=lambda: np.random.uniform(-1, 1, 1).astype(np.float32), phi=observation,
    )  # fmt: skip


def weights(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.model.parameters()])


def seeded_env(seed=1):
    env = gym.make("CartPole-v1")
    env.reset(seed=seed)
    return env


def a3c(process_idx=0):
    """PFRL's own example's network and optimizer, smaller; it is made the same for every process."""
    network = actor_critic()
    optimizer = pfrl.optimizers.SharedRMSpropEpsInsideSqrt(network.parameters(), lr=7e-4, eps=1e-1, alpha=0.99)
    return pfrl.agents.A3C(network, optimizer, t_max=5, gamma=0.99, beta=1e-2, phi=observation)
