"""TD3's and DDPG's losses by hand: what bootstraps, smoothed targets, the delayed policy; and how they explore."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces

from rl_lightning.agents import DDPG, TD3
from rl_lightning.types import ConfigurationError
from tests.unit.test_agents import OBSERVATIONS, TWO, built, check_that_it_acts_and_learns, losses_of, one_step
from tests.unit.test_sac import ARM, ONE

UNIT = spaces.Box(-1.0, 1.0, (1,))
BOTH = pytest.mark.parametrize("make", [TD3, DDPG])


class Line(torch.nn.Module):
    """Critics Q(s, a) = slope * a + 10 * s, a slope each."""

    def __init__(self, *slopes):
        super().__init__()
        self.slopes = torch.nn.Parameter(torch.tensor(slopes)[:, None])

    def forward(self, obs, action):
        return self.slopes * action[:, 0] + 10 * obs[:, 0]

    def fixed(self, obs, action, *, num_critics=None):
        return self.slopes.detach()[:num_critics] * action[:, 0] + 10 * obs[:, 0]


class Always(torch.nn.Module):
    """One action in every state."""

    def __init__(self, action):
        super().__init__()
        self.action = torch.nn.Parameter(torch.tensor([action]))

    def forward(self, obs):
        return self.action.expand(len(obs), 1)


def simple(make, *, slopes=(0.0, 0.0), target_slopes=(4.0, 8.0), action=0.25, target_action=0.5, **kwargs):
    """Discount 0.9, no noise on targets unless given; DDPG takes the first slope of each."""
    if make is TD3:
        kwargs = {"target_noise_std": 0.0, "policy_delay": 1, **kwargs}
    agent = built(make(discount=0.9, **kwargs), ONE, UNIT)
    count = 2 if make is TD3 else 1
    agent.critic, agent.target_critic = Line(*slopes[:count]), Line(*target_slopes[:count])
    agent.policy, agent.target_policy = Always(action), Always(target_action)
    return agent


def batch_of(**fields):
    return one_step(**{"action": torch.zeros(1, 1), **fields})


@BOTH
@pytest.mark.parametrize(("end", "target"), [("terminated", 1.0), ("truncated", 1 + 0.9 * 12)])
def test_only_truncation_bootstraps(make, end, target):
    """Q(s, a) = 0; in state 1 the target policy's 0.5 is worth 4 * 0.5 + 10, to the lower of two critics."""
    batch = batch_of(reward=1.0, terminated=end == "terminated", truncated=torch.tensor([end == "truncated"]))
    num_critics = 2 if make is TD3 else 1
    assert losses_of(simple(make), batch)["critic"] == pytest.approx(num_critics * target**2)


@BOTH
def test_n_step_targets_discount_n_times(make):
    num_critics = 2 if make is TD3 else 1
    loss = losses_of(simple(make), batch_of(n=torch.tensor([3])))["critic"]
    assert loss == pytest.approx(num_critics * (0.9**3 * 12) ** 2)


@BOTH
def test_importance_weights_count_and_errors_come_back(make):
    batch = {name: torch.cat([field, field]) for name, field in batch_of(terminated=True).items()}
    batch["reward"], batch["weight"] = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 2.0])
    num_critics = 2 if make is TD3 else 1
    assert losses_of(simple(make), batch)["critic"] == pytest.approx(num_critics * (0.5 * 1 + 2 * 9) / 2)
    assert batch["td_error"].tolist() == [1.0, 3.0]


@BOTH
def test_the_policy_climbs_the_first_critic_in_every_state(make):
    """Of its own action 0.25, not the one in the batch."""
    losses = losses_of(simple(make, slopes=(2.0, -100.0)), {**batch_of(), "obs": torch.ones(1, 1)})
    assert losses["actor"] == pytest.approx(-(2 * 0.25 + 10))


@BOTH
def test_gradients_reach_only_what_is_stepped(make):
    agent = simple(make, slopes=(2.0, 3.0))
    batch = {**batch_of(), "action": torch.ones(1, 1)}
    agent.update(batch, step=lambda name, loss: loss.backward() if name == "critic" else None)
    assert agent.critic.slopes.grad.all() and agent.policy.action.grad is None
    agent.zero_grad()
    agent.update(batch, step=lambda name, loss: loss.backward() if name == "actor" else None)
    assert agent.critic.slopes.grad is None and agent.policy.action.grad.tolist() == [-2.0]
    assert agent.target_critic.slopes.grad is None and agent.target_policy.action.grad is None


@BOTH
def test_targets_are_neither_trained_nor_counted(make):
    agent = built(make(), ONE, UNIT)
    optimizers = agent.configure_optimizers()
    trained = [p for optimizer in optimizers.values() for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in agent.parameters() if p.requires_grad}
    targets = [*agent.target_policy.parameters(), *agent.target_critic.parameters()]
    assert len(targets) == len(trained) and not any(p.requires_grad for p in targets)


# --- smoothed targets ---


@pytest.mark.parametrize(("target_action", "expected"), [(0.2, [-0.3, 0.7]), (0.8, [0.3, 1.0])])
def test_the_smoothing_noise_is_clipped_and_the_action_too(target_action, expected):
    """Noise so wide that all of it is clipped to -0.5 or 0.5."""
    torch.manual_seed(0)
    agent = simple(
        TD3, target_slopes=(1.0, 1.0), target_action=target_action, target_noise_std=1e6, target_noise_clip=0.5
    )
    rows = {name: field.expand(100, *field.shape[1:]) for name, field in batch_of().items()}
    rows.update(next_obs=torch.zeros(100, 1), weight=torch.ones(100))
    agent.update(rows, step=lambda name, loss: None)
    errors = sorted({round(error / 0.9, 4) for error in rows["td_error"].tolist()})
    assert errors == pytest.approx(sorted(abs(x) for x in expected), abs=1e-3)


# --- the delayed policy ---


def test_the_policy_and_all_targets_wait_for_every_other_update():
    agent = simple(TD3, policy_delay=2, slopes=(4.0, 4.0), target_slopes=(0.0, 0.0), tau=0.25)
    names, targets = [], []
    for _ in range(4):
        agent.update(batch_of(), step=lambda name, loss: names.append(name))
        targets.append((agent.target_critic.slopes[0, 0].item(), agent.target_policy.action.item()))
    assert names == ["critic", "critic", "actor", "critic", "critic", "actor"]
    first, second = (1.0, 0.5 - 0.0625), (1.75, 0.5 - 0.0625 - 0.75 * 0.0625)
    assert targets == [(0.0, 0.5), first, first, second]


def test_ddpg_s_targets_follow_at_once():
    agent = simple(DDPG, slopes=(4.0,), target_slopes=(0.0,), tau=0.25)
    agent.update(batch_of(), step=lambda name, loss: None)
    assert agent.target_critic.slopes.item() == 1.0 and agent.target_policy.action.item() == 0.5 - 0.0625


def test_the_count_of_updates_is_restored():
    agent, other, names = simple(TD3, policy_delay=2), simple(TD3, policy_delay=2), []
    agent.update(batch_of(), step=lambda name, loss: None)
    other.load_state_dict(agent.state_dict())
    other.update(batch_of(), step=lambda name, loss: names.append(name))
    assert names == ["critic", "actor"]


# --- exploration ---


@BOTH
def test_it_explores_uniformly_at_first_and_then_around_the_policy(make):
    torch.manual_seed(0)
    agent = built(make(learning_starts=1_000, noise="gaussian", noise_std=0.05), ONE, UNIT)
    obs = torch.rand(1_000, 1)
    best = agent.act(obs, explore=False)[0]
    distance = (agent.act(obs, explore=True)[0] - best).abs()
    assert distance.max() > 0.8
    distance = (agent.act(obs, explore=True)[0] - best).abs()
    assert 0.0 < distance.mean() < 0.1 and distance.max() < 0.3
    agent.set_value("noise_std", 0.0)
    assert torch.equal(agent.act(obs, explore=True)[0], best)


@BOTH
def test_the_host_acts_as_torch_does(make):
    agent = built(make(learning_starts=0, hidden_sizes=(16,)), ONE, ARM)
    obs = torch.rand(4, 1)
    for explore in (False, True):
        torch.manual_seed(3)
        action = agent.act(obs, explore=explore)[0]
        torch.manual_seed(3)
        agent.noise = type(agent.noise)()  # which forgets
        torch.testing.assert_close(torch.from_numpy(agent.act_on_host(obs.numpy(), explore=explore)[0]), action)


# --- what they serve ---


@BOTH
@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_they_serve_every_observation_space(make, observations):
    agent = make(learning_starts=100, batch_size=8, num_steps=3, hidden_sizes=(16,))
    agent = built(agent, OBSERVATIONS[observations], ARM)
    agent.network = agent.policy  # the same module by the name that the check knows
    check_that_it_acts_and_learns(agent, torch.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TD3(tau=2.0), r"TD3\(tau=2.0\)"),
        (lambda: TD3(policy_delay=0), "policy_delay=0"),
        (lambda: TD3(target_noise_clip=-0.5), r"TD3\(target_noise_clip=-0.5\)"),
        (lambda: DDPG(noise_std=-1.0), r"DDPG\(noise_std=-1.0\)"),
        (lambda: DDPG(noise="pink"), "'pink'"),
        (lambda: built(DDPG(), ONE, TWO), "DDPG needs a Box action space"),
        (lambda: built(TD3(), ONE, spaces.Box(-1.0, float("inf"), (2,))), "finite lower bound"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
