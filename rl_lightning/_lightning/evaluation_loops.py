"""Validation, test and prediction: whole episodes in envs of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
from pytorch_lightning.loops.prediction_loop import _PredictionLoop
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException

from rl_lightning.agents import ForeignAgent
from rl_lightning.envs.pool import Step
from rl_lightning.evaluation import EpisodeResult, EvaluationResult, evaluate
from rl_lightning.randomness import random_state
from rl_lightning.strategies import AsyncStrategy

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer

WATCH_S = 0.5
"""How often, in seconds, an evaluation looks at the workers of asynchronous training."""


class RLEvaluationLoop(_EvaluationLoop):
    """Lightning's validation or test: episodes in envs of their own, through the one function `evaluate`."""

    trainer: Trainer
    found: tuple[EvaluationResult, list[EpisodeResult]] | None = None
    """What the next run shall take for its result, because it was found elsewhere."""
    random_before: dict[str, Any] | None = None
    """Where the random generators of training are, while those of an evaluation are in their place."""
    _last_watch = 0.0

    def setup_data(self) -> None:
        plan = self.trainer.evaluation_plan(str(self._stage.dataloader_prefix))
        self._plan = plan
        self._max_batches = [float("inf") if plan.num_episodes is None else plan.num_episodes]

    def run(self) -> list[Any]:
        with torch.no_grad():
            return self._run()

    def _run(self) -> list[Any]:
        trainer = self.trainer
        self.setup_data()
        if self.skip:
            return []
        self._has_run = False
        self.batch_progress.reset_on_run()
        self._on_evaluation_model_eval()
        self._on_evaluation_start()
        self._on_evaluation_epoch_start()
        prefix = "test" if trainer.testing else "eval"
        result = self._episodes() if self.found is None else self._replay(*self.found)
        self._has_run = not trainer.sanity_checking
        trainer._logger_connector.epoch_end_reached()
        trainer._logger_connector._evaluation_epoch_end()
        metrics = {} if trainer.sanity_checking else trainer.strategy.broadcast(result.metrics(prefix))
        trainer.last_evaluation = result
        trainer._logger_connector.publish(metrics, prog_bar=(f"{prefix}/mean",))
        self._on_evaluation_epoch_end()
        logged: dict[str, Any] = {**metrics, **trainer._logger_connector.update_eval_epoch_metrics()}
        trainer._logger_connector.log_eval_end_metrics(dict(logged))
        if self.trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            trainer.fit_loop.after_evaluation()
        self._on_evaluation_end()
        self._on_evaluation_model_train()
        if self.verbose and trainer.is_global_zero:
            self._print_results([logged], self._stage.value)
        trainer._last_val_time = time.monotonic()
        return [logged]

    def _episodes(self) -> EvaluationResult:
        trainer = self.trainer
        self.random_before = random_state()
        try:
            return evaluate(
                trainer.lightning_module.agent,
                self._plan.pool,
                **self.arguments(),
                on_episode=self._on_episode,
                observe=self._watch if trainer.state.fn == TrainerFn.FITTING else None,
                device=trainer.strategy.root_device,
            )
        finally:
            self.random_before = None

    def arguments(self) -> dict[str, Any]:
        """Those of `evaluate`, as far as they do not depend on who calls it."""
        trainer, plan = self.trainer, self._plan
        num_episodes = self._max_batches[0] if trainer.sanity_checking or not plan.num_steps else None
        return {
            "num_episodes": None if num_episodes is None else int(min(num_episodes, self.max_batches[0])),
            "num_steps": None if num_episodes is not None else plan.num_steps,
            "max_episode_len": plan.max_episode_len,
            "seed": plan.seed,
            "seed_envs": plan.seed_envs,
            "dtype": agent_dtype(trainer),
        }

    def _replay(self, result: EvaluationResult, episodes: list[EpisodeResult]) -> EvaluationResult:
        for episode in episodes:
            self._on_episode(episode)
        return result

    def _watch(self, step: Step, reset: NDArray[np.bool_]) -> None:
        """Heed signals, and see that the workers of asynchronous training go on meanwhile."""
        trainer = self.trainer
        if trainer._signal_connector.received is not None:
            trainer._signal_connector.heed()
        agent = trainer.lightning_module.agent
        if isinstance(agent, ForeignAgent):
            agent.observe_evaluation(step, reset)
        if isinstance(trainer.rl_strategy, AsyncStrategy) and time.monotonic() - self._last_watch > WATCH_S:
            trainer.rl_strategy.check()
            self._last_watch = time.monotonic()

    def _on_episode(self, episode: EpisodeResult) -> None:
        """One finished episode is one of Lightning's validation batches."""
        trainer, progress = self.trainer, self.batch_progress
        stage = "test" if trainer.testing else "validation"
        index = progress.current.ready
        progress.increment_ready()
        trainer._logger_connector.on_batch_start(episode)
        call._call_callback_hooks(trainer, f"on_{stage}_batch_start", episode, index)
        call._call_lightning_module_hook(trainer, f"on_{stage}_batch_start", episode, index)
        progress.increment_started()
        output = call._call_lightning_module_hook(trainer, f"{stage}_step", episode, index)
        progress.increment_processed()
        call._call_callback_hooks(trainer, f"on_{stage}_batch_end", output, episode, index)
        call._call_lightning_module_hook(trainer, f"on_{stage}_batch_end", output, episode, index)
        trainer._logger_connector.on_batch_end()
        progress.increment_completed()
        if trainer.received_sigterm:
            raise SIGTERMException

    def teardown(self) -> None:
        super().teardown()
        self.trainer.close_evaluation_pools()


class RLPredictionLoop(_PredictionLoop):
    """Lightning's prediction: whole episodes, observations and actions included."""

    trainer: Trainer

    def run(self) -> list[Any] | None:
        trainer, plan = self.trainer, self.trainer.evaluation_plan("predict")
        self.max_batches = [plan.num_episodes or 0]
        if self.skip:
            return None
        self.batch_progress.reset_on_run()
        self._predictions = []
        self.epoch_batch_indices = [[]]
        self._hook("on_predict_start")
        self._module_mode.capture(trainer.lightning_module)
        trainer.lightning_module.eval()
        self._hook("on_predict_epoch_start")
        with torch.no_grad():
            evaluate(
                trainer.lightning_module.agent,
                plan.pool,
                num_episodes=plan.num_episodes,
                max_episode_len=plan.max_episode_len,
                seed=plan.seed,
                seed_envs=plan.seed_envs,
                on_episode=self._on_episode,
                record=True,
                device=trainer.strategy.root_device,
                dtype=agent_dtype(trainer),
            )
        self._hook("on_predict_epoch_end")
        self._hook("on_predict_end")
        self._module_mode.restore(trainer.lightning_module)
        return self._predictions if self.return_predictions else None

    @property
    def predictions(self) -> list[Any]:
        return self._predictions

    def _hook(self, name: str, *args: Any) -> None:
        call._call_callback_hooks(self.trainer, name, *args)
        call._call_lightning_module_hook(self.trainer, name, *args)

    def _on_episode(self, episode: EpisodeResult) -> None:
        index = self.batch_progress.current.ready
        self.batch_progress.increment_ready()
        self.current_batch_indices = [index]
        self.epoch_batch_indices[0].append([index])
        self._hook("on_predict_batch_start", episode, index)
        self.batch_progress.increment_started()
        prediction = call._call_lightning_module_hook(self.trainer, "predict_step", episode, index)
        self.batch_progress.increment_processed()
        self._hook("on_predict_batch_end", prediction, episode, index)
        self.batch_progress.increment_completed()
        self._predictions.append(prediction)

    def teardown(self) -> None:
        self.trainer.close_evaluation_pools()


def agent_dtype(trainer: pl.Trainer) -> torch.dtype:
    """The dtype of the agent's floating-point inputs: float64 under "64-true", the parameters' own otherwise."""
    parameter = next(iter(trainer.lightning_module.parameters()), None)
    return torch.float32 if parameter is None else parameter.dtype
