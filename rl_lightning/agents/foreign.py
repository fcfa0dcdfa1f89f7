"""Agents from elsewhere that act and observe, such as PFRL's, which learn by themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from rl_lightning.agents.agent import Agent
from rl_lightning.envs.pool import EnvPool, Step
from rl_lightning.envs.spaces import nest_obs
from rl_lightning.types import (
    Array,
    Batch,
    ConfigurationError,
    Extras,
    Metrics,
    ObsArray,
    ObsTensor,
    StepFn,
    Transition,
    tree_map,
)


class ForeignAgent(Agent):
    """An agent that is told what happened and learns from it by itself, unchanged.

    It has `act(obs)` and `observe(obs, reward, done, reset)` for one env, or `batch_act(batch_obs)` and
    `batch_observe(batch_obs, batch_reward, batch_done, batch_reset)` for a vector env, or all four. `done` means
    terminated; `reset` that the episode was cut off. What it may have besides:

    - `eval_mode()`, a context in which it does not learn: needed to evaluate it,
    - `save(dirname)` and `load(dirname)`: needed for checkpoints, which hold the files that `save` writes; `save` also
      for the directories of `rl_lightning.experiments`,
    - `get_statistics()`, pairs of name and value, which are logged as `train/<name>` and recorded,
    - `t`, its count of env steps: set when training starts.

    Observations reach it as the env's space has them (float64 as float32), rewards and flags as Python numbers.
    Its actions are moved into the bounds of a Box before the env sees them; of integers it gives those that the env
    takes.

    Args:
        agent: the agent.
    Raises:
        ConfigurationError: it has neither of the two pairs of methods.
    """

    learns_by_itself = True
    foreign: Any

    def __init__(self, agent: Any) -> None:
        super().__init__()
        self._acts = all(callable(getattr(agent, name, None)) for name in ("act", "observe"))
        self._acts_in_batches = all(callable(getattr(agent, name, None)) for name in ("batch_act", "batch_observe"))
        if not (self._acts or self._acts_in_batches):
            raise ConfigurationError(
                f"{type(agent).__name__} is no agent. Give one of rl_lightning's, such as PPO(), or an object with "
                "act(obs) and observe(obs, reward, done, reset), or with batch_act and batch_observe."
            )
        self.__dict__["foreign"] = agent  # not as a submodule: what it consists of is its own affair
        self._in_batches = False

    # ---- acting and observing ------------------------------------------------------------------------------------

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Nothing is made: the agent came ready."""

    def actor(self, pool: EnvPool) -> Callable[[ObsArray], tuple[Array, dict[str, Array]]]:
        """A function that acts in these envs: observations [B, *O] -> actions [B, *A], and no extras.

        Raises:
            ConfigurationError: they are several and it acts in one, or they may make it observe steps that never
                happened.
        """
        name = type(self.foreign).__name__
        if pool.num_envs > 1 and not self._acts_in_batches:
            raise ConfigurationError(
                f"{name} has no batch_act and batch_observe: it acts in one env, and was given {pool.num_envs}."
            )
        if pool.spends_steps_on_resets:
            raise ConfigurationError(
                f"{pool.env} spends steps on resets (autoreset NEXT_STEP), which {name} would take for experience. "
                "Use gymnasium.make_vec(..., vectorization_mode='sync') without vector wrappers, or GymEnvModule."
            )
        if pool.restart_workers:
            raise ConfigurationError(
                f"restart_workers={pool.restart_workers}: a lost env takes a step with it, which {name} would take for "
                "experience. Leave it out."
            )
        return partial(self._act_on_host, in_batches=self._acts_in_batches and (pool.is_vector or not self._acts))

    def _act_on_host(self, obs: ObsArray, *, in_batches: bool) -> tuple[Array, dict[str, Array]]:
        # past nn.Module's own __setattr__, which is slow; it is to observe in the same way
        self.__dict__["_in_batches"] = in_batches
        rows, space = self._rows(obs), self.action_space
        action = np.asarray(self.foreign.batch_act(rows) if in_batches else [self.foreign.act(rows[0])])
        if isinstance(space, spaces.Box):
            return np.clip(action, space.low, space.high) if action.dtype.kind == "f" else action, {}
        start = getattr(space, "start", 0)
        return action - start if np.any(start) else action, {}

    def observe(self, next_obs: ObsArray, reward: Array, terminated: Array, reset: Array) -> None:
        """Tell it what followed its last actions; each argument [B, ...]."""
        rows, rewards, dones, resets = self._rows(next_obs), reward.tolist(), terminated.tolist(), reset.tolist()
        if self._in_batches:
            self.foreign.batch_observe(rows, rewards, dones, resets)
        else:
            self.foreign.observe(rows[0], rewards[0], dones[0], resets[0])

    def observe_evaluation(self, step: Step, reset: NDArray[np.bool_]) -> None:
        """Tell it what followed in an evaluation; `reset` [B]: which envs start anew."""
        self.observe(step.next_obs, step.reward, step.terminated, reset)

    def _rows(self, obs: ObsArray) -> list[Any]:
        """Each env's observation, nested as its space."""
        if not isinstance(obs, dict):
            return list(obs)
        num_envs = len(next(iter(obs.values())))
        return [nest_obs(self.observation_space, obs, env) for env in range(num_envs)]

    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        with torch.enable_grad() if explore else self.evaluation_mode():
            host_obs = tree_map(lambda tensor: tensor.cpu().numpy(), obs)
            action, _ = self._act_on_host(host_obs, in_batches=self._acts_in_batches)
        return torch.from_numpy(action), {}

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        self.check_evaluable()
        with super().evaluation_mode(), self.foreign.eval_mode():
            yield

    # ---- what the Trainer asks of every agent ----------------------------------------------------------------------

    def start(self, step: int) -> None:
        """Training starts, or goes on, at this env step."""
        if hasattr(self.foreign, "t"):
            self.foreign.t = step

    def make_memory(self, num_envs: int) -> ObservingMemory:
        return ObservingMemory(self)

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        raise AssertionError("nobody calls this: its memory has no batches")

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """None: it has its own."""
        return {}

    def statistics(self) -> dict[str, float]:
        """What it counts of itself."""
        return dict(self.foreign.get_statistics()) if hasattr(self.foreign, "get_statistics") else {}

    def check_evaluable(self) -> None:
        """Whether it can be evaluated.

        Raises:
            ConfigurationError: it has no `eval_mode`.
        """
        if not callable(getattr(self.foreign, "eval_mode", None)):
            raise ConfigurationError(
                f"{type(self.foreign).__name__} has no eval_mode(), and would learn from its own evaluation. Add a "
                "context manager of that name, in which it does not learn, or leave evaluation out."
            )

    def check_has(self, name: str) -> None:
        """Whether it has the method `name`, "save" or "load".

        Raises:
            ConfigurationError: it has not.
        """
        if not callable(getattr(self.foreign, name, None)):
            raise ConfigurationError(
                f"{type(self.foreign).__name__} has no {name}(dirname), which checkpoints need. Add it, or train "
                "without callbacks that save: Trainer(enable_checkpointing=False)."
            )

    def get_extra_state(self) -> dict[str, Tensor]:
        """The files that its `save` writes: relative path -> bytes [n] uint8."""
        self.check_has("save")
        with tempfile.TemporaryDirectory() as directory:
            self.foreign.save(directory)
            files = sorted(path for path in Path(directory).rglob("*") if path.is_file())
            return {
                path.relative_to(directory).as_posix(): torch.from_numpy(np.fromfile(path, np.uint8)) for path in files
            }

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Write the files back, and let it load them; how safe that is, its `load` decides."""
        self.check_has("load")
        with tempfile.TemporaryDirectory() as directory:
            for name, content in state.items():
                path = Path(directory, name)
                if not path.resolve().is_relative_to(Path(directory).resolve()):
                    raise ConfigurationError(f"The checkpoint names the file {name!r}, outside its own directory.")
                path.parent.mkdir(parents=True, exist_ok=True)
                content.cpu().numpy().tofile(path)
            self.foreign.load(directory)


class ObservingMemory:
    """Passes each transition on to the agent, which learns from it; there is nothing else to learn from.

    Args:
        agent: who observes.
    """

    def __init__(self, agent: ForeignAgent) -> None:
        self.rng = np.random.default_rng()
        self._agent = agent

    def add(self, transition: Transition) -> None:
        self._agent.observe(transition.next_obs, transition.reward, transition.terminated, transition.truncated)

    def batches(self) -> Iterator[Batch]:
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was saved."""


def as_agent(agent: Any) -> Agent:
    """`agent` itself if it is one of ours, else a `ForeignAgent` of it.

    Raises:
        ConfigurationError: it is no agent at all.
    """
    return agent if isinstance(agent, Agent) else ForeignAgent(agent)
