"""An agent that does nothing and learns nothing: what is left is the loop itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_lightning import Agent


class Idle(Agent):
    """Pushes left for ever, as quickly as an agent can say so."""

    def build(self, observation_space: Any, action_space: Any) -> None:
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.left = np.zeros(1, np.int64)

    def act(self, obs: Any, *, explore: bool) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(len(obs), dtype=torch.long), {}

    def act_on_host(self, obs: Any, *, explore: bool) -> tuple[Any, dict[str, Any]]:
        if len(self.left) != len(obs):
            self.left = np.zeros(len(obs), np.int64)
        return self.left, {}

    def update(self, batch: Any, step: Any) -> dict[str, Tensor]:
        raise AssertionError

    def configure_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"nothing": torch.optim.SGD([self.nothing], lr=0.1)}

    def make_memory(self, num_envs: int) -> Any:
        return Forgets()


class Forgets:
    """A memory that remembers nothing."""

    rng: Any = None

    def add(self, transition: Any) -> None: ...

    def batches(self) -> Iterator[Any]:
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
