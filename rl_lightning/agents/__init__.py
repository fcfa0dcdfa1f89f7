"""Agents: one file an algorithm, each a plain module that acts and learns."""

from __future__ import annotations

from rl_lightning.agents.a2c import A2C
from rl_lightning.agents.agent import Agent
from rl_lightning.agents.dqn import DQN
from rl_lightning.agents.foreign import ForeignAgent, as_agent
from rl_lightning.agents.ppo import PPO
from rl_lightning.agents.sac import SAC

__all__ = ["A2C", "DQN", "PPO", "SAC", "Agent", "ForeignAgent", "as_agent"]
