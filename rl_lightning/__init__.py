"""Reinforcement learning on PyTorch Lightning: `Trainer.fit(RLModule(agent), env)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_lightning.agents import A2C, DDPG, DQN, PPO, REINFORCE, SAC, TD3, TRPO, Agent
from rl_lightning.evaluation import evaluate
from rl_lightning.types import ConfigurationError, EnvError, NonFiniteError, ShapeError, Transition, WorkerError

if TYPE_CHECKING:
    from rl_lightning.module import RLModule
    from rl_lightning.trainer import Trainer

__version__ = "0.1.0"

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
    "ConfigurationError",
    "EnvError",
    "NonFiniteError",
    "RLModule",
    "ShapeError",
    "Trainer",
    "Transition",
    "WorkerError",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    # on demand, so that worker processes, which need no Lightning, start without importing it
    if name == "Trainer":
        from rl_lightning.trainer import Trainer

        return Trainer
    if name == "RLModule":
        from rl_lightning.module import RLModule

        return RLModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
