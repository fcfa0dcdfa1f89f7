"""Train, evaluate, hook and record with one call, in PFRL's words: short recipes over the Trainer."""

from rl_lightning.experiments.evaluator import Evaluator
from rl_lightning.experiments.hooks import EvaluationHook, LinearInterpolationHook, OptunaPrunerHook, StepHook
from rl_lightning.experiments.output_dir import generate_exp_id, prepare_output_dir
from rl_lightning.experiments.train import (
    train_agent,
    train_agent_batch,
    train_agent_batch_with_evaluation,
    train_agent_with_evaluation,
)
from rl_lightning.experiments.train_async import train_agent_async

__all__ = [
    "EvaluationHook",
    "Evaluator",
    "LinearInterpolationHook",
    "OptunaPrunerHook",
    "StepHook",
    "generate_exp_id",
    "prepare_output_dir",
    "train_agent",
    "train_agent_async",
    "train_agent_batch",
    "train_agent_batch_with_evaluation",
    "train_agent_with_evaluation",
]
