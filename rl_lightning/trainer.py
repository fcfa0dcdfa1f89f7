"""`Trainer`: Lightning's Trainer, fed by environments, on the clock of env steps."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import OnExceptionCheckpoint, ProgressBar
from pytorch_lightning.strategies import Strategy as LightningStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from rl_lightning import _lightning
from rl_lightning.agents import Agent, ForeignAgent
from rl_lightning.callbacks import Evaluation, LinearInterpolation, RLProgressBar, StepHooks
from rl_lightning.checks import (
    check_async,
    check_callbacks,
    check_checkpoint_intervals,
    check_flags,
    check_foreign_agent,
    check_shared_env,
    share_an_env,
)
from rl_lightning.env_module import EnvLike, EnvModule, as_env_module, evaluation_recipe
from rl_lightning.envs import EnvPool, EnvRecipe, why_not_exact
from rl_lightning.evaluation import EvaluationResult, check_evaluation
from rl_lightning.memory import Memory, ReplayMemory
from rl_lightning.memory.row_store import RowStore
from rl_lightning.module import RLModule
from rl_lightning.optimization import clip_limits
from rl_lightning.strategies import AsyncPlan, AsyncStrategy, BatchStrategy, Strategy, SyncStrategy
from rl_lightning.threads import fitting_threads
from rl_lightning.types import ConfigurationError, NonFiniteError, check_counts

_SEED_VARIABLE = "PL_GLOBAL_SEED"
"""Where `seed_everything` leaves its seed."""
_ROLES = ("train", "val", "test", "predict", "memory")
"""Each role draws its seeds from a stream of its own; the order is part of what a seed means, so only append."""


@dataclass(frozen=True)
class EvaluationPlan:
    """One evaluation, worked out: exactly one of `num_episodes` and `num_steps` is set."""

    pool: EnvPool
    num_episodes: int | None
    num_steps: int | None
    max_episode_len: int | None
    seed: int
    seed_envs: bool


class Trainer(pl.Trainer):
    """Trains an agent the way Lightning trains a network.

    Every argument of `pytorch_lightning.Trainer` is taken. `trainer.global_step` is the number of env steps taken in
    training, over all envs and workers, and everything that counts steps counts those:

    | Argument | What it means here |
    |---|---|
    | `max_steps`, `min_steps` | env steps; with several envs training may pass `max_steps` by up to num_envs - 1 |
    | `steps_per_epoch` | env steps in an epoch (ours; 10,000) |
    | `max_epochs`, `min_epochs`, `max_time` | as in Lightning; one of `max_steps`, `max_epochs`, `max_time` is needed |
    | `val_check_interval` | int: env steps between evaluations; float: that part of an epoch; time: as in Lightning |
    | `check_val_every_n_epoch` | evaluate at the end of every so many epochs |
    | `limit_val_batches`, `limit_test_batches`, `limit_predict_batches` | episodes: at most (int), a part of (float) |
    | `limit_train_batches` | int: at most so many learning steps an epoch, then the epoch ends |
    | `log_every_n_steps` | env steps between two log entries (1,000); fires on crossing |
    | `fast_dev_run` | so many learning steps and evaluation episodes, no logger, no checkpoint |
    | `num_sanity_val_steps` | evaluation episodes before training (0: they would act in a real env) |
    | `accumulate_grad_batches` | learning steps whose gradients are averaged into one step of each optimizer |
    | `gradient_clip_val` | replaces the agent's `max_grad_norm`; 0 switches clipping off |
    | `precision` | "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true"; of learning |
    | `deterministic`, `profiler`, `detect_anomaly`, `barebones`, `max_time`, `devices`, ... | as in Lightning |
    | `overfit_batches`, `reload_dataloaders_every_n_epochs` | an error: there are no dataloaders |

    Args:
        strategy: how experience is gathered: "sync" (one env), "batch" (several in lockstep), "auto" (whichever of
            these fits), "async" (`AsyncStrategy()`: processes that do not wait for each other), or an instance.
            Lightning's own names ("ddp", ...) pass through to Lightning and gather in batch on every rank.
        steps_per_epoch: env steps in an epoch; the evaluation ends it.
        log_every_n_steps: env steps between two log entries.
        num_sanity_val_steps: evaluation episodes before training.
        num_threads: of torch on the host, while fitting. None: one for agents of fewer than 100,000 weights, to which
            more are of no use and a busy machine's a burden; for others as torch has it.
        compile: make one compiled graph of a whole learning step (losses, gradients, clipping, optimizers), with the
            same results to rounding, in about half the time for small networks, for seconds of start-up that are
            printed. Where something overridden must run in its middle, or it cannot be compiled, a warning says so,
            and the learning step runs as without.
        **kwargs: every other argument of `pytorch_lightning.Trainer`.

    Attributes:
        seed: what every random stream of the run follows from: `seed_everything`'s seed, or a fresh one. Without
            `seed_everything`, an env that was given as an object keeps its own random state.
        init_args: the arguments that it was made with; of those of Lightning's alone, the given ones.
        fit_args: what the last `fit` was told about where to start.
        memory: what the agent learns from, while fitting.
        last_evaluation: the result of the last evaluation.

    Raises:
        ConfigurationError: arguments that cannot mean anything here, or not together.
    """

    fit_loop: _lightning.RLFitLoop
    callbacks: list[pl.Callback]
    profiler: pl.profilers.Profiler
    fast_dev_run: int | bool
    log_every_n_steps: int
    _logger_connector: _lightning.RLLoggerConnector
    _signal_connector: _lightning.RLSignalConnector
    _val_check_time_interval: float | None
    _last_val_time: float

    def __init__(
        self,
        *,
        strategy: str | Strategy | LightningStrategy = "auto",
        steps_per_epoch: int = 10_000,
        log_every_n_steps: int | None = None,
        num_sanity_val_steps: int | None = 0,
        num_threads: int | None = None,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        check_flags(steps_per_epoch, kwargs)
        check_counts(num_threads=num_threads)
        own = {"steps_per_epoch": steps_per_epoch, "log_every_n_steps": log_every_n_steps, "num_threads": num_threads}
        more = {"compile": compile, "num_sanity_val_steps": num_sanity_val_steps}
        self.init_args = {"strategy": strategy, **own, **more, **kwargs}
        self.fit_args: dict[str, Any] = {}
        self.steps_per_epoch = steps_per_epoch
        self.compile = compile
        self.num_threads = num_threads
        self._gathering: str | Strategy = strategy if isinstance(strategy, Strategy) else "batch"
        if strategy in ("auto", "sync", "batch", "async") or isinstance(strategy, Strategy):
            self._gathering, strategy = AsyncStrategy() if strategy == "async" else strategy, "auto"
        self._user_val_check = kwargs.get("val_check_interval")
        if not kwargs.get("barebones", False):
            log_every_n_steps = 1_000 if log_every_n_steps is None else log_every_n_steps
            kwargs["callbacks"] = _with_progress_bar(kwargs.get("callbacks"), kwargs.get("enable_progress_bar"))
        super().__init__(
            strategy=strategy,
            log_every_n_steps=log_every_n_steps,
            num_sanity_val_steps=num_sanity_val_steps,
            **kwargs,
        )
        _lightning.install_loops(self)
        self.seed = 0
        self._is_seeded = False
        self.memory: Memory | None = None
        self.row_store: RowStore | None = None
        self.last_evaluation: EvaluationResult | None = None
        self.evaluated_checkpoint: dict[str, Any] | None = None
        self.rl_strategy: Strategy = BatchStrategy()
        self._train_pool: EnvPool | None = None
        self._exactness_is_known = False
        self._evaluation_pools: dict[str, EnvPool] = {}

    # ---- what users call -----------------------------------------------------------------------------------------

    def fit(  # type: ignore[override]
        self,
        model: RLModule | Agent,
        env: EnvLike | None = None,
        *,
        datamodule: EnvModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        step_offset: int | None = None,
    ) -> None:
        """Train.

        Args:
            model: an `RLModule`, or an agent to wrap in one: ours, or one from elsewhere (see `ForeignAgent`).
            env: an `EnvModule`, a gymnasium id, an env, a vector env, or a factory.
            datamodule: the `EnvModule` by Lightning's name for it; give this or `env`.
            ckpt_path: "best", "last", "auto", or a checkpoint to go on from: bit for bit as if the run had never
                stopped, in the middle of episodes and rollouts, memory and random generators included. Not so where a
                warning says that the envs or the memory cannot be saved, for agents from elsewhere, and in asynchronous
                training: there, new episodes begin. "auto" is the newest checkpoint of this run, or of the last one in
                `default_root_dir`; where there is none, training starts: what a job needs that is stopped and started
                again.
            weights_only: load only tensors and plain data from the checkpoint (the default). False runs code from it.
            step_offset: the env step that the clock starts from, for an agent whose earlier steps no checkpoint knows
                of. None: where the clock stands, which is 0 in a fresh Trainer.
        """
        self.fit_args = {"ckpt_path": ckpt_path, "weights_only": weights_only, "step_offset": step_offset}
        module, data = self._attach(model, env, datamodule)
        self._set_clock(step_offset, ckpt_path)
        self._check_limits()
        if self._evaluation is not None and self._evaluation.every_n_steps is not None:
            # where stock callbacks look to find out whether to follow the evaluations or the epochs
            self.val_check_interval = int(self._evaluation.every_n_steps)
        check_callbacks(self, module)
        if isinstance(module.agent, ForeignAgent):
            check_foreign_agent(self, module)
        recipe = data.recipe("train")
        if isinstance(self._gathering, AsyncStrategy):
            check_async(self, module, self._gathering, recipe)
        self._train_pool = recipe.make()
        self._exactness_is_known = isinstance(self._gathering, AsyncStrategy) or isinstance(module.agent, ForeignAgent)
        try:
            if self.checkpoint_callbacks and not self.fast_dev_run:
                self.prove_exactness()
            module.build(self._train_pool.observation_space, self._train_pool.action_space)
            module.named_optimizers()
            self._add_schedules(module.agent)
            with fitting_threads(module, self.num_threads):
                super().fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=_default_true(weights_only))
        finally:
            self._train_pool.close()
            self._train_pool = None

    def validate(  # type: ignore[override]
        self,
        model: RLModule | Agent | None = None,
        env: EnvLike | None = None,
        *,
        datamodule: EnvModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate as training does, with the settings of the `Evaluation` callback if there is one.

        Args: as in `fit`; without `model` and `env`, those of the last run. verbose: print the result.
        Returns:
            one dict: "eval/mean", "eval/median", "eval/stdev", "eval/max", "eval/min", "eval/length_mean".
        """
        arguments = self._evaluation_arguments(model, env, datamodule, ckpt_path, weights_only)
        return super().validate(verbose=verbose, **arguments)  # type: ignore[return-value]

    def test(  # type: ignore[override]
        self,
        model: RLModule | Agent | None = None,
        env: EnvLike | None = None,
        *,
        datamodule: EnvModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate in the test envs: as `validate`, with names "test/mean" and so on, and starts of its own."""
        arguments = self._evaluation_arguments(model, env, datamodule, ckpt_path, weights_only)
        return super().test(verbose=verbose, **arguments)  # type: ignore[return-value]

    def predict(  # type: ignore[override]
        self,
        model: RLModule | Agent | None = None,
        env: EnvLike | None = None,
        *,
        datamodule: EnvModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> list[Any] | None:
        """Act, and give back what happened.

        Returns:
            what `RLModule.predict_step` makes of each episode; by default the `EpisodeResult` with its observations,
            actions and rewards. `limit_predict_batches` says how many episodes (default: one).
        """
        arguments = self._evaluation_arguments(model, env, datamodule, ckpt_path, weights_only)
        return super().predict(return_predictions=return_predictions, **arguments)

    @property
    def lightning_module(self) -> RLModule:
        """The module of this run."""
        return super().lightning_module  # type: ignore[return-value]

    @property
    def num_updates(self) -> int:
        """Learning steps taken."""
        return self.fit_loop.clock.num_updates

    @property
    def num_episodes(self) -> int:
        """Training episodes ended."""
        return self.fit_loop.clock.num_episodes

    @property
    def enable_validation(self) -> bool:
        """Whether training evaluates: there is an `Evaluation` callback, and `limit_val_batches` is not 0."""
        return self._evaluation is not None and self.limit_val_batches > 0

    @property
    def train_env(self) -> Any:
        """The gymnasium env, or vector env, that training steps; None while not fitting, or where workers have them."""
        if self._train_pool is None or isinstance(self.rl_strategy, AsyncStrategy):
            return None
        return self._train_pool.env

    @property
    def eval_env(self) -> Any:
        """The gymnasium env, or vector env, of evaluation; None before the first one."""
        return self._evaluation_pools["val"].env if "val" in self._evaluation_pools else None

    @property
    def train_recipe(self) -> EnvRecipe:
        """How the training envs are made."""
        return self._data.recipe("train")

    @property
    def eval_recipe(self) -> EnvRecipe:
        """How the envs of evaluation during training are made."""
        own_env = None if self._evaluation is None else self._evaluation.env
        return self._data.recipe("val") if own_env is None else evaluation_recipe(own_env)

    @property
    def agent_statistics(self) -> dict[str, float]:
        """The agent's own metrics: the means since the last log entry, or what a foreign agent counts of itself."""
        agent = self.lightning_module.agent
        if isinstance(agent, ForeignAgent):
            return agent.statistics()
        return {
            name.removeprefix("train/"): value.item()
            for name, value in self.callback_metrics.items()
            if name.startswith("train/") and name not in ("train/return", "train/length")
        }

    # ---- what the loops ask for ----------------------------------------------------------------------------------

    @property
    def evaluation_interval(self) -> int | None:
        """Env steps between two evaluations; None: at the end of epochs."""
        interval = getattr(self, "val_check_interval", None)  # Lightning sets none where it is a time
        if isinstance(interval, float) and interval != 1.0:
            return max(1, int(self.steps_per_epoch * interval))
        return interval if isinstance(interval, int) else None

    @property
    def eval_at_start(self) -> bool:
        """Whether to evaluate before the first step."""
        return self._evaluation is not None and self._evaluation.eval_at_start

    @property
    def eval_at_end(self) -> bool:
        """Whether to evaluate at the end of training, due or not."""
        return self._evaluation is None or self._evaluation.eval_at_end

    @property
    def evaluates_in_background(self) -> bool:
        """Whether training goes on while the agent is evaluated."""
        return self._evaluation is not None and self._evaluation.in_background

    @property
    def eval_at_episode_end(self) -> bool:
        """Whether an evaluation that is due waits for the end of the training episode."""
        return self._evaluation is not None and self._evaluation.at_episode_end

    def evaluation_plan(self, stage: str) -> EvaluationPlan:
        """What to evaluate, and in which envs, for stage "val", "test" or "predict"."""
        settings = self._evaluation or Evaluation()
        if stage not in self._evaluation_pools:
            recipe = self.eval_recipe if stage == "val" else self._data.recipe(stage)
            self._evaluation_pools[stage] = recipe.make()
            self._check_evaluation_pool(self._evaluation_pools[stage], settings.max_episode_len)
        pool = self._evaluation_pools[stage]
        limit = getattr(self, f"limit_{stage}_batches")
        num_episodes: int | None = 1 if stage == "predict" else settings.num_episodes
        if isinstance(limit, int):
            num_episodes = limit if stage == "predict" or num_episodes is None else min(limit, num_episodes)
        elif num_episodes is not None:
            num_episodes = int(num_episodes * limit)
        seed = settings.seed if stage == "val" else None
        return EvaluationPlan(
            pool=pool,
            num_episodes=num_episodes,
            num_steps=settings.num_steps if num_episodes is None else None,
            max_episode_len=settings.max_episode_len,
            seed=self.draw_seed(stage, self.global_step) if seed is None else seed,
            seed_envs=seed is not None or self._may_seed(pool),
        )

    def after_evaluation(self) -> None:
        """Where the evaluation ran in the training env itself, training starts a new episode."""
        pool = self._evaluation_pools.get("val")
        if pool is not None and self._train_pool is not None and share_an_env(pool, self._train_pool):
            self._train_pool.abandon_episodes()

    def close_evaluation_pools(self) -> None:
        """Close the envs of evaluation, test and prediction."""
        while self._evaluation_pools:
            self._evaluation_pools.popitem()[1].close()

    def setup_gathering(self) -> tuple[Strategy, Memory]:
        """The strategy, its envs reset, and the memory, for a run that starts now."""
        pool, module = self._train_pool, self.lightning_module
        assert pool is not None
        self.rl_strategy = self._choose_strategy(pool.num_envs)
        strategy, num_envs = self.rl_strategy, pool.num_envs
        memory = strategy.make_memory(module.agent, module.memory, num_envs)
        # a resumed run must not repeat the episodes and samples that it started with: hence the step in both seeds
        memory.rng = np.random.default_rng(self._seed_sequence("memory", self.global_step))
        if isinstance(strategy, AsyncStrategy):
            strategy.plan = self._async_plan()
            num_envs *= strategy.num_workers
        elif isinstance(module.agent, ForeignAgent):
            module.agent.start(self.global_step)
        if not strategy.learns_elsewhere:
            check_checkpoint_intervals(self, num_envs, memory)
        strategy.setup(
            module.agent,
            pool,
            seed=self.draw_seed("train", self.global_step) if self._may_seed(pool) else None,
            device=self.strategy.root_device,
            dtype=_lightning.agent_dtype(self),
        )
        strategy.episodes.num_finished = self.num_episodes
        self.memory = memory
        self.row_store = RowStore(memory) if isinstance(memory, ReplayMemory) else None
        return strategy, memory

    def _async_plan(self) -> AsyncPlan:
        """What workers have to know of this run."""
        module = self.lightning_module
        max_norm, max_value = clip_limits(self)
        epochs = self.max_epochs * self.steps_per_epoch if self.max_epochs not in (None, -1) else math.inf
        return AsyncPlan(
            recipe=self.train_recipe,
            optimizers=dict(zip(module.named_optimizers(), self.optimizers, strict=True)),
            start=self.global_step,
            limit=min(math.inf if self.max_steps == -1 else self.max_steps, epochs),
            max_grad_norm=max_norm,
            max_grad_value=max_value,
            hooks=[hook for callback in self.callbacks if isinstance(callback, StepHooks) for hook in callback.hooks],
            compile=self.compile and self._compiles_in_workers(),
            num_updates=lambda: self.num_updates,
        )

    def _compiles_in_workers(self) -> bool:
        reason = _lightning.why_not_compiled(self, _lightning.Hooks(self))
        if reason is not None:
            rank_zero_warn(f"compile=True: learning steps run uncompiled, because {reason}.")
        return reason is None

    def resume(self, state: dict[str, Any] | None, directory: Path | None) -> None:
        """Let the run that starts go on with what a checkpoint in `directory` says of the one before.

        Args:
            state: of the run. None: it goes on with what follows from the clock.
            directory: None if it is not on this machine.
        """
        self.fit_loop.to_resume, self.fit_loop.resumed_from = state, directory
        if state is not None:
            self.seed = state["seed"]

    @property
    def num_train_envs(self) -> int:
        """Envs that are stepped together in training."""
        assert self._train_pool is not None
        return self._train_pool.num_envs

    def prove_exactness(self) -> None:
        """Find out, once a run, whether its envs can be saved, and say so if they cannot."""
        pool = self._train_pool
        if pool is None or self._exactness_is_known:
            return
        self._exactness_is_known = True
        reason = why_not_exact(self.train_recipe)
        pool.is_exact = reason is None
        if reason is not None:
            rank_zero_warn(
                f"Checkpoints cannot hold the state of the envs: {reason}. A run that is resumed cuts off the episodes "
                "that were open (truncated) and begins new ones; all else goes on as it was."
            )

    def save_interrupted(self, error: BaseException) -> None:
        """After an error or a signal: end workers, if there are any, and save what was learned.

        The checkpoint is `except.ckpt`, beside the others; there is none where a callback saves one itself, or where
        learning itself went wrong.
        """
        self.rl_strategy.teardown()
        if isinstance(self.rl_strategy, AsyncStrategy):
            self.fit_loop.clock.env_steps += self.rl_strategy.finish()
        others = any(
            isinstance(callback, OnExceptionCheckpoint) or getattr(callback, "saves_on_exception", False)
            for callback in self.callbacks
        )
        failed = isinstance(error, NonFiniteError) and self.fit_loop.position == _lightning.Position.LEARNING
        if self.checkpoint_callbacks and not (self.fast_dev_run or others or failed):
            path = self._checkpoint_directory / "except.ckpt"
            try:
                self.save_checkpoint(path)
            except OSError as second:  # what ended training is what must be raised
                rank_zero_warn(f"Training ended early, and what was learned could not be saved in {path}: {second}")
            else:
                rank_zero_warn(f"Training ended early. What was learned is in {path}")

    def save_on_request(self) -> None:
        """After a signal that asks for it: save, and go on."""
        path = self._checkpoint_directory / "requested.ckpt"
        self.save_checkpoint(path)
        rank_zero_info(f"Saved {path}, as a signal asked for.")

    @property
    def _checkpoint_directory(self) -> Path:
        directory = getattr(self.checkpoint_callback, "dirpath", None)
        return Path(directory or Path(self.log_dir or self.default_root_dir) / "checkpoints")

    def synchronize(self) -> None:
        """Let the agent and its optimizers be as the workers of asynchronous training have made them by now.

        During an evaluation the agent stays the one that is evaluated.
        """
        if not (self.validating or self.sanity_checking):
            self.rl_strategy.synchronize()

    def save_checkpoint(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint of the agent as it is now; during an evaluation, as it is evaluated."""
        if self.evaluated_checkpoint is not None:  # that of the agent which was evaluated in the background
            _lightning.write_checkpoint(self, self.evaluated_checkpoint, filepath)
            return
        self.synchronize()
        with _lightning.saving_to(self, filepath):
            super().save_checkpoint(filepath, *args, **kwargs)

    def moved_checkpoints(self, old: Path, new: Path) -> None:
        """A directory of checkpoints has got another name: files in it are found there from now on."""
        if self.row_store is not None:
            self.row_store.moved(old, new)

    def draw_seed(self, role: str, *path: int) -> int:
        """A 30-bit seed that follows from the run's seed, this process's rank, the role and `path`, nothing else.

        Some envs take signed 32-bit integers, and env i gets `seed + i`.
        """
        return int(self._seed_sequence(role, *path).generate_state(1)[0]) >> 2

    # ---- inside --------------------------------------------------------------------------------------------------

    def _may_seed(self, pool: EnvPool) -> bool:
        """Whether to seed these envs: an env that was given as an object may have been seeded by its owner."""
        return self._is_seeded or not pool.is_lent

    def _seed_sequence(self, role: str, *path: int) -> np.random.SeedSequence:
        # every rank evaluates the same episodes, so that all of them decide alike
        rank = self.global_rank if role in ("train", "memory") else 0
        return np.random.SeedSequence(self.seed, spawn_key=(_ROLES.index(role), rank, *path))

    @property
    def _evaluation(self) -> Evaluation | None:
        return next((callback for callback in self.callbacks if isinstance(callback, Evaluation)), None)

    def _check_evaluation_pool(self, pool: EnvPool, max_episode_len: int | None) -> None:
        if self._train_pool is not None and share_an_env(pool, self._train_pool):
            pool.is_lent = True  # it is training's to close, or its owner's
            check_shared_env(pool, self._train_pool, at_episode_end=self.eval_at_episode_end)
        check_evaluation(self.lightning_module.agent, pool, max_episode_len=max_episode_len)

    def _set_clock(self, step_offset: int | None, ckpt_path: str | Path | None) -> None:
        if step_offset is None:
            return
        if step_offset < 0 or ckpt_path is not None:
            raise ConfigurationError(
                f"fit(step_offset={step_offset}, ckpt_path={ckpt_path!r}): the offset counts env steps, from 0 on, and "
                "a checkpoint brings its own."
            )
        self.fit_loop.clock.env_steps = step_offset

    def _choose_strategy(self, num_envs: int) -> Strategy:
        if isinstance(self._gathering, Strategy):
            return self._gathering
        kind = ("sync" if num_envs == 1 else "batch") if self._gathering == "auto" else self._gathering
        return SyncStrategy() if kind == "sync" else BatchStrategy()

    def _attach(
        self, model: RLModule | Agent | None, env: EnvLike | None, datamodule: EnvModule | None
    ) -> tuple[RLModule, EnvModule]:
        """The module and the env module of a run, from whatever the user gave or used last."""
        seed = os.environ.get(_SEED_VARIABLE)
        self._is_seeded = seed is not None
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else int(seed)
        if model is None:
            model = self.lightning_module
        if model is None:
            raise ConfigurationError("No agent: give one as the first argument, such as trainer.test(module, env).")
        if isinstance(model, pl.LightningModule) and not isinstance(model, RLModule):
            raise ConfigurationError(
                f"rl_lightning.Trainer trains an RLModule or an agent; it was given {type(model).__name__}. "
                "Wrap an agent: RLModule(PPO()). A plain LightningModule needs pytorch_lightning.Trainer."
            )
        if not isinstance(model, RLModule):
            model = RLModule(model)
        if env is not None and datamodule is not None:
            raise ConfigurationError("Give the env either as `env` or as `datamodule`, not both.")
        given = env if env is not None else datamodule
        if given is None:
            given = getattr(self, "datamodule", None)
        if given is None:
            raise ConfigurationError(
                "No env: give one as the second argument, such as trainer.fit(module, 'CartPole-v1')."
            )
        self._data = as_env_module(given)
        return model, self._data

    def _evaluation_arguments(
        self,
        model: RLModule | Agent | None,
        env: EnvLike | None,
        datamodule: EnvModule | None,
        ckpt_path: str | Path | None,
        weights_only: bool | None,
    ) -> dict[str, Any]:
        module, data = self._attach(model, env, datamodule)
        stage = "val"
        if not module.agent.built:
            pool = self._evaluation_pools[stage] = data.recipe(stage).make()
            module.build(pool.observation_space, pool.action_space)
        return {
            "model": None if model is None else module,
            "datamodule": data,
            "ckpt_path": ckpt_path,
            "weights_only": _default_true(weights_only),
        }

    def _check_limits(self) -> None:
        timed = any(isinstance(callback, pl.callbacks.Timer) for callback in self.callbacks)
        if self.max_steps == -1 and self.max_epochs is None and not timed and not self.fast_dev_run:
            raise ConfigurationError(
                "Trainer(max_steps=...) is missing: training would not end. Give the number of env steps, "
                "or max_epochs (of steps_per_epoch env steps each), or max_time; max_epochs=-1 means for ever."
            )
        if self._user_val_check is not None and self._evaluation is None:
            raise ConfigurationError(
                f"Trainer(val_check_interval={self._user_val_check}) has nothing to run: add the callback Evaluation()."
            )

    def _add_schedules(self, agent: Agent) -> None:
        """Callbacks for the agent's own schedules, unless the user set one for the same value."""
        self.callbacks = [c for c in self.callbacks if not (isinstance(c, LinearInterpolation) and c.from_agent)]
        taken = {callback.target for callback in self.callbacks if isinstance(callback, LinearInterpolation)}
        for name, (start, stop, steps) in agent.schedules().items():
            if name not in taken:
                schedule = LinearInterpolation(name, start_value=start, stop_value=stop, total_steps=steps)
                schedule.from_agent = True
                self.callbacks.insert(0, schedule)


def _with_progress_bar(callbacks: Any, enabled: bool | None) -> list[pl.Callback]:
    """The user's callbacks, and our progress bar unless they brought one or want none."""
    given = [callbacks] if isinstance(callbacks, pl.Callback) else list(callbacks or [])
    if enabled is False or any(isinstance(callback, ProgressBar) for callback in given):
        return given
    return [*given, RLProgressBar()]


def _default_true(weights_only: bool | None) -> bool:
    return True if weights_only is None else weights_only
