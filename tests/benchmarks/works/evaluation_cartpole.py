"""Evaluating one untrained 64-64 policy, the same for all, for some episodes on CartPole-v1."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import torch
from torch import nn

UNIT = "episodes"
AMOUNT = 100


def _agent() -> Any:
    from rl_lightning import PPO, RLModule

    torch.manual_seed(0)
    module, env = RLModule(PPO()), gym.make("CartPole-v1")
    module.build(env.observation_space, env.action_space)
    return module.agent


def ours(episodes: int) -> float:
    """`evaluate`, in 8 envs."""
    from rl_lightning import evaluate
    from rl_lightning.envs import EnvRecipe

    agent = _agent()
    start = time.perf_counter()
    evaluate(agent, EnvRecipe("CartPole-v1", num_envs=8), num_episodes=episodes, seed=0)
    return time.perf_counter() - start


def ours_in_one_env(episodes: int) -> float:
    """`evaluate`, in one env."""
    from rl_lightning import evaluate

    agent = _agent()
    start = time.perf_counter()
    evaluate(agent, "CartPole-v1", num_episodes=episodes, seed=0)
    return time.perf_counter() - start


def sb3(episodes: int) -> float:
    """Stable-Baselines3's `evaluate_policy`, in 8 envs, of a policy with our weights."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    envs = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    model = PPO("MlpPolicy", envs, device="cpu")
    theirs = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    for their, our in zip(_linear(theirs), _linear(_agent().network.policy_layers.modules()), strict=True):
        their.load_state_dict(our.state_dict())
    start = time.perf_counter()
    evaluate_policy(model, envs, n_eval_episodes=episodes)
    return time.perf_counter() - start


def _linear(modules: Any) -> list[nn.Linear]:
    return [module for module in modules if isinstance(module, nn.Linear)]


CONTENDERS = {"ours": ours, "ours, one env": ours_in_one_env, "SB3": sb3}
