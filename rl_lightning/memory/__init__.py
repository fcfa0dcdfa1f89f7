"""What to learn from, and when: every memory decides both."""

from __future__ import annotations

from rl_lightning.memory.episodes import EpisodeMemory
from rl_lightning.memory.memory import Memory
from rl_lightning.memory.replay import ReplayMemory
from rl_lightning.memory.rollout import RolloutMemory

__all__ = ["EpisodeMemory", "Memory", "ReplayMemory", "RolloutMemory"]
