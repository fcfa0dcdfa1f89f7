"""When to evaluate, and what to do with the result: the `evaluator` of `train_agent` and `train_agent_batch`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from rl_lightning.callbacks import Evaluation, EvaluationHooks, SuccessfulScore
from rl_lightning.env_module import EnvLike, evaluation_recipe
from rl_lightning.experiments.directories import BestDirectory
from rl_lightning.experiments.log import EvaluationLog
from rl_lightning.types import ConfigurationError, Transition, check_counts

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


class Evaluator:
    """Evaluates the agent every `eval_interval` env steps, records the scores, and keeps the best agent.

    It names what the callbacks `Evaluation`, `EvaluationHooks` and `BestAgent` do together; `train_agent` puts those
    among a Trainer's.

    Args:
        agent: the agent, the same that is trained.
        env: what to evaluate in: an env, a vector env, a gymnasium id, a factory, a recipe, an EnvModule's evaluation
            envs.
        n_steps: env steps an evaluation. Either this or `n_episodes` is None.
        n_episodes: episodes an evaluation.
        eval_interval: env steps of training from one evaluation to the next.
        outdir: where `scores.txt` and the directory `best` go.
        max_episode_len: evaluation episodes are cut after so many env steps. None: as the env says.
        step_offset: the env step at which training starts.
        evaluation_hooks: called after each evaluation (see `EvaluationHook`).
        save_best_so_far_agent: whether to save the agent in `best` when it scores better than ever before.
        logger: what is told of every evaluation and every new best score.
        use_tensorboard: whether to write event files into `outdir`.
    Attributes:
        max_score: the best mean return so far, that of a run it goes on with included; -inf before the first.
        history: one dict an evaluation: the agent's own statistics, and `eval_score`.
    Raises:
        ConfigurationError: not exactly one of `n_steps` and `n_episodes`, or a count below 1 or not whole.
    """

    def __init__(
        self,
        agent: Any,
        env: EnvLike,
        n_steps: int | None,
        n_episodes: int | None,
        eval_interval: int,
        outdir: str | Path,
        max_episode_len: int | None = None,
        step_offset: int = 0,
        evaluation_hooks: Sequence[Callable[..., object]] = (),
        save_best_so_far_agent: bool = True,
        logger: logging.Logger | None = None,
        use_tensorboard: bool = False,
    ) -> None:
        if (n_steps is None) == (n_episodes is None):
            raise ConfigurationError(
                f"n_steps={n_steps}, n_episodes={n_episodes}: an evaluation lasts for a number of env steps or of "
                "episodes. Give exactly one of the two; the other must be None."
            )
        if eval_interval is None:
            raise ConfigurationError(
                "eval_interval=None: give the env steps from one evaluation to the next. To train without evaluation, "
                "use train_agent or train_agent_batch."
            )
        check_counts(n_steps=n_steps, n_episodes=n_episodes, eval_interval=eval_interval)
        self.agent, self.env, self.outdir = agent, env, Path(outdir)
        self.n_steps, self.n_episodes, self.eval_interval = n_steps, n_episodes, eval_interval
        self.max_episode_len, self.step_offset = max_episode_len, step_offset
        self.evaluation_hooks, self.use_tensorboard = tuple(evaluation_hooks), use_tensorboard
        logger = logger or logging.getLogger(__name__)
        self._log = EvaluationLog(logger, self.outdir)
        self._best = BestDirectory(self.outdir, logger, saves=save_best_so_far_agent)
        self._evaluation = Evaluation(
            n_episodes,
            num_steps=n_steps,
            every_n_steps=eval_interval,
            max_episode_len=max_episode_len,
            eval_at_end=False,
            env=evaluation_recipe(env),
        )

    @property
    def max_score(self) -> float:
        return self._best.max_score

    @property
    def history(self) -> list[dict[str, Any]]:
        return self._evaluation.history

    def callbacks(self, successful_score: float | None, *, at_episode_end: bool) -> list[pl.Callback]:
        """The callbacks that do the work: evaluate, log, call the hooks, test for success, keep the best agent."""
        self._evaluation.at_episode_end = at_episode_end
        self._best.go_on(self.step_offset)
        hooks = EvaluationHooks(self.evaluation_hooks, evaluator=self)
        callbacks: list[pl.Callback] = [self._evaluation, self._log, hooks]
        if successful_score is not None:
            callbacks.append(success := SuccessfulScore(successful_score))
            success.best = self.max_score
        return [*callbacks, self._best]


class ForeignEvaluator(pl.Callback):
    """Asks an evaluator from elsewhere, with `evaluate_if_necessary(t=, episodes=)` and `max_score`, to do its work.

    Args:
        evaluator: the object.
        successful_score: training stops when its `max_score` has reached this.
        at_episode_end: ask at the ends of episodes only.
    Attributes:
        history: one dict an evaluation: the agent's own statistics, and `eval_score`.
    """

    def __init__(self, evaluator: Any, successful_score: float | None, *, at_episode_end: bool) -> None:
        self.history: list[dict[str, Any]] = []
        self._evaluator, self._successful_score, self._at_episode_end = evaluator, successful_score, at_episode_end

    def on_env_step_end(self, trainer: Trainer, pl_module: pl.LightningModule, transition: Transition) -> None:
        """Evaluate, if the evaluator finds it necessary."""
        ended = transition.terminated.any() or transition.truncated.any() or trainer.global_step >= trainer.max_steps
        if self._at_episode_end and not ended:
            return
        score = self._evaluator.evaluate_if_necessary(t=trainer.global_step, episodes=trainer.num_episodes)
        if score is not None:
            self.history.append({**trainer.agent_statistics, "eval_score": score})
        if self._successful_score is not None and self._evaluator.max_score >= self._successful_score:
            trainer.should_stop = True
