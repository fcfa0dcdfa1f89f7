"""The functions: each puts callbacks together, and lets a Trainer do the work."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from rl_lightning.callbacks import StepHooks
from rl_lightning.env_module import EnvLike, as_env_module
from rl_lightning.envs import EnvRecipe
from rl_lightning.experiments.checks import check_hooks, prepare_run
from rl_lightning.experiments.directories import AgentDirectories, CheckpointsBetweenSteps
from rl_lightning.experiments.evaluator import Evaluator, ForeignEvaluator
from rl_lightning.experiments.log import EpisodeLog
from rl_lightning.module import RLModule
from rl_lightning.strategies import Strategy
from rl_lightning.trainer import Trainer
from rl_lightning.types import ConfigurationError, check_counts

Hook = Callable[[Any, Any, int], object]
History = list[dict[str, Any]]


def train_agent(
    agent: Any,
    env: EnvLike,
    steps: int,
    outdir: str | Path,
    checkpoint_freq: int | None = None,
    max_episode_len: int | None = None,
    step_offset: int = 0,
    evaluator: Any = None,
    successful_score: float | None = None,
    step_hooks: Sequence[Hook] = (),
    eval_during_episode: bool = False,
    logger: logging.Logger | None = None,
) -> History:
    """Train in one env, a step at a time.

    Args:
        agent: one of ours, or any that acts, observes and has `save` (see `ForeignAgent`).
        env: an env, a gymnasium id, a factory, a recipe.
        steps: env steps in all, those before `step_offset` included.
        outdir: where `{t}_checkpoint`, `{t}_finish` and, after an error or Ctrl-C, `{t}_except` go, t being the env
            steps that the agent in it has taken.
        checkpoint_freq: env steps between two saved agents. None: only the last is saved.
        max_episode_len: episodes are cut after so many env steps. None: as the env says.
        step_offset: env steps taken before.
        evaluator: an `Evaluator`, or an object with `evaluate_if_necessary(t=, episodes=)` and `max_score`.
        successful_score: stop when the best score so far has reached this.
        step_hooks: each called as `hook(env, agent, step)` after every env step.
        eval_during_episode: evaluate as soon as it is due, not only at the ends of training episodes.
        logger: what is told of every episode, every saved agent and every evaluation.
    Returns:
        the evaluation history: one dict an evaluation, with the agent's statistics and `eval_score`.
    Raises:
        ConfigurationError: arguments that cannot work, before any step.
    """
    logger = logger or logging.getLogger(__name__)
    directories = AgentDirectories(Path(outdir), logger, checkpoint_freq)
    prepare_run(agent, steps, step_offset, Path(outdir), evaluator)
    evaluation, history = _evaluation(evaluator, successful_score, at_episode_end=not eval_during_episode)
    run(
        agent,
        _recipe(env, max_episode_len),
        [
            directories,
            *([CheckpointsBetweenSteps(directories)] if checkpoint_freq is not None else []),
            *([StepHooks(step_hooks)] if step_hooks else []),
            EpisodeLog(logger, Path(outdir)),
            *evaluation,
        ],
        strategy="sync",
        steps=steps,
        step_offset=step_offset,
        outdir=Path(outdir),
        evaluator=evaluator,
    )
    return history()


def train_agent_with_evaluation(
    agent: Any,
    env: EnvLike,
    steps: int,
    eval_n_steps: int | None,
    eval_n_episodes: int | None,
    eval_interval: int,
    outdir: str | Path,
    checkpoint_freq: int | None = None,
    train_max_episode_len: int | None = None,
    step_offset: int = 0,
    eval_max_episode_len: int | None = None,
    eval_env: EnvLike | None = None,
    successful_score: float | None = None,
    step_hooks: Sequence[Hook] = (),
    evaluation_hooks: Sequence[Callable[..., object]] = (),
    save_best_so_far_agent: bool = True,
    use_tensorboard: bool = False,
    eval_during_episode: bool = False,
    logger: logging.Logger | None = None,
) -> tuple[Any, History]:
    """Train in one env, evaluate now and then, and keep the best agent.

    Args: as in `train_agent` and `Evaluator`, and
        train_max_episode_len: the `max_episode_len` of training.
        eval_max_episode_len: that of evaluation. None: the same.
        eval_env: what to evaluate in. None: a fresh env like `env`; where that cannot be made, `env` itself, between
            its episodes.
    Returns:
        the agent, and the evaluation history.
    Raises:
        ConfigurationError: arguments that cannot work, before any step.
        ValueError: an evaluation hook does not support this function.
    """
    check_hooks(evaluation_hooks, "support_train_agent", "train_agent_with_evaluation")
    if eval_env is None:
        eval_env = _env_like(env, or_itself=not eval_during_episode)
    evaluator = Evaluator(
        agent=agent,
        env=eval_env,
        n_steps=eval_n_steps,
        n_episodes=eval_n_episodes,
        eval_interval=eval_interval,
        outdir=outdir,
        max_episode_len=train_max_episode_len if eval_max_episode_len is None else eval_max_episode_len,
        step_offset=step_offset,
        evaluation_hooks=evaluation_hooks,
        save_best_so_far_agent=save_best_so_far_agent,
        logger=logger,
        use_tensorboard=use_tensorboard,
    )
    history = train_agent(
        agent=agent,
        env=env,
        steps=steps,
        outdir=outdir,
        checkpoint_freq=checkpoint_freq,
        max_episode_len=train_max_episode_len,
        step_offset=step_offset,
        evaluator=evaluator,
        successful_score=successful_score,
        step_hooks=step_hooks,
        eval_during_episode=eval_during_episode,
        logger=logger,
    )
    return agent, history


def train_agent_batch(
    agent: Any,
    env: EnvLike,
    steps: int,
    outdir: str | Path,
    checkpoint_freq: int | None = None,
    log_interval: int | None = None,
    max_episode_len: int | None = None,
    step_offset: int = 0,
    evaluator: Any = None,
    successful_score: float | None = None,
    step_hooks: Sequence[Hook] = (),
    return_window_size: int = 100,
    logger: logging.Logger | None = None,
) -> History:
    """Train in several envs, in lockstep.

    Args: as in `train_agent`, but
        env: a vector env, a factory of one, or a recipe of several envs.
        steps: env steps in all, over all envs; training may pass them by up to num_envs - 1.
        log_interval: env steps between two lines of the log. None: no lines.
        checkpoint_freq: an agent is saved after the step of all envs that reaches or passes a multiple of it.
        step_hooks: called for each env's step, numbered consecutively.
        return_window_size: over how many of the last finished episodes the log's mean return goes.
    Returns:
        the evaluation history.
    Raises:
        ConfigurationError: arguments that cannot work, before any step.
    """
    logger = logger or logging.getLogger(__name__)
    directories = AgentDirectories(Path(outdir), logger, checkpoint_freq)
    prepare_run(agent, steps, step_offset, Path(outdir), evaluator)
    evaluation, history = _evaluation(evaluator, successful_score, at_episode_end=False)
    check_counts(log_interval=log_interval, return_window_size=return_window_size)
    log = EpisodeLog(logger, Path(outdir), interval=log_interval, window=return_window_size)
    run(
        agent,
        _recipe(env, max_episode_len),
        [
            directories,
            StepHooks([directories.checkpoint, *step_hooks]),
            *([] if log_interval is None else [log]),
            *evaluation,
        ],
        strategy="batch",
        steps=steps,
        step_offset=step_offset,
        outdir=Path(outdir),
        evaluator=evaluator,
    )
    return history()


def train_agent_batch_with_evaluation(
    agent: Any,
    env: EnvLike,
    steps: int,
    eval_n_steps: int | None,
    eval_n_episodes: int | None,
    eval_interval: int,
    outdir: str | Path,
    checkpoint_freq: int | None = None,
    max_episode_len: int | None = None,
    step_offset: int = 0,
    eval_max_episode_len: int | None = None,
    return_window_size: int = 100,
    eval_env: EnvLike | None = None,
    log_interval: int | None = None,
    successful_score: float | None = None,
    step_hooks: Sequence[Hook] = (),
    evaluation_hooks: Sequence[Callable[..., object]] = (),
    save_best_so_far_agent: bool = True,
    use_tensorboard: bool = False,
    logger: logging.Logger | None = None,
) -> tuple[Any, History]:
    """Train in several envs in lockstep, evaluate now and then, and keep the best agent.

    Args: as in `train_agent_batch` and `Evaluator`, and
        eval_max_episode_len: the `max_episode_len` of evaluation. None: that of training.
        eval_env: what to evaluate in: an env, a vector env, and so on. None: fresh envs like `env`.
    Returns:
        the agent, and the evaluation history.
    Raises:
        ConfigurationError: arguments that cannot work, before any step.
        ValueError: an evaluation hook does not support this function.
    """
    check_hooks(evaluation_hooks, "support_train_agent_batch", "train_agent_batch_with_evaluation")
    evaluator = Evaluator(
        agent=agent,
        env=_env_like(env, or_itself=False) if eval_env is None else eval_env,
        n_steps=eval_n_steps,
        n_episodes=eval_n_episodes,
        eval_interval=eval_interval,
        outdir=outdir,
        max_episode_len=max_episode_len if eval_max_episode_len is None else eval_max_episode_len,
        step_offset=step_offset,
        evaluation_hooks=evaluation_hooks,
        save_best_so_far_agent=save_best_so_far_agent,
        logger=logger,
        use_tensorboard=use_tensorboard,
    )
    history = train_agent_batch(
        agent=agent,
        env=env,
        steps=steps,
        outdir=outdir,
        checkpoint_freq=checkpoint_freq,
        log_interval=log_interval,
        max_episode_len=max_episode_len,
        step_offset=step_offset,
        evaluator=evaluator,
        successful_score=successful_score,
        step_hooks=step_hooks,
        return_window_size=return_window_size,
        logger=logger,
    )
    return agent, history


def run(
    agent: Any,
    recipe: EnvRecipe,
    callbacks: list[pl.Callback],
    *,
    strategy: str | Strategy,
    steps: int,
    step_offset: int,
    outdir: Path,
    evaluator: Any,
) -> None:
    """Let a Trainer do it."""
    ours = evaluator if isinstance(evaluator, Evaluator) else None
    if ours is not None:
        outdir = ours.outdir
    trainer = Trainer(
        strategy=strategy,
        max_steps=int(steps),
        steps_per_epoch=int(steps),
        devices=1,
        callbacks=callbacks,
        logger=TensorBoardLogger(outdir, name="", version="") if ours is not None and ours.use_tensorboard else False,
        default_root_dir=outdir,
        enable_checkpointing=ours is not None,
        enable_model_summary=False,
    )
    directories = next(callback for callback in callbacks if isinstance(callback, AgentDirectories))
    with _keyboard_interrupt(directories):
        trainer.fit(RLModule(agent), recipe, step_offset=int(step_offset))


@contextmanager
def _keyboard_interrupt(directories: AgentDirectories) -> Iterator[None]:
    """Raise Ctrl-C as such: Lightning turns it into the end of the process, and ignores it from then on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if isinstance(directories.exception, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler or signal.default_int_handler)
            raise directories.exception from None
        raise


def _evaluation(
    evaluator: Any, successful_score: float | None, *, at_episode_end: bool
) -> tuple[list[pl.Callback], Callable[[], History]]:
    """The callbacks that evaluate, and where the history will be."""
    if evaluator is None:
        return [], list
    if isinstance(evaluator, Evaluator):
        return evaluator.callbacks(successful_score, at_episode_end=at_episode_end), lambda: evaluator.history
    foreign = ForeignEvaluator(evaluator, successful_score, at_episode_end=at_episode_end)
    return [foreign], lambda: foreign.history


def _recipe(env: EnvLike, max_episode_len: int | None) -> EnvRecipe:
    recipe = as_env_module(env).recipe("train")
    return recipe if max_episode_len is None else recipe.replace(max_episode_len=max_episode_len)


def _env_like(env: EnvLike, *, or_itself: bool) -> EnvRecipe:
    """A recipe of envs like `env` for evaluation; of a single one that says not how it was made, perhaps of itself."""
    recipe = as_env_module(env).recipe("train")
    try:
        return as_env_module(env).recipe("val")
    except ConfigurationError as error:
        if or_itself and isinstance(recipe.source, gymnasium.Env):
            return recipe
        raise ConfigurationError(f"eval_env is needed: {error}") from error
