"""DQN on CartPole-v1: a learning step each env step, batch 32, 64-64 relu, the same numbers for all."""

from __future__ import annotations

import copy
import tempfile
import time

import gymnasium as gym
import numpy as np
import torch
from torch import nn

UNIT = "env steps"
AMOUNT = 5_000
LR, DISCOUNT, BATCH, STARTS, CAPACITY, TARGET, MAX_NORM = 1e-3, 0.99, 32, 100, 50_000, 250, 10.0


def ours(steps: int) -> float:
    """The whole `Trainer.fit`: progress bar, TensorBoard logger, checkpoints and evaluation at their defaults."""
    from rl_lightning import DQN, Trainer
    from rl_lightning.callbacks import BestAgent, Evaluation

    agent = DQN(
        lr=LR,
        buffer_size=CAPACITY,
        batch_size=BATCH,
        learning_starts=STARTS,
        update_every=1,
        updates_per_step=1.0,
        target_update_every=TARGET,
        hidden_sizes=(64, 64),
    )
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(max_steps=steps, default_root_dir=root, callbacks=[Evaluation(), BestAgent()])
        start = time.perf_counter()
        trainer.fit(agent, "CartPole-v1")
        return time.perf_counter() - start


def sb3(steps: int) -> float:
    """Stable-Baselines3, its logging off."""
    from stable_baselines3 import DQN

    model = DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=LR,
        buffer_size=CAPACITY,
        learning_starts=STARTS,
        batch_size=BATCH,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=TARGET,
        device="cpu",
    )
    start = time.perf_counter()
    model.learn(steps)
    return time.perf_counter() - start


def pfrl(steps: int) -> float:
    """PFRL's own loop; its old env API over the same env."""
    import pfrl as peer

    from tests.experiments.scripted import OldEnv

    network = _network()
    agent = peer.agents.DQN(
        nn.Sequential(*network, peer.q_functions.DiscreteActionValueHead()),
        torch.optim.Adam(network.parameters(), lr=LR),
        peer.replay_buffers.ReplayBuffer(CAPACITY),
        DISCOUNT,
        peer.explorers.LinearDecayEpsilonGreedy(1.0, 0.05, 10_000, lambda: np.random.randint(2)),
        minibatch_size=BATCH,
        replay_start_size=STARTS,
        target_update_interval=TARGET,
    )
    with tempfile.TemporaryDirectory() as outdir:
        start = time.perf_counter()
        peer.experiments.train_agent(agent, OldEnv(gym.make("CartPole-v1")), steps, outdir)
        return time.perf_counter() - start


def tight(steps: int) -> float:
    """A plain loop: what a good engineer writes for this one task."""
    env, network = gym.make("CartPole-v1", disable_env_checker=True), _network()
    target = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
    dtype = [("obs", "f4", 4), ("next", "f4", 4), ("action", "i8"), ("reward", "f4"), ("continues", "f4")]
    memory, rng = np.zeros(CAPACITY, np.dtype(dtype, align=True)), np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    start = time.perf_counter()
    for step in range(steps):
        if rng.random() < max(0.05, 1 - step / 10_000):
            action = int(rng.integers(2))
        else:
            with torch.inference_mode():
                action = int(network(torch.from_numpy(obs)).argmax())
        after, reward, terminated, truncated, _ = env.step(action)
        memory[step % CAPACITY] = obs, after, action, reward, not terminated
        obs = env.reset()[0] if terminated or truncated else after
        if step < STARTS:
            continue
        rows = memory[rng.integers(min(step + 1, CAPACITY), size=BATCH)]
        batch = {name: torch.from_numpy(rows[name]) for name in memory.dtype.names}
        with torch.no_grad():
            goal = batch["reward"] + DISCOUNT * batch["continues"] * target(batch["next"]).amax(1)
        value = network(batch["obs"]).gather(1, batch["action"][:, None])[:, 0]
        optimizer.zero_grad()
        nn.functional.smooth_l1_loss(value, goal).backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        if step % TARGET == 0:
            target.load_state_dict(network.state_dict())
    return time.perf_counter() - start


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


CONTENDERS = {"ours": ours, "tight loop": tight, "SB3": sb3, "PFRL": pfrl}
