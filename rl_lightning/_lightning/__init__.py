"""The one folder that touches private Lightning names: loops, counters, hooks and metrics on the clock of env steps.

tests/contract/test_lightning_private_names.py has a test for each private name used here.
"""

from rl_lightning._lightning.checkpoint import (
    CrossingCheckpoint,
    saves_every_n_steps,
    saving_to,
    write_checkpoint,
)
from rl_lightning._lightning.clock import Clock, next_multiple
from rl_lightning._lightning.compilation import why_not_compiled
from rl_lightning._lightning.evaluation_loops import agent_dtype
from rl_lightning._lightning.fit_loop import Position, RLFitLoop
from rl_lightning._lightning.hooks import Hooks, overrides
from rl_lightning._lightning.install import install_loops
from rl_lightning._lightning.logger_connector import RLLoggerConnector
from rl_lightning._lightning.resume import run_state
from rl_lightning._lightning.signals import RLSignalConnector

__all__ = [
    "Clock",
    "CrossingCheckpoint",
    "Hooks",
    "Position",
    "RLFitLoop",
    "RLLoggerConnector",
    "RLSignalConnector",
    "agent_dtype",
    "install_loops",
    "next_multiple",
    "overrides",
    "run_state",
    "saves_every_n_steps",
    "saving_to",
    "why_not_compiled",
    "write_checkpoint",
]
