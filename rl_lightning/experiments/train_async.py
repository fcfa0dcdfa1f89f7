"""`train_agent_async`: several processes, each with an env of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from rl_lightning.callbacks import StepHooks, SuccessfulScore
from rl_lightning.envs import EnvRecipe
from rl_lightning.experiments.checks import check_hooks, prepare_run
from rl_lightning.experiments.directories import AgentDirectories, save_agent
from rl_lightning.experiments.evaluator import Evaluator
from rl_lightning.experiments.log import EpisodeLog
from rl_lightning.experiments.train import Hook, run
from rl_lightning.strategies import AsyncStrategy
from rl_lightning.types import ConfigurationError, check_counts

if TYPE_CHECKING:
    from rl_lightning.module import RLModule
    from rl_lightning.trainer import Trainer


def train_agent_async(
    outdir: str | Path,
    processes: int,
    make_env: Callable[..., Any],
    profile: bool = False,
    steps: int = 80_000_000,
    eval_interval: int | None = 1_000_000,
    eval_n_steps: int | None = None,
    eval_n_episodes: int | None = 10,
    eval_success_threshold: float = 0.0,
    max_episode_len: int | None = None,
    step_offset: int = 0,
    successful_score: float | None = None,
    agent: Any = None,
    make_agent: Callable[[int], Any] | None = None,
    global_step_hooks: Sequence[Hook] = (),
    evaluation_hooks: Sequence[Callable[..., object]] = (),
    save_best_so_far_agent: bool = True,
    use_tensorboard: bool = False,
    logger: logging.Logger | None = None,
    random_seeds: Sequence[int] | None = None,
    stop_event: Any = None,
    exception_event: Any = None,
    use_shared_memory: bool = True,
) -> Any:
    """Train in several processes, each with an env and an agent of its own, and parameters that all share.

    Evaluation runs in this process, in one env of its own, on a copy of the parameters, while the others go on.

    Args:
        outdir: where `{t}_finish`, `best`, `successful` and `scores.txt` go, and after an error or Ctrl-C
            `{t}_except`, t being the env steps of all processes.
        processes: how many.
        make_env: `make_env(process_idx, test=False)`, a process's env; `make_env(0, test=True)` is evaluated in.
        profile: write a profile of each process, `profile-{process_idx}.out`, into `outdir`.
        steps: env steps of all processes in all, those before `step_offset` included.
        eval_interval: env steps from one evaluation to the next. None: no evaluation.
        eval_n_steps, eval_n_episodes: how long an evaluation lasts; one of them is None.
        eval_success_threshold: taken for PFRL's sake, which does nothing with it either.
        max_episode_len: episodes are cut after so many env steps, in training and evaluation.
        step_offset: env steps taken before.
        successful_score: stop when an evaluation reaches this, and save the agent as `successful`.
        agent: the agent to train. None: `make_agent(0)`.
        make_agent: makes the agent of process i, whose parameters and optimizers are then those of all. One from
            elsewhere names them in `shared_attributes`. None: copies of `agent`.
        global_step_hooks: called in the processes as `hook(env, agent, step)`; every number occurs once.
        evaluation_hooks: called in this process after each evaluation.
        save_best_so_far_agent: whether to keep the best agent as `best`.
        use_tensorboard: whether to write event files into `outdir`.
        logger: what is told of episodes, saved agents and evaluations.
        random_seeds: one a process. None: 0, 1, ...
        stop_event: an event; once it is set, training ends as if it were complete. It is set when training ends.
        exception_event: an event; once it is set, training fails. It is set when training fails.
        use_shared_memory: False lets each process learn for itself; the agent is then that of process 0.
    Returns:
        the agent, with the parameters that all have learned.
    Raises:
        ConfigurationError: arguments that cannot work, before any step.
        ValueError: an evaluation hook does not support this function.
        WorkerError: a process failed; the message has its traceback.
    """
    check_hooks(evaluation_hooks, "support_train_agent_async", "train_agent_async")
    check_counts(processes=processes)
    if agent is None and make_agent is None:
        raise ConfigurationError("train_agent_async needs `agent`, or `make_agent`: a function from a number to one.")
    agent = make_agent(0) if agent is None and make_agent is not None else agent
    logger, outdir = logger or logging.getLogger(__name__), Path(outdir)
    directories = AgentDirectories(outdir, logger)
    evaluator = None
    if eval_interval is not None:
        evaluator = Evaluator(
            agent=agent,
            env=EnvRecipe(partial(make_env, 0, test=True)),
            n_steps=eval_n_steps,
            n_episodes=eval_n_episodes,
            eval_interval=eval_interval,
            outdir=outdir,
            max_episode_len=max_episode_len,
            step_offset=step_offset,
            evaluation_hooks=evaluation_hooks,
            save_best_so_far_agent=save_best_so_far_agent,
            logger=logger,
            use_tensorboard=use_tensorboard,
        )
    prepare_run(agent, steps, step_offset, outdir, evaluator)
    strategy = AsyncStrategy(
        processes,
        make_env=partial(make_env, test=False),
        make_agent=make_agent,
        seeds=range(processes) if random_seeds is None else [int(seed) for seed in random_seeds],
        use_shared_memory=use_shared_memory,
    )
    if profile:
        strategy.profile_dir = outdir
        logger.info("Each process writes its profile to %s", outdir / "profile-{process_idx}.out")
    success = [] if successful_score is None else [_Success(successful_score, outdir, logger)]
    run(
        agent,
        EnvRecipe(partial(make_env, 0, test=False), max_episode_len=max_episode_len),
        [
            directories,
            *([StepHooks(global_step_hooks)] if global_step_hooks else []),
            EpisodeLog(logger, outdir),
            *([] if evaluator is None else evaluator.callbacks(None, at_episode_end=False)),
            *success,
            _Events(stop_event, exception_event),
        ],
        strategy=strategy,
        steps=steps,
        step_offset=step_offset,
        outdir=outdir,
        evaluator=evaluator,
    )
    return agent


class _Success(SuccessfulScore):
    """Stop when the agent just evaluated has reached a score, and save that one as `successful`."""

    def __init__(self, score: float, outdir: Path, logger: logging.Logger) -> None:
        super().__init__(score)
        self._outdir, self._logger = outdir, logger

    def on_validation_end(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        self.best = None  # what an earlier one reached does not count
        super().on_validation_end(trainer, pl_module)
        if self.best is not None and self.best >= self.score:
            save_agent(trainer, self._outdir / "successful")
            self._logger.info("Saved the successful agent to %s", self._outdir / "successful")


class _Events(pl.Callback):
    """Watch the two events, and set them when training is over."""

    without_transition = True

    def __init__(self, stop: Any, exception: Any) -> None:
        self._stop, self._exception = stop, exception

    def on_env_step_start(self, trainer: Trainer, pl_module: RLModule) -> None:
        """Stop, or fail, if somebody wants that."""
        if self._exception is not None and self._exception.is_set():
            raise RuntimeError("exception_event was set from outside: training ends here.")
        if self._stop is not None and self._stop.is_set():
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: RLModule) -> None:  # type: ignore[override]
        if self._stop is not None:
            self._stop.set()

    def on_exception(self, trainer: Trainer, pl_module: RLModule, exception: BaseException) -> None:  # type: ignore[override]
        for event in (self._stop, self._exception):
            if event is not None:
                event.set()
