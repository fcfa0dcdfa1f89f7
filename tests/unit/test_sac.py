"""SAC's losses by hand: the soft value, what bootstraps, the temperature; and that it serves both kinds of actions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_lightning.agents import SAC
from rl_lightning.types import ConfigurationError
from tests.unit.test_agents import OBSERVATIONS, TWO, built, check_that_it_acts_and_learns, losses_of, one_step

ARM = spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 1.0]))
ONE = spaces.Box(0.0, 1.0, (1,), np.float32)


class Says(torch.nn.Module):
    """Critics that answer with given values, [2, N] or [2, N, actions]; `fixed` as well."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values))

    def forward(self, obs, action=None):
        return self.values.expand(2, len(obs), *self.values.shape[2:])

    def fixed(self, obs, action=None, *, num_critics=None):
        return self(obs, action).detach()[:num_critics]


class Chooses(torch.nn.Module):
    """A discrete policy of given probabilities, with the categorical head's answer."""

    def __init__(self, agent, *probabilities):
        super().__init__()
        self.head = agent.head
        self.logits = torch.nn.Parameter(torch.tensor([probabilities]).log())

    def forward(self, obs):
        return self.head(self.logits.expand(len(obs), -1))


def discrete(values, target, probabilities=(0.25, 0.75), **kwargs):
    """Two actions; entropy weight 0.5 unless given."""
    agent = built(SAC(discount=0.9, **{"entropy_weight": 0.5, **kwargs}), ONE, TWO)
    agent.critic = Says(*[[list(row)] for row in values])
    agent.target = Says(*[[list(row)] for row in target])
    agent.policy = Chooses(agent, *probabilities)
    return agent


ENTROPY = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
SOFT_VALUE = 0.25 * 2 + 0.75 * 4 + 0.5 * ENTROPY


@pytest.mark.parametrize(("end", "next_value"), [("terminated", 0.0), ("truncated", SOFT_VALUE)])
def test_only_truncation_bootstraps_from_the_soft_value(end, next_value):
    """The lower of both targets for each action, 2 and 4, weighed by the policy, and half of its entropy."""
    agent = discrete([(1.0, 0.0), (3.0, 0.0)], [(2.0, 9.0), (9.0, 4.0)])
    target = 1 + 0.9 * next_value
    expected = 0.5 * ((1 - target) ** 2 + (3 - target) ** 2)
    batch = one_step(reward=1.0, terminated=end == "terminated", truncated=torch.tensor([end == "truncated"]))
    assert losses_of(agent, batch)["critic"] == pytest.approx(expected, rel=1e-5)


def test_n_step_targets_discount_n_times():
    agent = discrete([(0.0, 0.0)] * 2, [(2.0, 2.0)] * 2, entropy_weight=1e-6)
    expected = 0.9**3 * 2
    assert losses_of(agent, one_step(n=torch.tensor([3])))["critic"] == pytest.approx(expected**2, rel=1e-4)


def test_importance_weights_count_and_errors_come_back():
    agent = discrete([(1.0, 0.0), (3.0, 0.0)], [(0.0, 0.0)] * 2)
    batch = {name: torch.cat([field, field]) for name, field in one_step(terminated=True).items()}
    batch["reward"], batch["weight"] = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.0])
    expected = 0.5 * (0.5 * (1 + 9) + 2.0 * (0 + 4)) / 2
    assert losses_of(agent, batch)["critic"] == pytest.approx(expected)
    assert batch["td_error"].tolist() == [2.0, 1.0]


def test_the_policy_maximises_the_soft_value_and_the_temperature_follows_the_entropy():
    agent = discrete([(1.0, 4.0), (3.0, 2.0)], [(0.0, 0.0)] * 2, target_entropy=0.3)
    losses = losses_of(agent, one_step())
    assert losses["actor"] == pytest.approx(-(0.25 * 1 + 0.75 * 2 + 0.5 * ENTROPY))
    assert losses["alpha"] == pytest.approx(math.log(0.5) * (ENTROPY - 0.3))


def test_no_critic_has_a_gradient_of_the_policy_s_loss_and_no_policy_of_the_critics():
    agent = built(SAC(), ONE, ARM)
    batch = {**one_step(action=torch.zeros(1, 2)), "obs": torch.ones(1, 1)}
    critic, policy = list(agent.critic.parameters()), list(agent.policy.parameters())
    agent.update(batch, step=lambda name, loss: loss.backward() if name == "critic" else None)
    assert all(p.grad is not None for p in critic) and all(p.grad is None for p in policy)
    agent.zero_grad()
    agent.update(batch, step=lambda name, loss: loss.backward() if name == "actor" else None)
    assert all(p.grad is None for p in critic) and all(p.grad.any() for p in policy)
    assert agent.log_alpha.grad is None
    assert not any(parameter.requires_grad for parameter in agent.target.parameters())


def test_a_fixed_temperature_is_tunable_and_has_no_optimizer():
    agent = built(SAC(entropy_weight=0.2, learns_entropy_weight=False), ONE, ARM)
    assert agent.tunables == ("entropy_weight",) and [*agent.configure_optimizers()] == ["critic", "actor"]
    assert [*losses_of(agent, one_step(action=torch.zeros(1, 2)))] == ["critic", "actor"]
    agent.set_value("entropy_weight", 0.0)
    assert agent.update(one_step(action=torch.zeros(1, 2)), lambda name, loss: None)["entropy_weight"] == 0.0


def test_the_targets_follow_by_tau():
    agent = discrete([(4.0, 4.0)] * 2, [(0.0, 0.0)] * 2, tau=0.25)
    seen = []
    for _ in range(2):
        agent.update(one_step(), step=lambda name, loss: None)
        seen.append(agent.target.values[0, 0, 0].item())
    assert seen == [1.0, 1.75]


@pytest.mark.parametrize(("space", "goal"), [(ARM, -2.0), (spaces.Discrete(4), 0.98 * math.log(4))])
def test_the_entropy_aimed_for_by_default(space, goal):
    assert built(SAC(), ONE, space).entropy_goal == pytest.approx(goal)


# --- what it serves ---


@pytest.mark.parametrize(("space", "dtype"), [(ARM, torch.float32), (spaces.Discrete(3, start=1), torch.int64)])
@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_it_serves_every_observation_space(observations, space, dtype):
    agent = SAC(learning_starts=100, batch_size=8, num_steps=3, hidden_sizes=(16,))
    agent = built(agent, OBSERVATIONS[observations], space)
    agent.network = agent.policy  # the same module by the name that the check knows
    check_that_it_acts_and_learns(agent, dtype)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAC(tau=0.0), r"SAC\(tau=0.0\)"),
        (lambda: SAC(entropy_weight=0.0), "entropy_weight=0.0.*above 0"),
        (lambda: SAC(learns_entropy_weight=False, target_entropy=-1.0), "Leave one of the two out"),
        (lambda: built(SAC(), ONE, spaces.MultiBinary(2)), "needs a Box or Discrete action space"),
        (lambda: built(SAC(), ONE, spaces.Box(-1.0, np.inf, (2,), np.float32)), "finite lower bound"),
        (lambda: built(SAC(), ONE, spaces.Box(np.float32([0, 1]), np.float32([1, 1]))), "finite, higher upper"),
        (lambda: built(SAC(), ONE, spaces.Box(0, 5, (2,), np.int64)), "whole numbers"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
