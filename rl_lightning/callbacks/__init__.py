"""Callbacks: evaluation, the best agent, schedules, checkpoints, progress.

Beside Lightning's own hooks, a callback may have two more; both are called only if somebody has them:

- `on_env_step(trainer, pl_module, transition)`: after each step of the training envs, on the hottest path there is.
- `on_tick(trainer, pl_module)`: about ten times a second while training gathers experience.
"""

from rl_lightning.callbacks.best_agent import BestAgent
from rl_lightning.callbacks.checkpoint import Checkpoint
from rl_lightning.callbacks.evaluation import Evaluation
from rl_lightning.callbacks.interpolation import LinearInterpolation
from rl_lightning.callbacks.progress import RLProgressBar
from rl_lightning.callbacks.success import SuccessfulScore

__all__ = ["BestAgent", "Checkpoint", "Evaluation", "LinearInterpolation", "RLProgressBar", "SuccessfulScore"]
