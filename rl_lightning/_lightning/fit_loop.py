"""The training loop: env steps in place of dataloaders."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import IntEnum
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.states import RunningStage, TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from rl_lightning._lightning.checkpoint import dump_checkpoint
from rl_lightning._lightning.clock import Clock, next_multiple
from rl_lightning._lightning.compilation import CompiledLearning, why_not_compiled
from rl_lightning._lightning.evaluation_loops import RLEvaluationLoop
from rl_lightning._lightning.hooks import Hooks
from rl_lightning._lightning.resume import restore, state_beside_memory
from rl_lightning.agents import ForeignAgent
from rl_lightning.denormals import without_denormals
from rl_lightning.metrics import Means
from rl_lightning.optimization import Optimization
from rl_lightning.randomness import set_random_state
from rl_lightning.strategies.background_evaluation import BackgroundEvaluator
from rl_lightning.transfer import pinned
from rl_lightning.types import Batch, Transition

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer

TICK_S = 0.1
"""About how often, in seconds, progress is shown and time limits are looked at."""


class Position(IntEnum):
    """How far the loop has come since the last env step: where a checkpoint was saved is where training goes on."""

    BETWEEN = 0
    """All is done that belongs to it."""
    LEARNING = 1
    """It is remembered; learning steps may be due."""
    LEARNED = 2
    """`on_env_step_end` is due."""
    EVENTS = 3
    """Log entry, tick and evaluation are looked at."""
    EPOCH_OVER = 4
    """It was the epoch's last; its evaluation and `on_train_epoch_end` are looked at."""


# as plain numbers, for the loop sets one of them three times a step
_BETWEEN, _LEARNING, _LEARNED, _EVENTS, _EPOCH_OVER = map(int, Position)


class _EpochIsOver(Exception):  # no StopIteration, which an env may raise by mistake
    """`on_train_batch_start` returned -1, or `limit_train_batches` is reached."""


class RLTrainingEpochLoop(_TrainingEpochLoop):
    """Holds the clock. The loop itself is `RLFitLoop.advance`."""

    val_loop: RLEvaluationLoop

    def __init__(self, trainer: Trainer, min_steps: int | None = None, max_steps: int = -1) -> None:
        self.clock = Clock()
        super().__init__(trainer, min_steps=min_steps, max_steps=max_steps)
        self.val_loop = RLEvaluationLoop(
            trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
        )

    @property
    def global_step(self) -> int:
        return self.clock.env_steps

    @property
    def _batches_that_stepped(self) -> int:
        """Every logger's x-axis, in stock callbacks too."""
        return self.clock.env_steps

    @_batches_that_stepped.setter
    def _batches_that_stepped(self, value: int) -> None:
        """Lightning's own loop counts here; the clock counts env steps instead."""


class RLFitLoop(_FitLoop):
    """Feeds env steps in place of dataloaders::

    on_train_start
    until max_steps, max_epochs, max_time or should_stop:
        on_train_epoch_start
        until steps_per_epoch env steps have been taken:
            new episodes, where the last ones are over
            on_env_step_start
            transition = strategy.advance()
            memory.add(transition)
            on_env_step(transition)
            for batch in memory.batches():
                on_train_batch_start
                training_step
                on_train_batch_end
            on_env_step_end(transition)
            log entry, on_tick, evaluation, if due
        evaluation, if due
        on_train_epoch_end
    on_train_end
    """

    epoch_loop: RLTrainingEpochLoop
    trainer: Trainer
    epoch_progress: Any
    user_min_epochs: int | None = None
    epoch_start = 0  # env step
    position = _BETWEEN
    to_resume: dict[str, Any] | None = None
    """The run's state from a checkpoint, until it is put back."""
    resumed_from: Path | None = None
    """The directory of that checkpoint, if it is one of this machine."""
    in_epoch = False
    transition: Transition | None = None
    is_broken = False
    """An error came between: the envs are somewhere in the middle of a step."""
    final_state: dict[str, Any] | None = None
    """The run's state at its end, for when its envs are gone; but for the memory, which stays."""
    _compiled: CompiledLearning | None = None
    _background: BackgroundEvaluator | None = None
    _evaluated: tuple[Clock, dict[str, Any]]

    @property
    def clock(self) -> Clock:
        return self.epoch_loop.clock

    # ---- the run -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.min_epochs = self.user_min_epochs  # Lightning adds one where min_steps is given, and ours are long
        self.final_state, self.is_broken = None, False
        self._resume_epochs()
        if (self.done and not self.in_epoch) or self.trainer.limit_train_batches == 0:
            return
        self.setup_data()
        self.on_run_start()
        try:
            while self.in_epoch or not self.done:
                if not self.in_epoch:
                    self.on_advance_start()
                if self.position != _EPOCH_OVER:
                    with self.trainer.profiler.profile("run_training_epoch"):
                        self.advance()
                    self.position = _EPOCH_OVER
                self._evaluate_if_due(epoch_end=True)
                self.on_advance_end()
                self._restarting = False
        except BaseException as error:
            self.is_broken = not isinstance(error, SIGTERMException | KeyboardInterrupt)
            self.trainer.save_interrupted(error)
            raise
        self.on_run_end()

    def _resume_epochs(self) -> None:
        """Put the epoch counters where the clock says, whichever hook a checkpoint was saved in."""
        progress, trainer = self.epoch_progress.current, self.trainer
        self.epoch_start, self.position, self.in_epoch = self.clock.env_steps, _BETWEEN, False
        if self.to_resume is not None:
            loop = self.to_resume["loop"]
            self.epoch_start, self.position, self.in_epoch = loop["epoch_start"], loop["position"], loop["in_epoch"]
        if self.clock.env_steps and not self.in_epoch and not isinstance(trainer.limit_train_batches, int):
            progress.processed = self.clock.env_steps // trainer.steps_per_epoch  # one that was cut short goes on
        progress.ready = progress.started = progress.completed = progress.processed
        if self.in_epoch:
            progress.ready = progress.started = progress.processed + 1

    def setup_data(self) -> None:
        """Get envs, memory, hooks and optimizers ready, and look up once what every step needs."""
        trainer = self.trainer
        self.strategy, self.memory = trainer.setup_gathering()
        hooks = Hooks(trainer)
        self._on_env_step_start = hooks.bind("on_env_step_start")
        self._on_env_step = hooks.bind("on_env_step")
        self._on_env_step_end = hooks.bind("on_env_step_end")
        self._on_batch_start = hooks.bind("on_train_batch_start")
        self._on_batch_end = hooks.bind("on_train_batch_end", savers=False)
        self._save_if_due = hooks.bind("on_train_batch_end", savers=True)
        self._on_tick = hooks.bind("on_tick")
        self.optimization = Optimization(trainer, hooks)
        trainer.lightning_module.__dict__["optimize"] = self.optimization
        self._training_step = without_denormals(self._make_training_step(hooks))
        self._convert = self._batch_conversion(hooks)
        self._context = _training_context(trainer.precision_plugin)
        self._world_size = trainer.world_size
        limit = trainer.limit_train_batches
        self._max_updates = limit if isinstance(limit, int) else float("inf")
        self.means, self._collects_metrics = Means(), bool(trainer.log_every_n_steps)
        self._has_schedulers = bool(trainer.lr_scheduler_configs)
        self.num_finished = self.strategy.episodes.num_finished
        trainer._last_val_time = time.monotonic()
        step = self.clock.env_steps
        self.next_log = self.next_batch_log = next_multiple(step, trainer.log_every_n_steps)
        self._eval_interval, self._at_episode_end = trainer.evaluation_interval, trainer.eval_at_episode_end
        self.next_eval = next_multiple(step, self._eval_interval)
        self.last_eval = -1
        self._next_tick = step
        self._last_tick = self._last_log_time = time.perf_counter()
        self._last_tick_step = self.last_log_step = step
        self.last_log_updates = self.clock.num_updates
        if self.to_resume is not None:
            restore(self, self.to_resume, self.resumed_from)

    def _make_training_step(self, hooks: Hooks) -> Callable[[Batch, int], Any]:
        """What does one learning step: the module's `training_step`, or with `compile=True` a graph of it."""
        eagerly = hooks.method("training_step")
        if self.strategy.learns_elsewhere:  # and compiles there
            return self._note_learning
        if not self.trainer.compile:
            return eagerly
        reason = why_not_compiled(self.trainer, hooks)
        if reason is not None:
            rank_zero_warn(f"compile=True: the learning step runs uncompiled, because {reason}.")
            return eagerly
        self._compiled = CompiledLearning(self.trainer, self.optimization, eagerly)
        return self._compiled

    def _note_learning(self, report: Batch, batch_idx: int) -> Any:
        """Count the learning steps that a worker reports; the caller counts one."""
        others = report["num_updates"] - 1
        self.clock.num_updates += others
        self.clock.num_optimizer_steps += others
        if self._has_schedulers:
            for _ in range(others):
                self.epoch_loop._update_learning_rates("step", update_plateau_schedulers=False)
        self.optimization.last_loss = torch.tensor(report["loss"])
        return report["metrics"]

    def _batch_conversion(self, hooks: Hooks) -> Callable[[Batch], Batch] | None:
        """What has to be done to each batch before it is learned from; None on the host in plain float32."""
        trainer, module = self.trainer, self.trainer.lightning_module
        transfer = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        plain = type(trainer.precision_plugin) is Precision or isinstance(trainer.precision_plugin, MixedPrecision)
        if plain and trainer.strategy.root_device.type == "cpu" and not any(map(hooks.overridden, transfer)):
            return None

        on_gpu = trainer.strategy.root_device.type == "cuda"

        def convert(batch: Batch) -> Batch:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            return trainer.strategy.batch_to_device(pinned(batch) if on_gpu else batch, dataloader_idx=0)

        return convert

    def on_run_start(self) -> None:
        trainer = self.trainer
        torch.set_grad_enabled(True)
        if trainer.enable_validation:
            self.epoch_loop.val_loop.setup_data()
        call._call_callback_hooks(trainer, "on_train_start")
        call._call_lightning_module_hook(trainer, "on_train_start")
        call._call_strategy_hook(trainer, "on_train_start")
        if trainer.eval_at_start and self.clock.env_steps == 0:
            self._evaluate()
        if self.to_resume is not None:  # last of all: what starts anew may draw random numbers
            set_random_state(self.to_resume["random"])
            self.to_resume = None

    def on_advance_start(self) -> None:
        trainer = self.trainer
        self.epoch_progress.increment_ready()
        self.epoch_loop.batch_progress.reset_on_run()
        self.epoch_start = self.clock.env_steps
        limit = trainer.limit_train_batches
        self.max_batches = limit if isinstance(limit, int) else self._epoch_end() - self.epoch_start
        call._call_callback_hooks(trainer, "on_train_epoch_start")
        call._call_lightning_module_hook(trainer, "on_train_epoch_start")
        self.epoch_progress.increment_started()
        self.in_epoch = True

    def _epoch_end(self) -> int:
        """The env step that the epoch ends at, where nothing else ends it."""
        end = int(next_multiple(self.epoch_start, self.trainer.steps_per_epoch))
        return end if self.max_steps == -1 else min(end, self.max_steps)

    # ---- one epoch: the hot loop ---------------------------------------------------------------------------------

    def advance(self) -> None:
        trainer, clock, strategy, memory = self.trainer, self.clock, self.strategy, self.memory
        signals = trainer._signal_connector
        end = self._epoch_end()
        self._next_event = min(self.next_log, self.next_eval, self._next_tick)
        advance, batches, on_env_step = strategy.advance, memory.batches, self._on_env_step
        add: Callable[[Any], None] = memory.add
        on_env_step_start, on_env_step_end = self._on_env_step_start, self._on_env_step_end
        position, transition = self.position, self.transition
        try:
            while clock.env_steps < end or position != _BETWEEN:
                if position == _BETWEEN:
                    if on_env_step_start is not None:
                        strategy.begin_episodes()
                        on_env_step_start()
                    self.transition = transition = advance()
                    clock.env_steps += strategy.num_steps * self._world_size
                    add(transition)
                    self.position = position = _LEARNING
                    if on_env_step is not None:
                        clock.num_episodes = strategy.episodes.num_finished
                        on_env_step(transition)
                if position == _LEARNING:
                    for batch in batches():
                        self._learn(batch)
                    self.position = position = _LEARNED
                if position == _LEARNED and on_env_step_end is not None:
                    clock.num_episodes = strategy.episodes.num_finished
                    on_env_step_end(transition)
                if clock.env_steps >= self._next_event:
                    self.position = _EVENTS
                    self._on_event(transition)
                self.position = position = _BETWEEN
                if trainer.should_stop and self._can_stop_early:
                    break
                if signals.received is not None:
                    signals.heed()
            if self._run_ends_here():
                clock.env_steps += strategy.finish() * self._world_size
                strategy.synchronize()
                if strategy.learns_elsewhere:
                    for batch in batches():
                        self._learn(batch)
        except _EpochIsOver:
            self.position = _BETWEEN
        clock.num_episodes = strategy.episodes.num_finished

    def _learn(self, batch: Batch) -> None:
        """One learning step, which is one of Lightning's batches."""
        trainer, clock, progress = self.trainer, self.clock, self.epoch_loop.batch_progress
        connector, results = trainer._logger_connector, self.epoch_loop._results
        clock.num_episodes = self.strategy.episodes.num_finished
        batch_idx = progress.current.ready
        given = batch
        if self._convert is not None:
            batch = self._convert(batch)
        progress.increment_ready()
        connector.log_due = log_due = clock.env_steps >= self.next_batch_log
        connector._first_loop_iter = batch_idx == 0
        results.batch = batch
        results.batch_size = results.dataloader_idx = None
        if self._on_batch_start is not None and self._on_batch_start(batch, batch_idx) == -1:
            raise _EpochIsOver
        progress.increment_started()
        if self._context is None:
            metrics = self._training_step(batch, batch_idx)
        else:
            with self._context():
                metrics = self._training_step(batch, batch_idx)
        if batch is not given and "td_error" in batch:  # which the memory looks for in the batch that it gave
            given["td_error"] = batch["td_error"]
        clock.num_updates += 1
        progress.increment_processed()
        if not self.optimization.accumulating:
            clock.num_optimizer_steps += 1
            if self._has_schedulers:
                self.epoch_loop._update_learning_rates("step", update_plateau_schedulers=False)
        if metrics and self._collects_metrics:
            self.means.add(metrics)
        if self._on_batch_end is not None or self._save_if_due is not None:
            outputs = {"loss": self.optimization.last_loss, **(metrics or {})}
        if self._on_batch_end is not None:
            self._on_batch_end(outputs, batch, batch_idx)
        if results:  # somebody used `self.log`
            connector.on_batch_end()
            if log_due:
                connector.log_metrics(connector.metrics["log"])
        results.batch = None
        progress.increment_completed()
        if log_due:
            connector.log_due = False
            self.next_batch_log = next_multiple(clock.env_steps, trainer.log_every_n_steps)
        if self._save_if_due is not None:
            self._save_if_due(outputs, batch, batch_idx)
        if batch_idx + 1 >= self._max_updates:
            raise _EpochIsOver

    # ---- what happens now and then -------------------------------------------------------------------------------

    def _on_event(self, transition: Transition | None) -> None:
        step = self.clock.env_steps
        self.clock.num_episodes = self.strategy.episodes.num_finished
        if step >= self.next_log:
            self._log()
        if step >= self._next_tick:
            self._tick()
        ended = transition is None or transition.terminated.any() or transition.truncated.any()
        if ended or not self._at_episode_end:
            self._evaluate_if_due(epoch_end=False)
        self._next_event = min(self.next_log, self.next_eval, self._next_tick)

    def _tick(self) -> None:
        """Show progress and look at the time; the next tick is as many env steps away as fit in `TICK_S`."""
        now, step, trainer = time.perf_counter(), self.clock.env_steps, self.trainer
        rate = (step - self._last_tick_step) / max(now - self._last_tick, 1e-6)
        stride = max(1, min(rate * TICK_S, 2 * max(1, step - self._last_tick_step)))
        self._next_tick, self._last_tick, self._last_tick_step = step + int(stride), now, step
        for callback in trainer.callbacks:
            # In replay warm-up no batch ends, which is where the Timer looks by itself. It asks all ranks, and those
            # do not tick at the same step.
            if isinstance(callback, Timer) and self._world_size == 1:
                callback.on_train_batch_end(trainer)
        if self._on_tick is not None:
            self._on_tick()

    def _log(self) -> None:
        """Write what was gathered since the last time, and begin anew."""
        step, clock, trainer = self.clock.env_steps, self.clock, self.trainer
        self.next_log = next_multiple(step, trainer.log_every_n_steps)
        metrics = self._training_metrics(self.means.flush() | self.strategy.metrics())
        self.num_finished = self.strategy.episodes.num_finished
        elapsed = max(time.perf_counter() - self._last_log_time, 1e-9)
        metrics["time/env_steps_per_second"] = (step - self.last_log_step) / elapsed
        metrics["time/updates_per_second"] = (clock.num_updates - self.last_log_updates) / elapsed
        self._restart_log_timer()
        trainer._logger_connector.publish(metrics, prog_bar=("train/return",))
        trainer._logger_connector.log_metrics(dict(metrics))

    def _training_metrics(self, means: dict[str, float]) -> dict[str, Any]:
        """What is logged of training: the agent's own metrics, and the episodes since the last log entry."""
        agent = self.trainer.lightning_module.agent
        if isinstance(agent, ForeignAgent):
            means = {name: value for name, value in agent.statistics().items() if isinstance(value, Real)}
        metrics: dict[str, Any] = {f"train/{name}": value for name, value in means.items()}
        episodes = self.strategy.episodes
        if episodes.num_finished > self.num_finished:
            recent = min(episodes.num_finished - self.num_finished, len(episodes.recent_returns))
            metrics["train/return"] = sum(list(episodes.recent_returns)[-recent:]) / recent
            metrics["train/length"] = sum(list(episodes.recent_lengths)[-recent:]) / recent
        return metrics

    def _restart_log_timer(self) -> None:
        self._last_log_time, self.last_log_step = time.perf_counter(), self.clock.env_steps
        self.last_log_updates = self.clock.num_updates

    def _evaluate_if_due(self, *, epoch_end: bool) -> None:
        """Evaluate when the interval has been crossed, or at the end of every so many epochs and of the whole run."""
        trainer, step = self.trainer, self.clock.env_steps
        due = step >= self.next_eval or self._evaluation_time_is_up()
        if epoch_end and self._eval_interval is None and trainer._val_check_time_interval is None:
            every = trainer.check_val_every_n_epoch or 1
            due = due or (trainer.current_epoch + 1) % every == 0
        if epoch_end and self._run_ends_here():
            due = due or trainer.eval_at_end
        elif epoch_end and self._at_episode_end:
            due = False  # it waits for the episode's end
        if self._background is not None:
            self._finish_background(wait=epoch_end and self._run_ends_here())
            if self._background.is_busy:
                return  # one that is due waits for the one before it
        if due or epoch_end:
            # for callbacks that monitor training, and look now
            trainer._logger_connector.publish(self._training_metrics(self.means.values()), prog_bar=("train/return",))
        if due and step != self.last_eval and trainer.enable_validation:
            if trainer.evaluates_in_background and not self._run_ends_here():
                self._evaluate_in_background()
            else:
                self._evaluate()
        if due:
            self.next_eval = next_multiple(step, self._eval_interval)

    def _evaluation_time_is_up(self) -> bool:
        interval = self.trainer._val_check_time_interval
        return interval is not None and time.monotonic() - self.trainer._last_val_time >= interval

    def _run_ends_here(self) -> bool:
        steps_done = self.max_steps != -1 and self.clock.env_steps >= self.max_steps
        last_epoch = self.max_epochs not in (None, -1) and self.epoch_progress.current.processed + 1 >= self.max_epochs
        return steps_done or last_epoch or (self.trainer.should_stop and self._can_stop_early)

    def _evaluate_in_background(self) -> None:
        """Let another process evaluate the agent as it is now."""
        trainer, loop = self.trainer, self.epoch_loop.val_loop
        self.strategy.synchronize()
        self.last_eval = self.clock.env_steps
        loop.setup_data()
        if self._background is None:
            self._background = BackgroundEvaluator(trainer.lightning_module.agent, trainer.eval_recipe)
        self._background.start(**loop.arguments())
        self._evaluated = copy.copy(self.clock), copy.deepcopy(dump_checkpoint(trainer))

    def _finish_background(self, *, wait: bool = False) -> None:
        """Take in what an evaluation in the background has found, if it is ready."""
        background, trainer = self._background, self.trainer
        while background is not None and background.is_busy:
            found = background.result(TICK_S if wait else 0.0)
            if found is not None:
                now = copy.copy(self.clock)
                clock, trainer.evaluated_checkpoint = self._evaluated
                self.epoch_loop.val_loop.found = found
                self._set_clock(clock)
                try:
                    self._evaluate()
                finally:
                    self._set_clock(now)
                    trainer.evaluated_checkpoint = self.epoch_loop.val_loop.found = None
            elif not wait:
                return
            elif trainer._signal_connector.received is not None:
                trainer._signal_connector.heed()

    def _set_clock(self, clock: Clock) -> None:
        vars(self.clock).update(vars(clock))

    def _evaluate(self) -> None:
        trainer = self.trainer
        if not trainer.enable_validation:
            return
        started = time.perf_counter()
        self.strategy.synchronize()
        first_loop_iter = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        self.epoch_loop.val_loop.run()
        trainer.training = True
        trainer.after_evaluation()
        trainer._logger_connector._first_loop_iter = first_loop_iter
        torch.set_grad_enabled(True)
        self._last_log_time += time.perf_counter() - started  # evaluation is not training time
        self._last_tick = time.perf_counter()

    def after_evaluation(self) -> None:
        """The result is there, and nobody has seen it: what is saved from now on knows that it is done."""
        step = self.clock.env_steps
        self.last_eval, self.next_eval = step, next_multiple(step, self._eval_interval)
        if self.trainer.lr_scheduler_configs:
            self.epoch_loop._update_learning_rates("step", update_plateau_schedulers=True)

    def on_advance_end(self) -> None:
        trainer, loop = self.trainer, self.epoch_loop
        trainer._logger_connector.epoch_end_reached()
        self.epoch_progress.increment_processed()
        call._call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=False)
        call._call_lightning_module_hook(trainer, "on_train_epoch_end")
        trainer._logger_connector.on_epoch_end()
        if trainer.lr_scheduler_configs:
            loop._update_learning_rates("epoch", update_plateau_schedulers=False)
            loop._update_learning_rates("epoch", update_plateau_schedulers=True)
        trainer._logger_connector.update_train_epoch_metrics()
        self.position, self.in_epoch = _BETWEEN, False  # as what is saved now should say
        call._call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=True)
        self.epoch_progress.increment_completed()
        if trainer._signal_connector.received is not None:
            trainer._signal_connector.heed()

    def on_run_end(self) -> None:
        if self.trainer.log_every_n_steps and self.clock.env_steps > self.last_log_step:
            self._log()
        super().on_run_end()
        self.final_state = state_beside_memory(self.trainer)

    def teardown(self) -> None:
        super().teardown()
        self.trainer.rl_strategy.teardown()
        if self._background is not None:
            self._background.close()
            self._background = None
        if self._compiled is not None:
            self._compiled.close()
        module = self.trainer.lightning_module
        if module is not None:
            module.__dict__.pop("optimize", None)


def _training_context(plugin: Precision) -> Callable[[], AbstractContextManager[Any]] | None:
    return None if type(plugin) is Precision else plugin.train_step_context
