"""DQN on CartPole-v1: a learning step each env step, batch 32, 64-64 relu, the same numbers for all.

Epsilon falls from 1 to 0.05 in 10,000 env steps. Tianshou's DQN has no clipping of gradients.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from tests.benchmarks.tight import minimise, side_by_side

UNIT = "env steps"
AMOUNT = 5_000
LR, DISCOUNT, BATCH, STARTS, CAPACITY, TARGET, MAX_NORM = 1e-3, 0.99, 32, 100, 50_000, 250, 10.0
EPSILON, FINAL_EPSILON, EPSILON_STEPS = 1.0, 0.05, 10_000


def _ours() -> Any:
    from rl_lightning import DQN

    return DQN(
        lr=LR,
        discount=DISCOUNT,
        buffer_size=CAPACITY,
        batch_size=BATCH,
        learning_starts=STARTS,
        update_every=1,
        updates_per_step=1.0,
        target_update_every=TARGET,
        epsilon=EPSILON,
        final_epsilon=FINAL_EPSILON,
        epsilon_steps=EPSILON_STEPS,
        max_grad_norm=MAX_NORM,
        hidden_sizes=(64, 64),
    )


def ours(steps: int) -> float:
    """The whole `Trainer.fit`."""
    from tests.benchmarks.ours import fit

    return fit(_ours(), "CartPole-v1", steps)


def ours_compiled(steps: int) -> float:
    """The same with `compile=True`, once the target network has been updated too: that is a graph of its own."""
    from tests.benchmarks.ours import fit_compiled

    return fit_compiled(_ours(), "CartPole-v1", steps, skip=TARGET + 50)


def tight(steps: int) -> float:
    """A plain loop."""
    env, network = gym.make("CartPole-v1", disable_env_checker=True), _network()
    target = copy.deepcopy(network).requires_grad_(False)
    flat, flat_target = side_by_side(network), side_by_side(target)
    optimizer = torch.optim.Adam([flat], lr=LR, fused=True)
    dtype = [("obs", "f4", 4), ("after", "f4", 4), ("action", "i8"), ("reward", "f4"), ("continues", "f4")]
    memory, rng = np.zeros(CAPACITY, np.dtype(dtype, align=True)), np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    start = time.perf_counter()
    for step in range(steps):
        if rng.random() < max(FINAL_EPSILON, EPSILON - (EPSILON - FINAL_EPSILON) * step / EPSILON_STEPS):
            action = int(rng.integers(2))
        else:
            with torch.inference_mode():
                action = int(network(torch.from_numpy(obs)).argmax())
        after, reward, terminated, truncated, _ = env.step(action)
        memory[step % CAPACITY] = obs, after, action, reward, not terminated
        obs = env.reset()[0] if terminated or truncated else after
        if step < STARTS:
            continue
        rows = memory.take(rng.integers(min(step + 1, CAPACITY), size=BATCH))
        batch = {name: torch.from_numpy(rows[name]) for name in memory.dtype.names}
        with torch.no_grad():
            goal = batch["reward"] + DISCOUNT * batch["continues"] * target(batch["after"]).amax(1)
        value = network(batch["obs"]).gather(1, batch["action"][:, None])[:, 0]
        minimise(nn.functional.smooth_l1_loss(value, goal), flat, optimizer, MAX_NORM)
        if step % TARGET == 0:
            flat_target.data.copy_(flat.data)
    return time.perf_counter() - start


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def sb3(steps: int) -> float:
    """Stable-Baselines3."""
    from stable_baselines3 import DQN

    from tests.benchmarks.peers import learn_sb3

    model = DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=LR,
        gamma=DISCOUNT,
        buffer_size=CAPACITY,
        learning_starts=STARTS,
        batch_size=BATCH,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=TARGET,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=FINAL_EPSILON,
        exploration_fraction=EPSILON_STEPS / steps,
        max_grad_norm=MAX_NORM,
        device="cpu",
    )
    return learn_sb3(model, steps)


def pfrl(steps: int) -> float:
    """PFRL."""
    import pfrl as peer

    from tests.benchmarks.peers import train_pfrl

    network = _network()
    agent = peer.agents.DQN(
        nn.Sequential(*network, peer.q_functions.DiscreteActionValueHead()),
        torch.optim.Adam(network.parameters(), lr=LR),
        peer.replay_buffers.ReplayBuffer(CAPACITY),
        DISCOUNT,
        peer.explorers.LinearDecayEpsilonGreedy(EPSILON, FINAL_EPSILON, EPSILON_STEPS, lambda: np.random.randint(2)),
        minibatch_size=BATCH,
        replay_start_size=STARTS,
        target_update_interval=TARGET,
        max_grad_norm=MAX_NORM,
    )
    return train_pfrl(agent, lambda: gym.make("CartPole-v1"), steps)


def tianshou(steps: int) -> float:
    """Tianshou."""
    from tianshou.algorithm import DQN
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, ReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OffPolicyTrainerParams
    from tianshou.utils.net.common import Net

    from tests.benchmarks.peers import TIANSHOU_QUIET, run_tianshou

    envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")])
    model = Net(state_shape=4, action_shape=2, hidden_sizes=(64, 64))
    policy = DiscreteQLearningPolicy(model=model, action_space=gym.make("CartPole-v1").action_space)
    algorithm = DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=LR),
        gamma=DISCOUNT,
        target_update_freq=TARGET,
        is_double=False,
        huber_loss_delta=1.0,
    )

    def explore(epoch: int, step: int) -> None:
        policy.set_eps_training(max(FINAL_EPSILON, EPSILON - (EPSILON - FINAL_EPSILON) * step / EPSILON_STEPS))

    collector = Collector(algorithm, envs, ReplayBuffer(CAPACITY), exploration_noise=True)
    collector.reset()
    parameters = OffPolicyTrainerParams(
        training_collector=collector,
        epoch_num_steps=steps - STARTS,
        collection_step_num_env_steps=1,
        batch_size=BATCH,
        training_fn=explore,
        **TIANSHOU_QUIET,
    )
    start = time.perf_counter()
    collector.collect(n_step=STARTS, random=True)
    return time.perf_counter() - start + run_tianshou(algorithm, parameters)


CONTENDERS = {
    "ours": ours,
    "ours, compiled": ours_compiled,
    "tight loop": tight,
    "SB3": sb3,
    "PFRL": pfrl,
    "Tianshou": tianshou,
}
