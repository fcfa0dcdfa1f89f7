"""Deep Q-network (Mnih et al., 2015, doi:10.1038/nature14236) and its family, by flags.

Double Q-learning: van Hasselt et al., 2016, arXiv:1509.06461. Dueling: Wang et al., 2016, arXiv:1511.06581. Prioritized
replay: Schaul et al., 2016, arXiv:1511.05952. Noisy networks: Fortunato et al., 2018, arXiv:1706.10295. The return's
distribution: categorical (C51), Bellemare et al., 2017, arXiv:1707.06887; quantiles (QR-DQN), Dabney et al., 2018,
arXiv:1710.10044; implicit quantiles (IQN), Dabney et al., 2018, arXiv:1806.06923.

Rainbow (Hessel et al., 2018, arXiv:1710.02298) is six of them together::

    DQN(double=True, dueling=True, num_steps=3, prioritized=True, noisy=True, distribution="categorical")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor
from torch.optim import Optimizer

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.off_policy import check_tau, next_discount, replay_memory, target_of
from rl_lightning.functional import polyak_update, sum_to_end
from rl_lightning.memory import ReplayMemory, RolloutMemory
from rl_lightning.nn import CategoricalReturn, MeanReturn, QNetwork, QuantileReturn, Returns
from rl_lightning.optim import Adam
from rl_lightning.types import (
    Array,
    Batch,
    ConfigurationError,
    Extras,
    Metrics,
    ObsArray,
    ObsTensor,
    StepFn,
    check_counts,
    tree_map,
)

Kind: TypeAlias = Literal["categorical", "quantile", "implicit"]

PRIORITY_EXPONENT = 0.5
"""Hessel et al. (2018), section 4."""


class DQN(Agent):
    """For Discrete actions; one optimizer, "q".

    Tunables: `epsilon`, which falls from `epsilon` to `final_epsilon` in `epsilon_steps` env steps (`schedules`).

    Implicit quantiles act by those of evenly spaced fractions, where the paper draws them: the same mean, and no noise.

    Args:
        lr: Adam's learning rate.
        discount: per env step.
        num_steps: rewards to sum before bootstrapping (n-step return).
        buffer_size: transitions that the replay memory keeps. None: there is none, and each rollout of `num_steps` is
            learned from once, as in asynchronous n-step Q-learning (Mnih et al., 2016).
        batch_size: transitions in a learning step.
        learning_starts: env steps before the first learning step.
        update_every: env steps between two learning phases.
        updates_per_step: learning steps for each env step, on average; a phase has `update_every` times as many.
        target_update_every: learning steps between two updates of the target network.
        tau: how far the target network then moves to the trained one; 1 is a copy.
        epsilon: share of random actions at the start. None: 1; with `noisy`, which explores by itself, 0.
        final_epsilon: share of random actions from `epsilon_steps` on. None: 0.05; with `noisy` 0.
        epsilon_steps: env steps from the one to the other.
        max_grad_norm: the norm that the gradient of all parameters together is clipped to. None: no limit.
        hidden_sizes: of the Q-network.
        double: choose the next action by the trained network, and value it by the target network.
        dueling: learn the state's value and the advantages apart.
        prioritized: replay what was surprising more often, with the exponent 0.5; for another, give `RLModule` a
            `ReplayMemory(alpha=...)`.
        noisy: explore by noise on the weights, drawn anew for every action and every pass of a learning step; in
            evaluation the weights are their means.
        distribution: what is learned of the return: its "categorical" distribution over fixed returns, its "quantile"s,
            or its "implicit" quantiles, of any fractions. None: its mean.
        num_atoms: fixed returns, or quantiles, of a distribution.
        value_range: the least and the highest of a categorical distribution's returns, in the env's own units.
    Raises:
        ConfigurationError: a number out of range.
    """

    epsilon: Tensor
    async_modes = ("shared", "actor_learner")
    epsilon_power = 1.0

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        discount: float = 0.99,
        num_steps: int = 1,
        buffer_size: int | None = 50_000,
        batch_size: int = 64,
        learning_starts: int = 1000,
        update_every: int = 4,
        updates_per_step: float = 0.25,
        target_update_every: int = 250,
        tau: float = 1.0,
        epsilon: float | None = None,
        final_epsilon: float | None = None,
        epsilon_steps: int = 10_000,
        max_grad_norm: float | None = 10.0,
        hidden_sizes: Sequence[int] = (128, 128),
        double: bool = False,
        dueling: bool = False,
        prioritized: bool = False,
        noisy: bool = False,
        distribution: Kind | None = None,
        num_atoms: int = 51,
        value_range: tuple[float, float] = (-10.0, 10.0),
    ) -> None:
        super().__init__()
        if epsilon is None:
            epsilon = 0.0 if noisy else 1.0
        if final_epsilon is None:
            final_epsilon = 0.0 if noisy else 0.05
        check_tau(self, tau)
        check_counts(target_update_every=target_update_every)
        if buffer_size is None and prioritized:
            raise ConfigurationError(
                "DQN(buffer_size=None, prioritized=True): without a replay memory none is prioritized."
            )
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
        self.is_prioritized = prioritized
        self.is_noisy = noisy
        self.returns = _returns(distribution, num_atoms, value_range)
        self.num_updates = 0
        self.add_tunable("epsilon", epsilon)

    def build(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the Q-network and its target."""
        self.observation_space, self.action_space = observation_space, action_space
        if not isinstance(action_space, spaces.Discrete):
            raise self.unsupported("a Discrete action space")
        self.num_actions = int(action_space.n)
        self.network = QNetwork(
            observation_space,
            self.num_actions,
            hidden_sizes=self.hidden_sizes,
            dueling=self.is_dueling,
            noisy=self.is_noisy,
            num_atoms=self.returns.num_atoms,
            implicit=isinstance(self.returns, QuantileReturn) and self.returns.implicit,
        )
        self.target = target_of(self.network)

    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        """The action of the highest value, or with probability epsilon a random one."""
        numbers = self.network(obs, noise=explore and self.is_noisy)
        greedy = self.returns.mean(numbers).argmax(dim=-1)
        if not explore:
            return greedy, {}
        random = torch.randint(self.num_actions, greedy.shape, device=greedy.device)
        explores = torch.rand(greedy.shape, device=greedy.device) < self.epsilon**self.epsilon_power
        return torch.where(explores, random, greedy), {}

    def act_on_host(self, obs: ObsArray, *, explore: bool) -> tuple[Array, dict[str, Array]] | None:
        values = None if self.is_noisy else self.network.on_host(obs)
        if values is None:
            return None
        action: Array = values.argmax(axis=-1)
        if explore:
            explores = torch.rand(len(action)).numpy() < self.epsilon.item() ** self.epsilon_power
            if np.count_nonzero(explores):
                action[explores] = torch.randint(self.num_actions, action.shape).numpy()[explores]
        return action, {}

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        """One learning step on a batch of obs, action, reward, next_obs, terminated, and n for n-step returns.

        Where the batch has the importance `weight` of each transition, its "td_error" is put beside it.
        """
        reward, terminated = batch["reward"], batch["terminated"]
        with torch.no_grad():
            # a truncated episode still bootstraps
            discount = next_discount(batch, self.discount).masked_fill(terminated, 0.0)
            following = self._following(batch["next_obs"], self.returns.draw_fractions(len(reward)))
            following.masked_fill_(terminated.view(-1, *[1] * (following.dim() - 1)), 0.0)  # 0 times infinity is NaN
        fractions = self.returns.draw_fractions(len(reward))
        numbers = self.network(batch["obs"], noise=self.is_noisy, fractions=fractions)
        numbers = _of_action(numbers, batch["action"].long())
        errors, td_error = self.returns.errors(numbers, following, reward, discount, fractions)
        if "weight" in batch:
            errors = errors * batch["weight"]
            batch["td_error"] = td_error
        loss = errors.mean()
        step("q", loss)

        self.num_updates += 1
        if self.num_updates % self.target_update_every == 0:
            polyak_update(self.target, self.network, tau=self.tau)
        return {"loss": loss.detach(), "q_mean": self.returns.mean(numbers.detach()).mean()}

    def _following(self, next_obs: ObsTensor, fractions: Tensor | None) -> Tensor:
        """What the target network says of the best actions, [N] or [N, M]."""
        numbers: Tensor = self.target(next_obs, noise=self.is_noisy, fractions=fractions)
        chooser = self.network(next_obs, noise=self.is_noisy) if self.is_double else numbers
        return _of_action(numbers, self.returns.mean(chooser).argmax(dim=-1))

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam."""
        return {"q": Adam(self.network.parameters(), lr=self.lr)}

    @torch.no_grad()
    def prepare(self, rollout: Batch) -> Batch:
        """Without replay: from each row of a rollout to its end, or the episode's, as one n-step transition."""
        done = rollout["terminated"] | rollout["truncated"]
        total, num_steps, last = sum_to_end(rollout["reward"], done, discount=self.discount)
        ends = {name: tree_map(partial(_rows_at, last), rollout[name]) for name in ("next_obs", "terminated")}
        return rollout | ends | {"reward": total, "n": num_steps}

    def make_memory(self, num_envs: int) -> ReplayMemory | RolloutMemory:
        """A uniform or prioritized replay memory with the agent's pace; without replay, rollouts."""
        if self.buffer_size is None:
            return RolloutMemory(self.num_steps, num_envs, prepare=self.prepare)
        return replay_memory(self, num_envs, alpha=PRIORITY_EXPONENT if self.is_prioritized else 0.0)

    def join_workers(self, number: int, num_workers: int) -> None:
        """Explore the less the higher the number, as in Ape-X; and update a shared target network in turn."""
        self.epsilon_power = 1.0 + 7.0 * number / max(num_workers - 1, 1)
        self.target_update_every *= num_workers

    def schedules(self) -> dict[str, tuple[float, float, int]]:
        """Epsilon falls in a straight line."""
        return {"epsilon": self.epsilon_schedule}

    def get_extra_state(self) -> dict[str, int]:
        """The number of learning steps so far: it says when the target network is next updated."""
        return {"num_updates": self.num_updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Put back what `get_extra_state` gave."""
        self.num_updates = state["num_updates"]


def _returns(distribution: Kind | None, num_atoms: int, value_range: Sequence[float]) -> Returns:
    if distribution is None:
        return MeanReturn()
    if distribution == "categorical":
        low, high = value_range
        return CategoricalReturn(num_atoms, low, high)
    if distribution in ("quantile", "implicit"):
        return QuantileReturn(num_atoms, implicit=distribution == "implicit")
    raise ConfigurationError(f"distribution={distribution!r}: one of None, 'categorical', 'quantile', 'implicit'.")


def _of_action(numbers: Tensor, action: Tensor) -> Tensor:
    """[N, num_actions] or [N, num_actions, M], and an action each -> [N] or [N, M]."""
    if numbers.dim() == 2:
        return numbers.gather(1, action.unsqueeze(1)).squeeze(1)
    return numbers.gather(1, action.view(-1, 1, 1).expand(-1, 1, numbers.shape[2])).squeeze(1)


def _rows_at(last: Tensor, field: Tensor) -> Tensor:
    """Of a field [T, B, ...] in each column the rows `last` [T, B]."""
    return field[last, torch.arange(field.shape[1])]
