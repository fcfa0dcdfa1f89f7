"""Agents: one file an algorithm, each a plain module that acts and learns."""

from __future__ import annotations

from rl_lightning.agents.a2c import A2C
from rl_lightning.agents.agent import Agent
from rl_lightning.agents.ddpg import DDPG
from rl_lightning.agents.dqn import DQN
from rl_lightning.agents.foreign import ForeignAgent, as_agent
from rl_lightning.agents.ppo import PPO
from rl_lightning.agents.reinforce import REINFORCE
from rl_lightning.agents.sac import SAC
from rl_lightning.agents.td3 import TD3
from rl_lightning.agents.trpo import TRPO

__all__ = [
    "A2C",
    "DDPG",
    "DQN",
    "PPO",
    "REINFORCE",
    "SAC",
    "TD3",
    "TRPO",
    "Agent",
    "ForeignAgent",
    "as_agent",
]
