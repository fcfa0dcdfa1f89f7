"""Arguments that cannot work, found before any training, with the cure."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from rl_lightning._lightning import CrossingCheckpoint, Hooks, overrides, saves_every_n_steps
from rl_lightning.agents import ForeignAgent
from rl_lightning.callbacks import BestAgent
from rl_lightning.envs import EnvPool, EnvRecipe
from rl_lightning.evaluation import STATISTICS
from rl_lightning.memory import Memory
from rl_lightning.module import RLModule
from rl_lightning.strategies import AsyncStrategy
from rl_lightning.types import ConfigurationError

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer

_MEANINGLESS_FLAGS = {
    "overfit_batches": "an agent makes its own data; to overfit on purpose, give it a fixed env and a large num_epochs",
    "reload_dataloaders_every_n_epochs": "there are no dataloaders; change the env in on_train_epoch_start instead",
}
_MEANINGLESS_CALLBACKS: dict[type[pl.Callback], str] = {
    StochasticWeightAveraging: "it needs dataloaders to run over again; use WeightAveraging or EMAWeightAveraging",
    BatchSizeFinder: "the agent's memory makes the batches; set the agent's batch_size",
    LearningRateFinder: "it needs a fixed dataset; try a few values of lr instead",
}
_OWN_TIMES = ("time/env_steps_per_second", "time/updates_per_second")


def check_flags(steps_per_epoch: int, kwargs: dict[str, Any]) -> None:
    """Arguments of the Trainer's constructor.

    Raises:
        ConfigurationError: one cannot mean anything with envs, or is out of range.
    """
    for name, cure in _MEANINGLESS_FLAGS.items():
        if kwargs.get(name):
            raise ConfigurationError(f"Trainer({name}={kwargs[name]!r}) means nothing here: {cure}.")
    if not isinstance(steps_per_epoch, int) or steps_per_epoch < 1:
        raise ConfigurationError(
            f"Trainer(steps_per_epoch={steps_per_epoch!r}) must be a whole number of env steps, >= 1."
        )
    limit = kwargs.get("limit_train_batches")
    if isinstance(limit, float) and limit not in (0.0, 1.0):
        raise ConfigurationError(
            f"Trainer(limit_train_batches={limit}) is a part of an unknown number: an epoch has steps_per_epoch env "
            "steps, not a fixed number of learning steps. Give a whole number of learning steps."
        )


def check_callbacks(trainer: Trainer, module: RLModule) -> None:
    """The Trainer's callbacks, before a fit.

    Raises:
        ConfigurationError: one cannot work here, or monitors a name that nobody logs.
    """
    for callback in trainer.callbacks:
        for kind, cure in _MEANINGLESS_CALLBACKS.items():
            if isinstance(callback, kind):
                raise ConfigurationError(f"{kind.__name__} cannot work with envs: {cure}.")
        monitor = getattr(callback, "monitor", None)
        if isinstance(callback, ModelCheckpoint | EarlyStopping | BestAgent) and monitor is not None:
            _check_monitor(trainer, module, callback, monitor)


def check_foreign_agent(trainer: Trainer, module: RLModule) -> None:
    """What the Trainer cannot do for an agent that learns by itself.

    Raises:
        ConfigurationError: the Trainer was told to take part in its learning, or it lacks a method that is needed.
    """
    agent = module.agent
    assert isinstance(agent, ForeignAgent)
    name = type(agent.foreign).__name__
    ours = {
        "gradient_clip_val": (trainer.gradient_clip_val, None),
        "accumulate_grad_batches": (trainer.accumulate_grad_batches, 1),
        "precision": (trainer.precision, "32-true"),
        "devices": (trainer.world_size, 1),
    }
    for flag, (given, neutral) in ours.items():
        if given != neutral:
            raise ConfigurationError(f"Trainer({flag}={given!r}) does not reach {name}, which learns by itself.")
    if module.memory is not None:
        raise ConfigurationError(f"RLModule(memory=...) cannot teach {name}, which learns from what it observes.")
    if trainer.enable_validation:
        agent.check_evaluable()
    if trainer.checkpoint_callbacks:
        agent.check_has("save")


def check_async(trainer: Trainer, module: RLModule, strategy: AsyncStrategy, recipe: EnvRecipe) -> None:
    """What asynchronous training cannot do.

    Raises:
        ConfigurationError: the agent, the env or the Trainer asks for it.
    """
    agent, name = module.agent, type(module.given_agent).__name__
    given = f"AsyncStrategy(mode={strategy.mode!r})"
    if isinstance(agent, ForeignAgent):
        modes: Collection[str] = ("shared",)
    else:
        modes = agent.async_modes
    if strategy.mode not in modes:
        if not modes:
            raise ConfigurationError(f"{given} cannot train {name}, whose learning steps nobody may disturb.")
        if strategy.mode in type(agent).async_modes:
            raise ConfigurationError(
                f"{given} cannot train {name}(normalize_obs=True): its statistics come from acting, and each worker "
                "that acts would have others than the learner. Leave normalize_obs out, or use mode='shared'."
            )
        ours = " A2C can with v_trace=True." if type(agent).__name__ == "A2C" else ""
        raise ConfigurationError(
            f"{given} needs an agent that can learn from what an older policy did, and {name} cannot.{ours} It can be "
            f"trained with mode={' or '.join(map(repr, modes))}."
        )
    if isinstance(recipe.source, gym.Env | gym.vector.VectorEnv) and strategy.make_env is None:
        raise ConfigurationError(
            f"{given} makes an env in each worker, and was given {recipe.source}, which is one live env. Give a "
            "gymnasium id, a factory (a function that returns an env) or an EnvModule."
        )
    if recipe.vectorization == "async" and strategy.make_env is None:
        raise ConfigurationError(
            f"{given} has its envs in processes already. Leave vectorization='async' out; num_envs is how many "
            "each worker has."
        )
    if trainer.world_size > 1:
        raise ConfigurationError(f"{given} has processes of its own: use Trainer(devices=1).")
    if strategy.mode == "shared":
        _check_shared_learning(trainer, module, given)


def _check_shared_learning(trainer: Trainer, module: RLModule, given: str) -> None:
    overridden = Hooks(trainer, module).within_learning_steps()
    needy = [type(callback).__name__ for callback in trainer.callbacks if _needs_transitions(callback)]
    if _overrides_env_steps(module, RLModule):
        needy.append(type(module).__name__)
    reasons = {
        f"{', '.join(overridden)} would run nowhere": bool(overridden),
        f"{', '.join(needy)} would see no transition (on_env_step)": bool(needy),
        f"accumulate_grad_batches={trainer.accumulate_grad_batches} is not 1": trainer.accumulate_grad_batches != 1,
        f"precision={trainer.precision!r} is not '32-true'": trainer.precision != "32-true",
        f"their parameters are shared in the host's memory, not on {trainer.strategy.root_device}": (
            trainer.strategy.root_device.type != "cpu"
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigurationError(
                f"{given} learns in its workers, and {reason}. Leave that out (hooks for every env step: StepHooks; "
                "Trainer(accelerator='cpu')), or use mode='actor_learner', where the Trainer learns."
            )


def _needs_transitions(callback: pl.Callback) -> bool:
    return _overrides_env_steps(callback, pl.Callback) and not getattr(callback, "without_transition", False)


def _overrides_env_steps(instance: object, base: type) -> bool:
    return any(overrides(instance, name, base) for name in ("on_env_step_start", "on_env_step", "on_env_step_end"))


def share_an_env(pool: EnvPool, other: EnvPool) -> bool:
    """Whether one and the same env is in both, wrapped or inside a vector env as it may be."""
    return bool(_ids_of_envs(pool.env) & _ids_of_envs(other.env))


def _ids_of_envs(env: Any) -> set[int]:
    inner = [env.unwrapped, *getattr(env.unwrapped, "envs", ())]
    return {id(getattr(one, "unwrapped", one)) for one in inner}


def check_shared_env(pool: EnvPool, train_pool: EnvPool, *, at_episode_end: bool) -> None:
    """What evaluates in the training env itself.

    Raises:
        ConfigurationError: it would do so in the middle of an episode.
    """
    if pool.num_envs == train_pool.num_envs == 1 and at_episode_end:
        return
    raise ConfigurationError(
        f"evaluation would run in the training env itself, {pool.env}, in the middle of training episodes. Give "
        "evaluation an env of its own: a gymnasium id or a factory that makes a new one instead of the env, or "
        "Evaluation(env=...). Where there is only one env, Evaluation(at_episode_end=True) waits for its episode."
    )


def _check_monitor(trainer: Trainer, module: RLModule, callback: pl.Callback, monitor: str) -> None:
    name = f"{type(callback).__name__}(monitor={monitor!r})"
    ours = ["train/return", "train/length", *_OWN_TIMES]
    if trainer.enable_validation:
        ours += [f"eval/{statistic}" for statistic in STATISTICS]
    elif monitor.startswith("eval/"):
        raise ConfigurationError(f"{name}: nothing is evaluated. Add the callback Evaluation().")
    if monitor not in ours and not monitor.startswith("train/") and not _others_may_log(trainer, module):
        raise ConfigurationError(
            f"{name}: nobody logs that name. There are {', '.join(ours)}, and train/<metric> for each of the agent's."
        )
    higher_is_better = monitor in ("train/return", "eval/mean", "eval/median", "eval/max", "eval/min")
    if higher_is_better and getattr(callback, "mode", "max") == "min":
        rank_zero_warn(f"{name} has mode='min', and a higher return is better: give it mode='max'.")


def _others_may_log(trainer: Trainer, module: RLModule) -> bool:
    """Whether code from outside takes part in the run, so that we cannot know all names."""
    known = ("rl_lightning.", "pytorch_lightning.", "lightning.")
    return type(module) is not RLModule or not all(
        type(callback).__module__.startswith(known) and type(callback) is not pl.callbacks.LambdaCallback
        for callback in trainer.callbacks
    )


def check_checkpoint_intervals(trainer: Trainer, num_envs: int, memory: Memory) -> None:
    """Stock checkpoints by steps, which save only where the clock falls on a multiple.

    Raises:
        ConfigurationError: the clock's own stride would make that rare.
    """
    stride = getattr(memory, "stride", num_envs) * trainer.world_size
    # a memory that fills anew counts from where the run goes on
    offset = (getattr(memory, "offset", 0) * trainer.world_size + trainer.global_step) % stride
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or isinstance(callback, CrossingCheckpoint):
            continue
        every = saves_every_n_steps(callback)
        if every >= 1 and offset:
            raise ConfigurationError(
                f"{type(callback).__name__}(every_n_train_steps={every}) saves only after a learning step, and "
                f"only where the clock is a multiple of {every}: learning falls on {offset}, {offset + stride}, ... "
                "env steps. Use rl_lightning.callbacks.Checkpoint, which saves on crossing."
            )
        if every >= 1 and every % stride:
            meet = math.lcm(every, stride) // every
            below, above = every // stride * stride, (every // stride + 1) * stride
            nearest = f"{below} or {above}" if below else str(above)
            raise ConfigurationError(
                f"{type(callback).__name__}(every_n_train_steps={every}) would save about once in {meet}: training "
                f"advances {stride} env steps between learning phases, and it saves only where both meet. Use a "
                f"multiple of {stride} ({nearest}), or rl_lightning.callbacks.Checkpoint."
            )
