"""How experience is gathered."""

from rl_lightning.strategies.async_strategy import AsyncPlan, AsyncStrategy
from rl_lightning.strategies.gather import BatchStrategy, SyncStrategy
from rl_lightning.strategies.strategy import Strategy

__all__ = ["AsyncPlan", "AsyncStrategy", "BatchStrategy", "Strategy", "SyncStrategy"]
