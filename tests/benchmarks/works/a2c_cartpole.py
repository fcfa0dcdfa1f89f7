"""A2C on CartPole-v1: 8 envs x 5 steps, RMSprop, 64-64 tanh, the same numbers for all."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import torch

from tests.benchmarks.tight import Rollouts, minimise, side_by_side, tanh_network

UNIT = "env steps"
AMOUNT = 40_000
NUM_ENVS, NUM_STEPS = 8, 5
LR, ALPHA, EPS, DISCOUNT, ENTROPY, VALUE, MAX_NORM = 7e-4, 0.99, 1e-5, 0.99, 0.01, 0.5, 0.5


def _ours() -> tuple[Any, Any]:
    from rl_lightning import A2C
    from rl_lightning.envs import GymEnvModule

    agent = A2C(
        lr=LR,
        discount=DISCOUNT,
        trace_decay=1.0,
        num_steps=NUM_STEPS,
        entropy_weight=ENTROPY,
        value_weight=VALUE,
        max_grad_norm=MAX_NORM,
    )
    return agent, GymEnvModule("CartPole-v1", num_envs=NUM_ENVS)


def ours(steps: int) -> float:
    """The whole `Trainer.fit`."""
    from tests.benchmarks.ours import fit

    return fit(*_ours(), steps)


def ours_compiled(steps: int) -> float:
    """The same with `compile=True`, after twenty learning steps."""
    from tests.benchmarks.ours import fit_compiled

    return fit_compiled(*_ours(), steps, skip=20)


def ours_without_evaluation(steps: int) -> float:
    """The same with nothing evaluated, as the peers do it."""
    from tests.benchmarks.ours import fit

    return fit(*_ours(), steps, evaluates=False)


def tight(steps: int) -> float:
    """A plain loop."""
    rollouts, actor, critic = Rollouts(NUM_STEPS, NUM_ENVS), tanh_network(2, 0.01), tanh_network(1, 1.0)
    flat = side_by_side(actor, critic)
    optimizer = torch.optim.RMSprop([flat], lr=LR, alpha=ALPHA, eps=EPS)
    start = time.perf_counter()
    for _ in range(-(-steps // (NUM_ENVS * NUM_STEPS))):
        rollouts.collect(actor)
        obs, action = torch.from_numpy(rollouts.obs[:-1]), torch.from_numpy(rollouts.action)
        value, log_probs = critic(obs)[..., 0], actor(obs).log_softmax(-1)
        advantage = rollouts.advantage(value, critic, DISCOUNT, 1.0)
        policy_loss = -(log_probs.gather(-1, action[..., None])[..., 0] * advantage).mean()
        value_loss = torch.nn.functional.mse_loss(value, advantage + value.detach())
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        minimise(policy_loss + VALUE * value_loss - ENTROPY * entropy, flat, optimizer, MAX_NORM)
    return time.perf_counter() - start


def sb3(steps: int) -> float:
    """Stable-Baselines3."""
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    from tests.benchmarks.peers import learn_sb3

    model = A2C(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=NUM_ENVS),
        learning_rate=LR,
        gamma=DISCOUNT,
        gae_lambda=1.0,
        n_steps=NUM_STEPS,
        rms_prop_eps=EPS,
        ent_coef=ENTROPY,
        vf_coef=VALUE,
        max_grad_norm=MAX_NORM,
        device="cpu",
    )
    return learn_sb3(model, steps)


def pfrl(steps: int) -> float:
    """PFRL."""
    import pfrl as peer

    from tests.benchmarks.peers import pfrl_actor_critic, train_pfrl

    network = pfrl_actor_critic(tanh_network)
    agent = peer.agents.A2C(
        network,
        torch.optim.RMSprop(network.parameters(), lr=LR, alpha=ALPHA, eps=EPS),
        gamma=DISCOUNT,
        num_processes=NUM_ENVS,
        update_steps=NUM_STEPS,
        entropy_coeff=ENTROPY,
        v_loss_coef=VALUE,
        max_grad_norm=MAX_NORM,
    )
    return train_pfrl(agent, lambda: gym.make("CartPole-v1"), steps, num_envs=NUM_ENVS)


CONTENDERS = {
    "ours": ours,
    "ours, compiled": ours_compiled,
    "ours, no evaluation": ours_without_evaluation,
    "tight loop": tight,
    "SB3": sb3,
    "PFRL": pfrl,
}
