"""Evaluating an untrained 64-64 policy for some episodes on CartPole-v1."""

from __future__ import annotations

import time

import gymnasium as gym

UNIT = "episodes"
AMOUNT = 100


def ours(episodes: int) -> float:
    """`evaluate`, in 8 envs."""
    from rl_lightning import PPO, RLModule, evaluate
    from rl_lightning.envs import EnvRecipe

    module, env = RLModule(PPO()), gym.make("CartPole-v1")
    module.build(env.observation_space, env.action_space)
    start = time.perf_counter()
    evaluate(module.agent, EnvRecipe("CartPole-v1", num_envs=8), num_episodes=episodes, seed=0)
    return time.perf_counter() - start


def ours_in_one_env(episodes: int) -> float:
    """`evaluate`, in one env."""
    from rl_lightning import PPO, RLModule, evaluate

    module, env = RLModule(PPO()), gym.make("CartPole-v1")
    module.build(env.observation_space, env.action_space)
    start = time.perf_counter()
    evaluate(module.agent, "CartPole-v1", num_episodes=episodes, seed=0)
    return time.perf_counter() - start


def sb3(episodes: int) -> float:
    """Stable-Baselines3's `evaluate_policy`, in 8 envs."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    envs = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    model = PPO("MlpPolicy", envs, device="cpu")
    start = time.perf_counter()
    evaluate_policy(model, envs, n_eval_episodes=episodes)
    return time.perf_counter() - start


CONTENDERS = {"ours": ours, "ours, one env": ours_in_one_env, "SB3": sb3}
