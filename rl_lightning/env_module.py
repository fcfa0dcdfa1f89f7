"""Envs as Lightning's data: `EnvModule` is to envs what `LightningDataModule` is to dataloaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import gymnasium
import pytorch_lightning as pl

from rl_lightning.envs import EnvRecipe, as_recipe
from rl_lightning.types import ConfigurationError


class EnvModule(pl.LightningDataModule):
    """A recipe for the training, evaluation and test envs of one experiment.

    Override `train_envs`, and the others where they differ. Each returns an `EnvRecipe`, or whatever `as_recipe` takes:
    a gymnasium id, an env, a vector env, or a factory. Evaluation always gets envs of its own.
    """

    def train_envs(self) -> EnvLike:
        """The envs that training steps."""
        raise NotImplementedError(f"{type(self).__name__} must override train_envs().")

    def val_envs(self) -> EnvLike:
        """The envs of evaluation during training, and of `Trainer.validate`. Default: fresh ones like training's."""
        return as_recipe(self.train_envs()).evaluation()

    def test_envs(self) -> EnvLike:
        """The envs of `Trainer.test`. Default: as in validation."""
        return self.val_envs()

    def predict_envs(self) -> EnvLike:
        """The envs of `Trainer.predict`. Default: as in validation."""
        return self.val_envs()

    def recipe(self, stage: str) -> EnvRecipe:
        """The recipe of one stage: "train", "val", "test" or "predict"."""
        return as_recipe(getattr(self, f"{stage}_envs")())

    def _no_dataloaders(self) -> NoReturn:
        raise ConfigurationError(
            f"{type(self).__name__} has envs, not dataloaders: use rl_lightning.Trainer, not pytorch_lightning's."
        )

    def train_dataloader(self) -> NoReturn:
        """There is none: only pytorch-lightning's own Trainer asks for it."""
        self._no_dataloaders()

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class GymEnvModule(EnvModule):
    """Envs by their gymnasium id.

    Args:
        id: a registered gymnasium id, such as "CartPole-v1".
        num_envs: how many envs training steps in parallel.
        vectorization: "sync" (one after another, in this process), "async" (one process each), or
            "vector_entry_point" (the env's own vectorised version).
        env_kwargs: arguments for the env's constructor.
        wrappers: applied to each env in this order, the first innermost; each a callable from env to env.
        max_episode_len: episodes are truncated after so many env steps. None: as the env is registered.
        num_eval_envs: how many envs an evaluation steps in parallel. None: `num_envs`.
        eval_env_kwargs: arguments for the constructor of evaluation and test envs. None: `env_kwargs`.
        num_workers: how many processes share the envs of "async". None: one for each.
        restart_workers: how many such processes that die, hang or raise are replaced before the next is an error.
        worker_timeout_s: how long a step or a reset of an env in such a process may take before it counts as hung.
    """

    def __init__(
        self,
        id: str,
        num_envs: int = 1,
        *,
        vectorization: str = "sync",
        env_kwargs: dict[str, Any] | None = None,
        wrappers: list[Callable[[gymnasium.Env], gymnasium.Env]] | None = None,
        max_episode_len: int | None = None,
        num_eval_envs: int | None = None,
        eval_env_kwargs: dict[str, Any] | None = None,
        num_workers: int | None = None,
        restart_workers: int = 0,
        worker_timeout_s: float | None = 300.0,
    ) -> None:
        super().__init__()
        self._train = EnvRecipe(
            id,
            num_envs=num_envs,
            vectorization=vectorization,  # type: ignore[arg-type]  # checked by the recipe, at run time too
            env_kwargs=dict(env_kwargs or {}),
            wrappers=tuple(wrappers or ()),
            max_episode_len=max_episode_len,
            num_workers=num_workers,
            restart_workers=restart_workers,
            worker_timeout_s=worker_timeout_s,
        )
        self._eval = self._train.replace(
            num_envs=num_eval_envs or num_envs,
            env_kwargs=dict(env_kwargs or {} if eval_env_kwargs is None else eval_env_kwargs),
        )

    def train_envs(self) -> EnvRecipe:
        return self._train

    def val_envs(self) -> EnvRecipe:
        return self._eval


class _AnyEnvModule(EnvModule):
    """What `Trainer.fit(module, env)` makes of an env that is not an `EnvModule`."""

    def __init__(self, env: EnvLike) -> None:
        super().__init__()
        self._env = as_recipe(env)

    def train_envs(self) -> EnvRecipe:
        return self._env


EnvLike: TypeAlias = EnvModule | EnvRecipe | str | gymnasium.Env | gymnasium.vector.VectorEnv | Callable[[], Any]
"""Whatever an env can be given as: an EnvModule, a recipe, a gymnasium id, an env, a vector env, a factory."""


def evaluation_recipe(env: EnvLike) -> EnvRecipe:
    """The recipe of what was given to evaluate in: the evaluation envs of an EnvModule, anything else itself."""
    return env.recipe("val") if isinstance(env, EnvModule) else as_recipe(env)


def as_env_module(env: EnvLike) -> EnvModule:
    """The `EnvModule` of anything that an env can be given as.

    Raises:
        ConfigurationError: it is none of these.
    """
    return env if isinstance(env, EnvModule) else _AnyEnvModule(env)
