"""An env, an agent and hooks that write down every call, all in one list."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl_lightning.experiments import EvaluationHook


class Env(gym.Env):
    """Episodes of given lengths, over and over. Observation: [episode, step within it]; reward: `reward`.

    Args:
        log: where every call is written: `{name}reset`, `{name}step` with the action.
        ends: "terminated", "truncated", or "needs_reset" in the info.
    """

    observation_space = spaces.Box(-1000.0, 1000.0, (2,), np.float32)
    action_space = spaces.Discrete(100)

    def __init__(
        self, log: list, lengths: Sequence[int] = (3,), *, name: str = "", reward: float = 1.0, ends: str = "terminated"
    ) -> None:
        self.log, self.lengths, self.name, self.reward, self.ends = log, list(lengths), name, reward, ends
        self.episode, self.t, self.closed = -1, 0, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.log.append((f"{self.name}reset",))
        self.episode, self.t = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.log.append((f"{self.name}step", int(action)))
        self.t += 1
        over = self.t == self.lengths[self.episode % len(self.lengths)]
        how = {end: over and self.ends == end for end in ("terminated", "truncated", "needs_reset")}
        obs = np.array([self.episode, self.t], np.float32)
        return obs, self.reward, how["terminated"], how["truncated"], {"needs_reset": how["needs_reset"]}

    def close(self) -> None:
        self.closed = True


class OldEnv:
    """The same env with the API that PFRL 0.4.0 speaks."""

    def __init__(self, env: gym.Env) -> None:
        self.env = env

    def reset(self) -> Any:
        return self.env.reset()[0]

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, {"needs_reset": truncated or info.get("needs_reset", False)}

    def close(self) -> None:
        self.env.close()


class Told:
    """An agent from elsewhere: it counts its actions, and writes down what it is told."""

    def __init__(self, log: list) -> None:
        self.log, self.evaluating, self.t, self.num_acts = log, False, -1, 0

    def act(self, obs: Any) -> int:
        self.num_acts += 1
        self.log.append((self._name("act"), np.asarray(obs).tolist()))
        return self.num_acts % 7

    def observe(self, obs: Any, reward: float, done: bool, reset: bool) -> None:
        self.log.append((self._name("observe"), np.asarray(obs).tolist(), reward, bool(done), bool(reset)))

    def batch_act(self, batch_obs: Any) -> list[int]:
        self.num_acts += 1
        self.log.append((self._name("act"), np.asarray(batch_obs).tolist()))
        return [(self.num_acts + i) % 7 for i in range(len(batch_obs))]

    def batch_observe(self, batch_obs: Any, batch_reward: Any, batch_done: Any, batch_reset: Any) -> None:
        parts = (batch_obs, batch_reward, batch_done, batch_reset)
        self.log.append((self._name("observe"), *(np.asarray(part).tolist() for part in parts)))

    def _name(self, call: str) -> str:
        return f"eval {call}" if self.evaluating else call

    @contextmanager
    def eval_mode(self) -> Any:
        self.evaluating = True
        try:
            yield
        finally:
            self.evaluating = False

    def get_statistics(self) -> list[tuple[str, float]]:
        return [("num_acts", self.num_acts)]

    def save(self, dirname: str) -> None:
        self.log.append(("save", Path(dirname).name))
        Path(dirname).mkdir(parents=True, exist_ok=True)
        Path(dirname, "num_acts").write_text(str(self.num_acts))

    def load(self, dirname: str) -> None:
        self.num_acts = int(Path(dirname, "num_acts").read_text())


class Without(Told):
    """Lacks one of the methods."""

    def __init__(self, log, name):
        super().__init__(log)
        self.name = name

    def __getattribute__(self, name):
        if name != "name" and name == object.__getattribute__(self, "__dict__").get("name"):
            raise AttributeError(name)
        return super().__getattribute__(name)


class Steps:
    """A step hook."""

    def __init__(self, log: list) -> None:
        self.log = log

    def __call__(self, env: Any, agent: Any, step: int) -> None:
        self.log.append(("hook", step))


class Evaluations(EvaluationHook):
    """An evaluation hook; `calls` has what each was called with, and the best score so far then."""

    support_train_agent = True
    support_train_agent_batch = True

    def __init__(self, log: list | None = None) -> None:
        self.log: list = [] if log is None else log
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **arguments: Any) -> None:
        self.log.append(("evaluation hook", arguments["step"], arguments["eval_stats"]["mean"]))
        self.calls.append({**arguments, "max_score": arguments["evaluator"].max_score})


class Worth(Env):
    """Episodes of one step, whose reward is the next of `rewards`: the score of each evaluation in turn."""

    def __init__(self, rewards: Sequence[float]) -> None:
        super().__init__([], (1,))
        self.rewards = list(rewards)

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, self.rewards[self.episode], *rest


def named(log: list, *names: str) -> list:
    """The calls of these names."""
    return [call for call in log if call[0] in names]
