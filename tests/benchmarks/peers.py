"""How the peers are run: each by its own loop, with its own logging off."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from torch import nn


def learn_sb3(model: Any, steps: int) -> float:
    """Seconds of Stable-Baselines3's `learn`."""
    start = time.perf_counter()
    model.learn(steps, log_interval=None)
    return time.perf_counter() - start


def train_pfrl(agent: Any, make_env: Callable[[], gym.Env], steps: int, *, num_envs: int | None = None) -> float:
    """Seconds of PFRL's `train_agent`, or with `num_envs` of `train_agent_batch`; in the same envs, by its old API."""
    from pfrl.experiments import train_agent, train_agent_batch

    from tests.experiments.peer import Serial
    from tests.experiments.scripted import OldEnv

    if num_envs is None:
        train, env = train_agent, OldEnv(make_env())
    else:
        train, env = train_agent_batch, Serial([OldEnv(make_env()) for _ in range(num_envs)])
    with tempfile.TemporaryDirectory() as outdir:
        start = time.perf_counter()
        train(agent, env, steps, outdir)
        return time.perf_counter() - start


def pfrl_actor_critic(network: Callable[[int, float], nn.Module]) -> nn.Module:
    """A policy for two actions and a value, each with a network of its own, made from outputs and last gain."""
    import pfrl

    policy = nn.Sequential(network(2, 0.01), pfrl.policies.SoftmaxCategoricalHead())
    return pfrl.nn.Branched(policy, network(1, 1.0))


def run_tianshou(algorithm: Any, parameters: Any) -> float:
    """Seconds of Tianshou's `run_training`, after a reset of its collector."""
    parameters.training_collector.reset()
    start = time.perf_counter()
    algorithm.run_training(parameters)
    return time.perf_counter() - start


TIANSHOU_QUIET = {"verbose": False, "show_progress": False, "max_epochs": 1}
"""What its trainers are told; its logger is off unless one is given."""
