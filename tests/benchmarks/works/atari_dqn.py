"""DQN on Pong: the network of Mnih et al. (2015), a learning step of 32 every 4 env steps, 10,000 transitions.

One in twenty actions is random from the start, as later in training. Nothing is evaluated: a game takes longer than
this. With so few env steps the start still counts: measure with `atari_dqn=10000`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.benchmarks.atari import PLAIN, PONG, WRAPPERS, make_pong, register

UNIT = "env steps"
AMOUNT = 1_000
LR, DISCOUNT, BATCH, STARTS, CAPACITY = 1e-4, 0.99, 32, 100, 10_000
EVERY, TARGET, EPSILON, MAX_NORM = 4, 250, 0.05, 10.0


def ours(steps: int) -> float:
    """`Trainer.fit`."""
    from rl_lightning import DQN
    from rl_lightning.envs import GymEnvModule
    from tests.benchmarks.ours import fit

    register()
    agent = DQN(
        lr=LR,
        discount=DISCOUNT,
        buffer_size=CAPACITY,
        batch_size=BATCH,
        learning_starts=STARTS,
        update_every=EVERY,
        updates_per_step=1 / EVERY,
        target_update_every=TARGET,
        epsilon=EPSILON,
        final_epsilon=EPSILON,
        max_grad_norm=MAX_NORM,
        hidden_sizes=(),
    )
    return fit(agent, GymEnvModule(PONG, env_kwargs=PLAIN, wrappers=WRAPPERS), steps, evaluates=False)


def sb3(steps: int) -> float:
    """Stable-Baselines3, whose replay memory keeps each observation twice, as ours does."""
    from stable_baselines3 import DQN

    from tests.benchmarks.peers import learn_sb3

    model = DQN(
        "CnnPolicy",
        make_pong(),
        learning_rate=LR,
        gamma=DISCOUNT,
        buffer_size=CAPACITY,
        learning_starts=STARTS,
        batch_size=BATCH,
        train_freq=EVERY,
        gradient_steps=1,
        target_update_interval=TARGET * EVERY,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        max_grad_norm=MAX_NORM,
        device="cpu",
    )
    return learn_sb3(model, steps)


def pfrl(steps: int) -> float:
    """PFRL."""
    import pfrl as peer

    from tests.benchmarks.peers import train_pfrl

    register()
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()),
        nn.Linear(512, 6),
        peer.q_functions.DiscreteActionValueHead(),
    )
    agent = peer.agents.DQN(
        network,
        torch.optim.Adam(network.parameters(), lr=LR),
        peer.replay_buffers.ReplayBuffer(CAPACITY),
        DISCOUNT,
        peer.explorers.ConstantEpsilonGreedy(EPSILON, lambda: np.random.randint(6)),
        minibatch_size=BATCH,
        replay_start_size=STARTS,
        update_interval=EVERY,
        target_update_interval=TARGET * EVERY,
        phi=lambda obs: np.asarray(obs, np.float32) / 255,
        max_grad_norm=MAX_NORM,
    )
    return train_pfrl(agent, make_pong, steps)


CONTENDERS = {"ours": ours, "SB3": sb3, "PFRL": pfrl}
