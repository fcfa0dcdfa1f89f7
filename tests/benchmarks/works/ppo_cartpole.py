"""PPO on CartPole-v1: 8 envs x 128 steps, 4 epochs x 4 minibatches, 64-64 tanh, the same numbers for all."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

UNIT = "env steps"
AMOUNT = 50_000
NUM_ENVS, NUM_STEPS, NUM_EPOCHS, NUM_MINIBATCHES = 8, 128, 4, 4
LR, DISCOUNT, TRACE_DECAY, CLIP_RANGE, ENTROPY, VALUE, MAX_NORM = 3e-4, 0.99, 0.95, 0.2, 0.01, 0.5, 0.5


def ours(steps: int) -> float:
    """The whole `Trainer.fit`: progress bar, TensorBoard logger, checkpoints and evaluation at their defaults."""
    from rl_lightning import PPO, Trainer
    from rl_lightning.callbacks import BestAgent, Evaluation
    from rl_lightning.envs import GymEnvModule

    agent = PPO(lr=LR, entropy_weight=ENTROPY, num_steps=NUM_STEPS)
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(max_steps=steps, default_root_dir=root, callbacks=[Evaluation(), BestAgent()])
        start = time.perf_counter()
        trainer.fit(agent, GymEnvModule("CartPole-v1", num_envs=NUM_ENVS))
        return time.perf_counter() - start


def ours_without_evaluation(steps: int) -> float:
    """The same with nothing evaluated, as the peers do it."""
    from rl_lightning import PPO, Trainer
    from rl_lightning.envs import GymEnvModule

    agent = PPO(lr=LR, entropy_weight=ENTROPY, num_steps=NUM_STEPS)
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(max_steps=steps, default_root_dir=root)
        start = time.perf_counter()
        trainer.fit(agent, GymEnvModule("CartPole-v1", num_envs=NUM_ENVS))
        return time.perf_counter() - start


def sb3(steps: int) -> float:
    """Stable-Baselines3, its logging off."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=NUM_ENVS),
        learning_rate=LR,
        n_steps=NUM_STEPS,
        batch_size=NUM_ENVS * NUM_STEPS // NUM_MINIBATCHES,
        n_epochs=NUM_EPOCHS,
        ent_coef=ENTROPY,
        vf_coef=VALUE,
        max_grad_norm=MAX_NORM,
        device="cpu",
        verbose=0,
    )
    start = time.perf_counter()
    model.learn(steps)
    return time.perf_counter() - start


def tight(steps: int) -> float:
    """A plain loop: what a good engineer writes for this one task."""
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.make("CartPole-v1", disable_env_checker=True)] * NUM_ENVS,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    actor, critic = _network(2, 0.01), _network(1, 1.0)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LR, eps=1e-5, fused=True)
    obs = np.zeros((NUM_STEPS, NUM_ENVS, 4), np.float32)
    last = np.zeros_like(obs)
    action = np.zeros((NUM_STEPS, NUM_ENVS), np.int64)
    reward = np.zeros((NUM_STEPS, NUM_ENVS), np.float32)
    terminated, done = np.zeros((2, NUM_STEPS, NUM_ENVS), bool)
    state = envs.reset(seed=0)[0]
    start = time.perf_counter()
    for _ in range(-(-steps // (NUM_STEPS * NUM_ENVS))):
        with torch.inference_mode():
            for t in range(NUM_STEPS):
                logits = actor(torch.from_numpy(state))
                action[t] = (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1).numpy()
                obs[t] = state
                state, reward[t], terminated[t], truncated, info = envs.step(action[t])
                done[t] = terminated[t] | truncated
                last[t] = state
                for i in np.flatnonzero(done[t]):
                    last[t, i] = info["final_obs"][i]
        _learn(actor, critic, optimizer, parameters, (obs, last, action, reward, terminated, done))
    return time.perf_counter() - start


def _network(outputs: int, gain: float) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
    for layer, layer_gain in zip(network[::2], (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, layer_gain)
        nn.init.zeros_(layer.bias)
    return network


def _learn(actor: Any, critic: Any, optimizer: Any, parameters: Any, rollout: tuple[np.ndarray, ...]) -> None:
    obs, last, action, reward, terminated, done = map(torch.from_numpy, rollout)
    with torch.no_grad():
        old = actor(obs).log_softmax(-1).gather(-1, action[..., None])[..., 0]
        value, next_value = critic(obs)[..., 0], critic(last)[..., 0]
        delta = reward + DISCOUNT * next_value * ~terminated - value
        decay = DISCOUNT * TRACE_DECAY * (~done).float()
        advantage, total = torch.empty_like(delta), torch.zeros(NUM_ENVS)
        for t in range(NUM_STEPS - 1, -1, -1):
            total = delta[t] + decay[t] * total
            advantage[t] = total
        target = advantage + value
    fields = [field.flatten(0, 1) for field in (obs, action, old, advantage, target)]
    for _ in range(NUM_EPOCHS):
        for index in torch.randperm(NUM_STEPS * NUM_ENVS).chunk(NUM_MINIBATCHES):
            o, a, old_log_prob, adv, ret = (field[index] for field in fields)
            log_probs = actor(o).log_softmax(-1)
            ratio = (log_probs.gather(-1, a[:, None])[:, 0] - old_log_prob).exp()
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
            policy_loss = -torch.minimum(ratio * adv, adv + CLIP_RANGE * adv.abs()).mean()
            value_loss = (critic(o)[:, 0] - ret).square().mean()
            entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
            optimizer.zero_grad()
            (policy_loss + VALUE * value_loss - ENTROPY * entropy).backward()
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()


CONTENDERS = {"ours": ours, "ours, no evaluation": ours_without_evaluation, "tight loop": tight, "SB3": sb3}
