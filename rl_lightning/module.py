"""`RLModule`: an agent as a `LightningModule`."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Self, TypeAlias

import pytorch_lightning as pl
import torch
from gymnasium import Space
from torch import Tensor
from torch.optim import Optimizer

from rl_lightning.agents import Agent, ForeignAgent, as_agent
from rl_lightning.checkpoint_file import read_checkpoint
from rl_lightning.envs.spaces import space_from_dict, space_to_dict
from rl_lightning.evaluation import EpisodeResult
from rl_lightning.memory import Memory
from rl_lightning.types import Batch, ConfigurationError, Metrics, ObsTensor, Transition

CHECKPOINT_KEY = "rl_lightning"
_FORMAT = 1
_MapLocation: TypeAlias = torch.device | str | None


class RLModule(pl.LightningModule):
    """An agent, and the memory it learns from, as a `LightningModule`.

    Override any of Lightning's hooks in a subclass, as for supervised learning. `self.log` works in all of them.

    Args:
        agent: what acts and learns; one from elsewhere becomes a `ForeignAgent`.
        memory: what it learns from, and when. None: the agent's own default, `agent.make_memory(num_envs)`.
    """

    def __init__(self, agent: Agent, memory: Memory | None = None) -> None:
        super().__init__()
        self.agent = as_agent(agent)
        self.memory = memory

    @property
    def built(self) -> bool:
        """Whether the agent's networks are made."""
        return self.agent.built

    @property
    def given_agent(self) -> Any:
        """The agent as its user knows it: the foreign one itself, where it is one."""
        return self.agent.foreign if isinstance(self.agent, ForeignAgent) else self.agent

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the agent's networks for one env's spaces; the Trainer does it before training.

        Raises:
            ConfigurationError: the agent cannot serve these spaces, or was built for others.
        """
        agent = self.agent
        if not agent.built:
            agent.observation_space, agent.action_space = observation_space, action_space
            agent.build(observation_space, action_space)
            agent.built = True
        elif (agent.observation_space, agent.action_space) != (observation_space, action_space):
            raise ConfigurationError(
                f"The agent was built for observation space {agent.observation_space} and action space "
                f"{agent.action_space}; this env has {observation_space} and {action_space}."
            )
        self.save_hyperparameters({"agent": type(agent).__name__} | _loggable(agent.init_args))

    def forward(self, obs: ObsTensor) -> Tensor:
        """The best action known for each of B observations: [B, *O] -> [B, *A]."""
        return self.agent.act(obs, explore=False)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> Metrics:
        """One learning step. Returns what to log."""
        return self.agent.update(batch, self.optimize)

    def validation_step(self, episode: EpisodeResult, batch_idx: int) -> None:
        """Called with each finished evaluation episode; override to log more about it."""

    def test_step(self, episode: EpisodeResult, batch_idx: int) -> None:
        """Called with each finished test episode; override to log more about it."""

    def predict_step(self, episode: EpisodeResult, batch_idx: int) -> Any:
        """Called with each episode of `Trainer.predict`; what it returns is what `predict` returns."""
        return episode

    def on_env_step(self, transition: Transition) -> None:
        """Called after each step of the training envs, if overridden. It costs time on the hottest path there is."""

    def optimize(self, name: str, loss: Tensor) -> None:
        """Minimise `loss` with the named optimizer; the Trainer replaces this one while it fits."""
        raise RuntimeError(
            "RLModule.optimize works only inside Trainer.fit. In a plain loop, call agent.update yourself."
        )

    def configure_optimizers(self) -> Any:
        """The agent's optimizers. Override to add learning-rate schedulers, in any of Lightning's formats."""
        return list(self.named_optimizers().values())

    def named_optimizers(self) -> dict[str, Optimizer]:
        """The agent's optimizers by name, made once: they stay with it, also in another module."""
        state = self.agent.__dict__
        if "_named_optimizers" not in state:
            optimizers = self.agent.configure_optimizers()
            if not optimizers and not self.agent.learns_by_itself:
                raise ConfigurationError(
                    f"{type(self.agent).__name__}.configure_optimizers() returned no optimizer: nothing could be "
                    "learned. Return a dict from name to optimizer, such as {'policy': Adam(self.parameters())}."
                )
            state["_named_optimizers"] = optimizers
        return state["_named_optimizers"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the agent anew with no env at hand: plain data only."""
        # LightningCLI would take them for arguments of RLModule; they are for loggers, and all in `init_args` too
        checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_KEY, None)
        checkpoint[CHECKPOINT_KEY] = {
            "format": _FORMAT,
            "agent": type(self.agent).__name__,
            "init_args": _plain(self.agent.init_args),
            "observation_space": space_to_dict(self.agent.observation_space),
            "action_space": space_to_dict(self.agent.action_space),
        }

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: _MapLocation = "cpu",
        *,
        agent: Agent | None = None,
        strict: bool = True,
    ) -> Self:
        """Rebuild the module from a checkpoint, with no env at hand. Runs no code from the file.

        Args:
            checkpoint_path: written by a Trainer of this library; a path, a URL, or a file of bytes.
            map_location: where its tensors go.
            agent: a fresh agent to load into, for a class whose arguments are not plain data.
            strict: whether the weights' names must match exactly.
        Raises:
            FileNotFoundError: there is none.
            ConfigurationError: not such a checkpoint, or damaged, or its agent class is not known here.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        if CHECKPOINT_KEY not in checkpoint:
            raise ConfigurationError(f"{checkpoint_path} is no rl_lightning checkpoint: it has no agent description.")
        saved = checkpoint[CHECKPOINT_KEY]
        module = cls(_fresh_agent(saved) if agent is None else agent)
        module.build(space_from_dict(saved["observation_space"]), space_from_dict(saved["action_space"]))
        module.load_state_dict(checkpoint["state_dict"], strict=strict)
        return module.to(map_location)


def _fresh_agent(saved: dict[str, Any]) -> Agent:
    name, init_args = saved["agent"], saved["init_args"]
    if name not in Agent.registry:
        raise ConfigurationError(
            f"The checkpoint holds an agent of class {name!r}, which is not known here. Import the module that defines "
            f"it first, or pass agent=. Known: {', '.join(sorted(Agent.registry))}."
        )
    lost = [key for key, value in init_args.items() if isinstance(value, dict) and "not_saved" in value]
    if lost:
        raise ConfigurationError(
            f"The checkpoint could not hold {name}'s {', '.join(lost)}: only plain data is saved. "
            f"Pass agent={name}(...), made with the same arguments."
        )
    return Agent.registry[name](**init_args)


def _plain(value: Any) -> Any:
    """`value` if it is plain data; else a note of what could not be saved."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else [*map(_plain, value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    return {"not_saved": repr(value)}


def _loggable(init_args: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in init_args.items()
    }
