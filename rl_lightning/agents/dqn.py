"""Deep Q-network (Mnih et al., 2015, doi:10.1038/nature14236).

Double Q-learning: van Hasselt et al., 2016, arXiv:1509.06461. Dueling: Wang et al., 2016, arXiv:1511.06581.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from rl_lightning.agents.agent import Agent
from rl_lightning.functional import polyak_update
from rl_lightning.memory import ReplayMemory
from rl_lightning.nn import QNetwork
from rl_lightning.optim import Adam
from rl_lightning.types import Array, Batch, ConfigurationError, Extras, Metrics, ObsArray, ObsTensor, StepFn


class DQN(Agent):
    """For Discrete actions; one optimizer, "q".

    Tunables: `epsilon`, which falls from `epsilon` to `final_epsilon` in `epsilon_steps` env steps (`schedules`).

    Args:
        lr: Adam's learning rate.
        discount: per env step.
        num_steps: rewards to sum before bootstrapping (n-step return).
        buffer_size: transitions that the replay memory keeps.
        batch_size: transitions in a learning step.
        learning_starts: env steps before the first learning step.
        update_every: env steps between two learning phases.
        updates_per_step: learning steps for each env step, on average; a phase has `update_every` times as many.
        target_update_every: learning steps between two updates of the target network.
        tau: how far the target network then moves to the trained one; 1 is a copy.
        epsilon: share of random actions at the start.
        final_epsilon: share of random actions from `epsilon_steps` on.
        epsilon_steps: env steps from the one to the other.
        max_grad_norm: the norm that the gradient of all parameters together is clipped to. None: no limit.
        hidden_sizes: of the Q-network.
        double: choose the next action by the trained network, and value it by the target network.
        dueling: learn the state's value and the advantages apart.
    Raises:
        ConfigurationError: a number out of range.
    """

    epsilon: Tensor

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        discount: float = 0.99,
        num_steps: int = 1,
        buffer_size: int = 50_000,
        batch_size: int = 64,
        learning_starts: int = 1000,
        update_every: int = 4,
        updates_per_step: float = 0.25,
        target_update_every: int = 250,
        tau: float = 1.0,
        epsilon: float = 1.0,
        final_epsilon: float = 0.05,
        epsilon_steps: int = 10_000,
        max_grad_norm: float | None = 10.0,
        hidden_sizes: Sequence[int] = (128, 128),
        double: bool = False,
        dueling: bool = False,
    ) -> None:
        super().__init__()
        if not (0 < tau <= 1 and target_update_every >= 1):
            given = f"tau={tau}, target_update_every={target_update_every}"
            raise ConfigurationError(f"DQN({given}): tau must be in (0, 1], target_update_every at least 1.")
        if not (0 <= final_epsilon <= 1 and 0 <= epsilon <= 1):
            given = f"epsilon={epsilon}, final_epsilon={final_epsilon}"
            raise ConfigurationError(f"DQN({given}): both are shares of random actions, from 0 to 1.")
        self.lr = lr
        self.discount = discount
        self.num_steps = num_steps
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.update_every = update_every
        self.updates_per_step = updates_per_step
        self.target_update_every = target_update_every
        self.tau = tau
        self.epsilon_schedule = (epsilon, final_epsilon, epsilon_steps)
        self.max_grad_norm = max_grad_norm
        self.hidden_sizes = hidden_sizes
        self.is_double = double  # `double` is nn.Module's cast to float64
        self.is_dueling = dueling
        self.num_updates = 0
        self.add_tunable("epsilon", epsilon)

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the Q-network and its target."""
        self.observation_space, self.action_space = observation_space, action_space
        if not isinstance(action_space, spaces.Discrete):
            raise self.unsupported("a Discrete action space")
        self.num_actions = int(action_space.n)
        self.network = QNetwork(
            observation_space, self.num_actions, hidden_sizes=self.hidden_sizes, dueling=self.is_dueling
        )
        self.target = copy.deepcopy(self.network).requires_grad_(False)

    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        """The action of the highest value, or with probability epsilon a random one."""
        greedy = self.network(obs).argmax(dim=-1)
        if not explore:
            return greedy, {}
        random = torch.randint(self.num_actions, greedy.shape, device=greedy.device)
        return torch.where(torch.rand(greedy.shape, device=greedy.device) < self.epsilon, random, greedy), {}

    def act_on_host(self, obs: ObsArray, *, explore: bool) -> tuple[Array, dict[str, Array]] | None:
        values = self.network.on_host(obs)
        if values is None:
            return None
        action: Array = values.argmax(axis=-1)
        if explore:
            explores = torch.rand(len(action)).numpy() < self.epsilon.item()
            if np.count_nonzero(explores):
                action[explores] = torch.randint(self.num_actions, action.shape).numpy()[explores]
        return action, {}

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        """One learning step on a batch of obs, action, reward, next_obs, terminated, and n for n-step returns."""
        with torch.no_grad():
            # a truncated episode still bootstraps
            next_value = self._next_value(batch["next_obs"]).masked_fill_(batch["terminated"], 0.0)
            discount = self.discount ** batch["n"] if "n" in batch else self.discount
            target = batch["reward"] + discount * next_value
        value = self.network(batch["obs"]).gather(1, batch["action"].long().unsqueeze(1)).squeeze(1)
        loss = F.smooth_l1_loss(value, target)
        step("q", loss)

        self.num_updates += 1
        if self.num_updates % self.target_update_every == 0:
            polyak_update(self.target, self.network, tau=self.tau)
        return {"loss": loss.detach(), "q_mean": value.detach().mean()}

    def _next_value(self, next_obs: ObsTensor) -> Tensor:
        values: Tensor = self.target(next_obs)
        if not self.is_double:
            return values.amax(dim=-1)
        best = self.network(next_obs).argmax(dim=-1, keepdim=True)
        return values.gather(1, best).squeeze(1)

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam."""
        return {"q": Adam(self.network.parameters(), lr=self.lr)}

    def make_memory(self, num_envs: int) -> ReplayMemory:
        """A uniform replay memory with the agent's pace."""
        return ReplayMemory(
            self.buffer_size,
            num_envs=num_envs,
            batch_size=self.batch_size,
            learning_starts=self.learning_starts,
            update_every=self.update_every,
            updates_per_step=self.updates_per_step,
            num_steps=self.num_steps,
            discount=self.discount,
        )

    def schedules(self) -> dict[str, tuple[float, float, int]]:
        """Epsilon falls in a straight line."""
        return {"epsilon": self.epsilon_schedule}

    def get_extra_state(self) -> dict[str, int]:
        """The number of learning steps so far: it says when the target network is next updated."""
        return {"num_updates": self.num_updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Put back what `get_extra_state` gave."""
        self.num_updates = state["num_updates"]
