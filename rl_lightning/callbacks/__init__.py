"""Callbacks: evaluation, the best agent, schedules, checkpoints, hooks, records, progress.

Beside Lightning's own hooks, a callback may have these; each is called only if somebody has it:

- `on_env_step_start(trainer, pl_module)`: before each step of the training envs, when new episodes have begun.
- `on_env_step(trainer, pl_module, transition)`: after each step, on the hottest path there is.
- `on_env_step_end(trainer, pl_module, transition)`: when the agent has also learned from it, if it did.
- `on_tick(trainer, pl_module)`: about ten times a second while training gathers experience.
"""

from rl_lightning.callbacks.best_agent import BestAgent
from rl_lightning.callbacks.checkpoint import Checkpoint
from rl_lightning.callbacks.evaluation import Evaluation
from rl_lightning.callbacks.hooks import EvaluationHooks, StepHooks
from rl_lightning.callbacks.interpolation import LinearInterpolation
from rl_lightning.callbacks.optuna import OptunaPruner
from rl_lightning.callbacks.progress import RLProgressBar
from rl_lightning.callbacks.run_record import RunRecord
from rl_lightning.callbacks.success import SuccessfulScore

__all__ = [
    "BestAgent",
    "Checkpoint",
    "Evaluation",
    "EvaluationHooks",
    "LinearInterpolation",
    "OptunaPruner",
    "RLProgressBar",
    "RunRecord",
    "StepHooks",
    "SuccessfulScore",
]
