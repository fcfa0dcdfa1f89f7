"""What the losses mean: bootstrapping, targets, clipping; and that every space is served."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from rl_lightning.agents import A2C, DDPG, DQN, PPO, REINFORCE, SAC, TD3, TRPO, Agent
from rl_lightning.agents.on_policy import values_of_rollout
from rl_lightning.envs.spaces import flatten_obs
from rl_lightning.functional import normalize
from rl_lightning.memory import RolloutMemory
from rl_lightning.types import ConfigurationError, Transition, tree_map

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
TWO = spaces.Discrete(2)
RAINBOW = {"double": True, "dueling": True, "num_steps": 3, "prioritized": True, "noisy": True}
RAINBOW |= {"distribution": "categorical", "num_atoms": 5}
DQNS = {
    "dqn": DQN,
    "rainbow": functools.partial(DQN, **RAINBOW),
    "quantile": functools.partial(DQN, distribution="quantile", num_atoms=5),
    "implicit": functools.partial(DQN, distribution="implicit", num_atoms=5),
}
CONTINUOUS = {"sac": SAC, "td3": TD3, "ddpg": DDPG}
ON_POLICY = [pytest.param(make, id=make.__name__.lower()) for make in (PPO, A2C, TRPO, REINFORCE)]
FEW = {"num_steps": 8}
AGENTS = [
    pytest.param(make, id=name)
    for name, make in {"ppo": PPO, "a2c": A2C, "trpo": TRPO, "reinforce": REINFORCE, **DQNS, **CONTINUOUS}.items()
]


def built(agent, observation_space=BOX, action_space=None):
    agent.build(observation_space, action_space or (BOX if isinstance(agent, TD3 | DDPG) else TWO))
    return agent


def few(make):
    """Arguments with which `random_batches` is soon done."""
    if make is REINFORCE:
        return {"num_episodes": 4}
    return {"learning_starts": 64} if make in {**DQNS, **CONTINUOUS}.values() else FEW


def optimizer_step(agent):
    """What a trainer does with each loss: zero_grad, backward, clip, step."""
    optimizers = agent.configure_optimizers()

    def step(name, loss):
        optimizer = optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        if agent.max_grad_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, agent.max_grad_norm)
        optimizer.step()

    return step


def random_transition(agent, num_envs, seed=0):
    space = agent.observation_space
    batched = batch_space(space, num_envs)
    batched.seed(seed)
    obs, next_obs = (tree_map(np.asarray, flatten_obs(space, batched.sample())) for _ in range(2))
    with torch.inference_mode():
        action, extras = agent.act(tree_map(torch.from_numpy, obs), explore=True)
    reward = np.random.default_rng(seed).normal(size=num_envs).astype(np.float32)
    terminated, truncated = np.random.default_rng(seed).random((2, num_envs)) < 0.2
    return Transition(
        obs, action.numpy(), reward, next_obs, terminated, truncated, tree_map(lambda extra: extra.numpy(), extras)
    )


def random_batches(agent, num_envs=4):
    """Everything that one rollout, or thirty steps of replay or of episodes, give to learn from."""
    memory = agent.make_memory(num_envs)
    memory.rng = np.random.default_rng(0)
    for seed in range(memory.num_steps if isinstance(memory, RolloutMemory) else 30):
        memory.add(random_transition(agent, num_envs, seed))
        yield from memory.batches()


# --- every space ---

OBSERVATIONS = {
    "vector": BOX,
    "matrix of float64": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    "discrete": spaces.Discrete(5, start=-2),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(4),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "frames": spaces.Box(0, 255, (4, 12, 12), np.uint8),
    "nested": spaces.Dict(OrderedDict(robot=spaces.Dict(joint=BOX), pair=spaces.Tuple([spaces.Discrete(2), BOX]))),
}
ACTIONS = {
    "discrete": (spaces.Discrete(3, start=1), torch.int64),
    "multi-discrete": (spaces.MultiDiscrete([2, 3]), torch.int64),
    "multi-binary": (spaces.MultiBinary(4), torch.int8),
    "box": (spaces.Box(-0.5, 0.5, (2,), np.float32), torch.float32),
}


def check_that_it_acts_and_learns(agent, dtype):
    agent_space = agent.action_space
    action = torch.from_numpy(random_transition(agent, 4).action)
    assert action.shape == (4, *agent_space.shape) and action.dtype == dtype
    before = copy.deepcopy(agent.network.state_dict())
    step = optimizer_step(agent)
    metrics = [agent.update(batch, step) for batch in random_batches(agent)]
    assert metrics
    for name, value in metrics[-1].items():
        value = torch.as_tensor(value)
        assert not value.requires_grad and value.isfinite(), name
    assert any(not torch.equal(before[name], value) for name, value in agent.network.state_dict().items())


@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("make", ON_POLICY)
def test_actor_critics_serve_every_observation_space(make, observations):
    check_that_it_acts_and_learns(built(make(**few(make)), OBSERVATIONS[observations]), torch.int64)


@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("name", DQNS)
def test_dqn_serves_every_observation_space(name, observations):
    agent = DQNS[name](learning_starts=100, batch_size=8)
    check_that_it_acts_and_learns(built(agent, OBSERVATIONS[observations]), torch.int64)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("make", ON_POLICY)
def test_actor_critics_serve_every_action_space(make, actions):
    space, dtype = ACTIONS[actions]
    check_that_it_acts_and_learns(built(make(**few(make)), action_space=space), dtype)


@pytest.mark.parametrize(
    ("agent", "action_space", "kinds"),
    [(DQN(), BOX, "a Discrete action space"), (PPO(), spaces.Text(3), "MultiBinary or Box action space")],
)
def test_unsupported_actions_are_named(agent, action_space, kinds):
    with pytest.raises(ConfigurationError, match=f"needs .*{kinds}"):
        agent.build(BOX, action_space)


@pytest.mark.parametrize("make", AGENTS)
def test_unsupported_observations_are_named(make):
    with pytest.raises(ConfigurationError, match="Text"):
        make().build(spaces.Text(3), TWO)


# --- what every agent keeps to ---


@pytest.mark.parametrize("make", AGENTS)
def test_the_best_action_needs_no_chance(make):
    agent, obs = built(make()), torch.randn(64, 3)
    first = agent.act(obs, explore=False)[0]
    state = torch.get_rng_state()
    assert torch.equal(agent.act(obs, explore=False)[0], first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", AGENTS)
def test_the_same_seed_explores_the_same_way(make):
    agent, obs = built(make()), torch.randn(64, 3)
    actions = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        actions.append(agent.act(obs, explore=True)[0])
    assert torch.equal(actions[0], actions[1]) and not torch.equal(actions[0], actions[2])


@pytest.mark.parametrize("make", AGENTS)
def test_arguments_are_remembered_and_copies_keep_them(make):
    agent = built(make(lr=0.5, hidden_sizes=(8,)))
    assert agent.init_args["lr"] == 0.5 and agent.init_args["hidden_sizes"] == (8,)
    for other in (copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))):
        assert other.init_args == agent.init_args
        obs = torch.randn(5, 3)
        assert torch.equal(other.act(obs, explore=False)[0], agent.act(obs, explore=False)[0])
    assert make(**agent.init_args).init_args == agent.init_args


@pytest.mark.parametrize("make", AGENTS)
def test_a_state_dict_survives_a_checkpoint_file(make):
    agent = built(make(**(few(make))))
    step = optimizer_step(agent)
    for batch in random_batches(agent):
        agent.update(batch, step)
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    other = built(make())
    other.load_state_dict(torch.load(file, weights_only=True))
    for name, value in agent.state_dict().items():
        same = torch.equal if torch.is_tensor(value) else lambda a, b: a == b
        assert same(value, other.state_dict()[name]), name


def test_tunables_are_found_by_name():
    agent = PPO(clip_range=0.2)
    agent.set_value("clip_range", 0.1)
    assert agent.clip_range.item() == pytest.approx(0.1)
    with pytest.raises(ConfigurationError, match=r"PPO has no such value 'epsilon'.*clip_range, entropy_weight"):
        agent.set_value("epsilon", 0.1)


def test_an_agent_without_its_required_arguments_says_so_and_others_can_be_copied():
    class Needy(DQN):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

    with pytest.raises(TypeError, match="size"):
        Needy()
    assert copy.deepcopy(Needy(3)).size == 3
    Agent.registry.pop("Needy")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPO(clip_range=0.0), "clip_range=0.0"),
        (lambda: DQN(tau=0.0), "tau=0.0.*in .0, 1"),
        (lambda: DQN(target_update_every=0), "target_update_every=0.*at least 1"),
        (lambda: TRPO(max_kl=0.0), "max_kl=0.0.*above 0"),
        (lambda: TRPO(num_products=0), "num_products=0.*at least 1"),
        (lambda: TRPO(num_epochs=0), "num_epochs=0: .*at least 1"),
        (lambda: DQN(epsilon=2.0), "epsilon=2.0.*from 0 to 1"),
        (lambda: DQN(distribution="normal"), "distribution='normal'.*'categorical', 'quantile', 'implicit'"),
        (lambda: DQN(distribution="categorical", num_atoms=1), "num_atoms=1.*at least 2"),
        (lambda: DQN(distribution="categorical", value_range=(1, 1)), r"value_range=.1, 1..*below the last"),
        (lambda: DQN(distribution="quantile", num_atoms=0), "num_atoms=0.*at least 1"),
        (lambda: built(PPO(activation="sine")), "'sine'"),
        (lambda: PPO(num_steps=2, num_minibatches=4).make_memory(1), "only 2 transitions"),
        (lambda: DQN(buffer_size=10).make_memory(1), "buffer_size"),
    ],
)
def test_numbers_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


# --- DQN ---


class Table(torch.nn.Module):
    """Q-values looked up by the number of the state, obs [N, 1]."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = torch.nn.Parameter(torch.tensor(rows))

    def forward(self, obs, *, noise=False, fractions=None):
        return self.rows[obs[:, 0].long()]


def dqn_with(online, target, **kwargs):
    agent = built(DQN(discount=0.9, **kwargs), spaces.Box(0.0, 1.0, (1,), np.float32))
    agent.network, agent.target = Table(*online), Table(*target).requires_grad_(False)
    return agent


def one_step(reward=0.0, terminated=False, **fields):
    """From state 0 by action 0 to state 1."""
    return {
        "obs": torch.zeros(1, 1),
        "action": torch.zeros(1, dtype=torch.int64),
        "reward": torch.tensor([reward]),
        "next_obs": torch.ones(1, 1),
        "terminated": torch.tensor([terminated]),
        **fields,
    }


def losses_of(agent, batch):
    losses = {}
    agent.update(batch, step=losses.__setitem__)
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize(("end", "expected"), [("terminated", 0.0), ("truncated", 8.5)])
def test_only_truncation_bootstraps(end, expected):
    """Q(s)=0, Q(s')=10, reward 0, discount 0.9: target 9 if cut off, 0 if over. Smooth L1 of 9 is 8.5."""
    agent = dqn_with([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [10.0, 3.0]])
    batch = one_step(terminated=end == "terminated", truncated=torch.tensor([end == "truncated"]))
    assert losses_of(agent, batch) == {"q": pytest.approx(expected)}


@pytest.mark.parametrize(("double", "expected"), [(False, 8.5), (True, 4.5 - 0.5)])
def test_double_values_the_trained_network_s_choice_by_the_target(double, expected):
    """The trained network prefers action 1, which the target values 5 (target 4.5); the target's own best is 10."""
    agent = dqn_with([[0.0, 0.0], [1.0, 2.0]], [[0.0, 0.0], [10.0, 5.0]], double=double)
    assert losses_of(agent, one_step()) == {"q": pytest.approx(expected)}


@pytest.mark.parametrize(("n", "expected"), [(1, 1 + 9.0), (3, 1 + 7.29)])
def test_n_step_targets_discount_n_times(n, expected):
    agent = dqn_with([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [10.0, 3.0]])
    assert losses_of(agent, one_step(reward=1.0, n=torch.tensor([n]))) == {"q": pytest.approx(expected - 0.5)}


def test_no_gradient_through_the_target():
    agent = dqn_with([[0.0, 0.0], [1.0, 2.0]], [[0.0, 0.0], [10.0, 5.0]], double=True)
    agent.update(one_step(), step=lambda name, loss: loss.backward())
    assert agent.network.rows.grad.tolist() == [[-1.0, 0.0], [0.0, 0.0]]
    assert agent.target.rows.grad is None


def test_the_target_network_is_neither_trained_nor_counted():
    agent = built(DQN(dueling=True))
    assert not any(parameter.requires_grad for parameter in agent.target.parameters())
    (group,) = agent.configure_optimizers()["q"].param_groups
    assert len(group["params"]) == len(list(agent.network.parameters()))


@pytest.mark.parametrize(("tau", "expected"), [(1.0, [0.0, 4.0, 4.0, 4.0]), (0.5, [0.0, 2.0, 2.0, 3.0])])
def test_the_target_follows_every_other_update(tau, expected):
    agent = dqn_with([[4.0, 4.0], [4.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]], tau=tau, target_update_every=2)
    seen = []
    for _ in range(4):
        agent.update(one_step(), step=lambda name, loss: None)
        seen.append(agent.target.rows[0, 0].item())
    assert seen == expected


def test_the_count_of_updates_is_restored():
    agent = dqn_with([[4.0, 4.0], [4.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]], target_update_every=2)
    agent.update(one_step(), step=lambda name, loss: None)
    other = dqn_with([[4.0, 4.0], [4.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]], target_update_every=2)
    other.load_state_dict(agent.state_dict())
    other.update(one_step(), step=lambda name, loss: None)
    assert other.num_updates == 2 and other.target.rows[0, 0] == 4


def certain(*atoms):
    """Logits of a categorical distribution that is sure of one atom."""
    return [50.0 if atom else 0.0 for atom in atoms]


def of_kind(distribution, **kwargs):
    """Two states, two actions, two numbers for each: nothing known of state 0, a return of 10 and of 3 in state 1."""
    flat, ten, three = [0.0, 0.0], [10.0, 10.0], [3.0, 3.0]
    if distribution == "categorical":
        ten, three = certain(0, 1), certain(1, 0)
    elif distribution is None:
        flat, ten, three = 0.0, 10.0, 3.0
    rows = [[flat, flat], [ten, three]]
    return dqn_with(rows, rows, distribution=distribution, num_atoms=2, value_range=(0.0, 10.0), **kwargs)


def entropy_to(*target):
    """The divergence of two atoms' target from the even distribution."""
    return sum(p * math.log(p / 0.5) for p in target if p > 0)


@pytest.mark.parametrize(
    ("distribution", "fields", "expected"),
    [
        ("categorical", {}, entropy_to(0.1, 0.9)),  # 0.9 * 10 = 9 lies nine tenths of the way from 0 to 10
        ("categorical", {"terminated": True}, entropy_to(1.0)),
        ("categorical", {"reward": 5.0, "terminated": True}, entropy_to(0.5, 0.5)),
        ("categorical", {"reward": 5.0}, entropy_to(1.0)),  # 14 counts as 10
        ("categorical", {"n": torch.tensor([3])}, entropy_to(0.271, 0.729)),
        ("quantile", {}, 8.5),  # each quantile is 9 too low: Huber 8.5, weighed with 1/4 and 3/4
        ("quantile", {"terminated": True}, 0.0),
        ("quantile", {"reward": 5.0, "terminated": True}, 4.5),
        ("quantile", {"reward": -5.0, "terminated": True}, 4.5),  # with 3/4 and 1/4
        ("quantile", {"n": torch.tensor([3])}, 6.79),
    ],
)
def test_a_distribution_s_target(distribution, fields, expected):
    assert losses_of(of_kind(distribution), one_step(**fields)) == {"q": pytest.approx(expected, abs=1e-5)}


@pytest.mark.parametrize(("end", "error"), [("terminated", 0.0), ("truncated", 8.5)])
def test_implicit_quantiles_are_weighed_by_the_fractions_drawn(end, error):
    """The target's fractions are drawn first, then those of the prediction."""
    agent = of_kind("implicit")
    batch = one_step(terminated=end == "terminated", truncated=torch.tensor([end == "truncated"]))
    torch.manual_seed(0)
    torch.rand(1, 2)
    expected = error * torch.rand(1, 2).sum().item()
    torch.manual_seed(0)
    assert losses_of(agent, batch) == {"q": pytest.approx(expected)}


KINDS = [None, "categorical", "quantile", "implicit"]


@pytest.mark.parametrize("distribution", KINDS)
def test_importance_weights_scale_each_row_s_loss(distribution):
    torch.manual_seed(0)
    agent = of_kind(distribution)
    rows = [one_step(), one_step(reward=4.0, terminated=True)]
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    losses = []
    for weight in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.25]):
        torch.manual_seed(1)
        given = {**batch, "weight": torch.tensor(weight)}
        losses.append(losses_of(agent, given)["q"])
        assert given["td_error"].shape == (2,) and not given["td_error"].requires_grad
        assert (given["td_error"] > 0).all()
    assert losses[0] > 0 and losses[1] > 0 and losses[0] != losses[1]
    assert losses[2] == pytest.approx(0.5 * losses[0] + 0.25 * losses[1])
    torch.manual_seed(1)
    assert losses_of(agent, batch)["q"] == pytest.approx(losses[0] + losses[1])


def test_the_td_error_is_the_distance_to_the_target():
    agent = of_kind(None)
    for batch, expected in ((one_step(), 9.0), (one_step(reward=-4.0, terminated=True), 4.0)):
        batch["weight"] = torch.tensor([0.5])
        agent.update(batch, step=lambda name, loss: None)
        assert batch["td_error"].tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize("distribution", KINDS)
def test_whatever_follows_a_termination_does_not_count(distribution):
    agent = of_kind(distribution)
    expected = losses_of(agent, one_step(reward=1.0, terminated=True)) if distribution != "implicit" else None
    agent.target.rows.data[1] = float("inf")
    torch.manual_seed(0)
    loss = losses_of(agent, one_step(reward=1.0, terminated=True))
    assert math.isfinite(loss["q"]) and expected in (None, loss)


@pytest.mark.parametrize("distribution", KINDS)
def test_the_best_action_has_the_highest_mean(distribution):
    agent = of_kind(distribution, double=True)
    assert agent.act(torch.ones(1, 1), explore=False)[0].tolist() == [0]
    agent.network.rows.data[1] = agent.network.rows.data[1].flip(0)
    assert agent.act(torch.ones(1, 1), explore=False)[0].tolist() == [1]
    following = agent._following(torch.ones(1, 1), None)  # what the target says of the trained network's choice
    torch.testing.assert_close(following, agent.target.rows[1, 1:2])


def test_noise_explores_where_epsilon_does_not():
    agent, obs = built(DQN(noisy=True), action_space=spaces.Discrete(4)), torch.randn(1, 3).expand(500, 3)
    assert agent.schedules()["epsilon"][:2] == (0.0, 0.0)
    assert len(set(agent.act(obs, explore=False)[0].tolist())) == 1
    assert len(set(agent.act(obs, explore=True)[0].tolist())) > 1
    assert DQN(noisy=True, epsilon=0.5, final_epsilon=0.1).schedules()["epsilon"][:2] == (0.5, 0.1)


def test_prioritized_replay_is_a_flag():
    assert DQN().make_memory(1).alpha == 0.0 and DQN(prioritized=True).make_memory(1).alpha == 0.5


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_is_the_share_of_random_actions(epsilon):
    """Of 4 actions the random one is another three times in four."""
    torch.manual_seed(0)
    agent = built(DQN(), action_space=spaces.Discrete(4))
    agent.set_value("epsilon", epsilon)
    obs = torch.randn(20_000, 3)
    differs = agent.act(obs, explore=True)[0] != agent.act(obs, explore=False)[0]
    assert differs.float().mean().item() == pytest.approx(0.75 * epsilon, abs=0.015)


def test_epsilon_falls_as_the_arguments_say():
    agent = DQN(epsilon=0.8, final_epsilon=0.1, epsilon_steps=50)
    assert agent.schedules() == {"epsilon": (0.8, 0.1, 50)} and agent.epsilon.item() == pytest.approx(0.8)
    assert "epsilon" in agent.tunables


# --- PPO and A2C ---


def rollout(num_envs=1, **fields):
    """Two steps, states 0 and 1, then 2; reward 0, action 0, no end."""
    zeros = torch.zeros(2, num_envs)
    never = torch.zeros(2, num_envs, dtype=torch.bool)
    obs = torch.tensor([[[0.0]], [[1.0]]]).expand(2, num_envs, 1)
    return {
        "obs": obs,
        "action": zeros.long(),
        "reward": zeros,
        "next_obs": obs + 1,
        "terminated": never,
        "truncated": never,
        **fields,
    }


def actor_critic(make, **kwargs):
    """V(s) = 10 s, discount 0.5, one-step advantages, a policy that is the same everywhere."""
    agent = built(make(discount=0.5, **{"trace_decay": 0.0, **kwargs}), spaces.Box(-9.0, 9.0, (1,), np.float32))
    agent.network.value_layers = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(agent.network.value_layers.weight, 10.0)
    torch.nn.init.zeros_(agent.network.policy_layers[-2].weight)
    return agent


def learned_from(agent, batch):
    """Advantages and returns [T, B] that the agent works out of a rollout."""
    if isinstance(agent, PPO | TRPO):
        prepared = agent.prepare(batch)
        return prepared["advantage"], prepared["return"]
    with torch.no_grad():
        value = values_of_rollout(agent.network, batch)
    advantage = agent.advantage(batch, value)
    return advantage, advantage + value


@pytest.mark.parametrize("make", [PPO, A2C, TRPO])
@pytest.mark.parametrize(("end", "expected"), [("terminated", -10.0), ("truncated", 0.5 * 70 - 10), (None, 0.0)])
def test_the_end_of_an_episode_bootstraps_from_its_own_last_state(make, end, expected):
    """The episode ends in state 1 -> 7; row 1 -> 2 is the last, so that next_obs counts there too."""
    next_obs = torch.tensor([[[7.0]], [[2.0]]]) if end else torch.tensor([[[2.0]], [[3.0]]])
    fields = {"obs": torch.tensor([[[1.0]], [[2.0]]]), "next_obs": next_obs}
    if end:
        fields[end] = torch.tensor([[True], [False]])
    advantage, target = learned_from(actor_critic(make), rollout(**fields))
    assert advantage[0].item() == pytest.approx(expected)
    assert target[0].item() == pytest.approx(10 + expected)
    last = 0.5 * 10 * next_obs[1].item() - 20
    assert advantage[1].item() == pytest.approx(last)


@pytest.mark.parametrize("make", [PPO, A2C, TRPO])
def test_the_trace_stops_at_the_end_of_an_episode(make):
    """With trace decay 1 the second row's reward of 8 reaches the first at half; not across a truncation."""
    reward = torch.tensor([[0.0], [8.0]])
    advantages = {}
    for cut in (False, True):
        batch = rollout(reward=reward, truncated=torch.tensor([[cut], [False]]), next_obs=torch.zeros(2, 1, 1))
        advantages[cut] = learned_from(actor_critic(make, trace_decay=1.0), batch)[0][0].item()
    assert advantages == {False: 4.0, True: 0.0}


def test_long_rollouts_are_evaluated_in_parts_with_the_same_result(monkeypatch):
    agent = built(PPO())
    generator = torch.Generator().manual_seed(0)
    batch = {
        "obs": torch.randn(9, 4, 3, generator=generator),
        "next_obs": torch.randn(9, 4, 3, generator=generator),
        "action": torch.randint(2, (9, 4), generator=generator),
        "reward": torch.randn(9, 4, generator=generator),
        "terminated": torch.rand(9, 4, generator=generator) < 0.2,
        "truncated": torch.rand(9, 4, generator=generator) < 0.2,
    }
    whole = agent.prepare(batch)
    monkeypatch.setattr("rl_lightning.agents.on_policy.MAX_ROWS_AT_ONCE", 8)
    for name, field in agent.prepare(batch).items():
        torch.testing.assert_close(field, whole[name])


def test_prepare_learns_from_the_unclipped_sample():
    agent = built(PPO(), action_space=spaces.Box(-0.1, 0.1, (2,), np.float32))
    memory = agent.make_memory(4)
    for seed in range(memory.num_steps):
        memory.add(random_transition(agent, 4, seed))
    batch = next(memory.batches())
    assert batch["action"].abs().max() > 0.1
    policy = agent.network.policy(batch["obs"])
    torch.testing.assert_close(policy.log_prob(batch["action"]), batch["log_prob"])


def ppo_batch(log_ratio, advantage):
    """One transition whose probability under the present policy is exp(log_ratio) times what it was."""
    return {
        "obs": torch.zeros(1, 1),
        "action": torch.zeros(1, dtype=torch.int64),
        "log_prob": torch.tensor([math.log(0.5) - log_ratio]),
        "advantage": torch.tensor([advantage]),
        "return": torch.zeros(1),
    }


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "moves"),
    [
        (1.0, 2.0, -2.0, True),
        (1.5, 2.0, -2.0 * 1.2, False),  # far enough in the good direction
        (0.5, 2.0, -2.0 * 0.5, True),
        (0.5, -2.0, 2.0 * 0.8, False),
        (1.5, -2.0, 2.0 * 1.5, True),
    ],
)
def test_the_clipped_objective(ratio, advantage, expected, moves):
    agent = actor_critic(PPO, normalize_advantage=False, value_weight=0.0, clip_range=0.2)
    batch = ppo_batch(math.log(ratio), advantage)
    losses = {}
    metrics = agent.update(batch, step=losses.__setitem__)
    assert losses["actor_critic"].item() == pytest.approx(expected)
    losses["actor_critic"].backward()
    assert bool(agent.network.policy_layers[-2].bias.grad.any()) == moves
    assert metrics["clip_fraction"] == (abs(ratio - 1) > 0.2)
    assert metrics["approx_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-6)


@pytest.mark.parametrize(("limit", "expected"), [(None, 9.0), (1.0, 16.0), (10.0, 9.0)])
def test_the_value_s_move_can_be_limited(limit, expected):
    """Return 10, value then 5 and now 7: error 3, or 4 where it may have moved by 1 only; the larger counts."""
    agent = actor_critic(PPO, normalize_advantage=False, clip_range_value=limit)
    batch = {**ppo_batch(0.0, 5.0), "obs": torch.tensor([[0.7]]), "return": torch.tensor([10.0])}
    assert agent.update(batch, step=lambda name, loss: None)["value_loss"].item() == pytest.approx(expected)


@pytest.mark.parametrize("make", [PPO, A2C])
def test_the_parts_of_the_loss_are_weighed(make):
    """Two equal actions: entropy log 2; value 0 for a return of 3, which ends the episode: squared error 9."""
    agent = actor_critic(make, normalize_advantage=False, value_weight=0.1, entropy_weight=0.5)
    if make is PPO:
        batch, policy_loss = {**ppo_batch(0.0, 2.0), "return": torch.tensor([3.0])}, -2.0
    else:
        batch, policy_loss = rollout(reward=torch.tensor([[3.0]]), terminated=torch.tensor([[True]])), 3.0 * math.log(2)
        batch = {name: field[:1] for name, field in batch.items()}
    expected = policy_loss + 0.1 * 9.0 - 0.5 * math.log(2)
    assert losses_of(agent, batch) == {"actor_critic": pytest.approx(expected)}
    agent.set_value("entropy_weight", 0.0)
    assert losses_of(agent, batch) == {"actor_critic": pytest.approx(policy_loss + 0.9)}


def test_a_policy_that_moves_too_far_ends_the_rollout_s_updates():
    counts = {}
    for target_kl in (None, 1e-4):
        torch.manual_seed(0)
        agent = built(PPO(lr=0.05, num_steps=16, target_kl=target_kl))
        step = optimizer_step(agent)
        counts[target_kl] = len([agent.update(batch, step) for batch in random_batches(agent)])
    assert counts[None] == 16 and 2 <= counts[1e-4] < 16


def test_a2c_learns_once_from_each_rollout():
    agent = built(A2C(num_steps=5))
    (batch,) = random_batches(agent)
    assert batch["obs"].shape == (5, 4, 3)


def test_a2c_leaves_out_rows_that_are_no_experience():
    """The same losses as without those rows, whatever they hold: two envs, of which one only resets in step 1."""
    agent, losses = built(A2C(entropy_weight=0.1)), []
    (batch,) = random_batches(agent)
    batch = {name: field[:2, :2].clone() for name, field in batch.items()}
    batch["terminated"] = torch.tensor([[False, True], [False, False]])
    batch["valid"] = torch.tensor([[True, True], [True, False]])
    for reward in (0.0, 1e6):
        batch["reward"][1, 1] = reward
        agent.update(batch, step=lambda _, loss: losses.append(loss.item()))
    assert losses[0] == losses[1]
    batch["valid"] = torch.ones(2, 2, dtype=torch.bool)
    agent.update(batch, step=lambda _, loss: losses.append(loss.item()))
    assert losses[2] != losses[0]


def test_explained_variance_is_of_the_whole_rollout():
    """Values 0 and 10, returns 5 (= 0.5 * 10) and 10 (= 0.5 * 20): residual 5, 0 against target 5, 10."""
    agent = actor_critic(PPO)
    prepared = agent.prepare(rollout())
    assert prepared["return"].flatten().tolist() == [5.0, 10.0]
    assert agent.explained_variance.item() == pytest.approx(0.0)


# --- TRPO ---


def trpo_batch(agent, size=64):
    torch.manual_seed(0)
    space = agent.observation_space
    obs = torch.rand(size, *space.shape) * 2 - 1
    with torch.no_grad():
        action, extras = agent.act(obs, explore=True)
    action = extras.get("sample", action)
    return {"obs": obs, "action": action, "advantage": torch.randn(size), "return": torch.randn(size)}


def policy_weights(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy_parameters()])


def ignore(name, loss): ...


@pytest.mark.parametrize("actions", ACTIONS)
def test_trpo_moves_the_policy_as_far_as_it_may_and_it_is_better(actions):
    agent = built(TRPO(max_kl=0.01, hidden_sizes=(16,)), action_space=ACTIONS[actions][0])
    batch = trpo_batch(agent)
    old = agent.network.policy(batch["obs"]).detach()
    metrics = agent.update(batch, ignore)
    new = agent.network.policy(batch["obs"])
    kl = old.kl_divergence(new).mean().item()
    assert 0.001 < kl <= 0.01 and metrics["kl"].item() == pytest.approx(kl, rel=1e-4)
    ratio = (new.log_prob(batch["action"]) - old.log_prob(batch["action"])).exp()
    better = (ratio * normalize(batch["advantage"])).mean().item()
    assert better > 0 and metrics["improvement"].item() == pytest.approx(better, rel=1e-3)


def test_trpo_s_step_is_the_natural_gradient_s():
    """One state, two actions, no damping: the Fisher matrix of the logits' biases (b, -b) is p (1 - p) in each, and any
    step along it has KL = 1/2 step F step: the length is sqrt(2 max_kl / F)."""
    agent = built(TRPO(max_kl=1e-4, damping=0.0, hidden_sizes=(), normalize_advantage=False), BOX)
    linear = agent.network.policy_layers[-2]
    torch.nn.init.zeros_(linear.weight)
    batch = {"obs": torch.zeros(2, 3), "action": torch.tensor([0, 1])}
    batch |= {"advantage": torch.tensor([1.0, -1.0]), "return": torch.zeros(2)}
    metrics = agent.update(batch, ignore)
    assert metrics["step_share"] in (1.0, 0.5)
    expected = metrics["step_share"] * math.sqrt(2 * 1e-4 / 0.25)  # of b_0 - b_1, where F = 1/4
    assert (linear.bias[0] - linear.bias[1]).item() == pytest.approx(expected, rel=1e-3)
    assert not linear.weight.any()


def test_trpo_stays_where_no_step_is_better():
    agent = built(TRPO())
    batch, before = trpo_batch(agent), policy_weights(agent)
    for advantage in (torch.zeros(64), torch.full((64,), 3.0)):  # both are 0 once they are normalised
        metrics = agent.update({**batch, "advantage": advantage}, ignore)
        assert torch.equal(policy_weights(agent), before)
        assert metrics["step_share"] == 0.0 and metrics["kl"] == 0.0


def test_trpo_steps_back_where_the_full_step_goes_too_far():
    """A huge step leaves the region where the divergence is a square; with no other to try, none is made."""
    shares = []
    for num_backtracks in (20, 0):
        torch.manual_seed(0)
        agent = built(TRPO(max_kl=3.0, damping=0.0, num_backtracks=num_backtracks))
        batch, before = trpo_batch(agent), policy_weights(agent)
        metrics = agent.update(batch, ignore)
        shares.append(metrics["step_share"])
        assert metrics["kl"] <= 3.0
        assert torch.equal(policy_weights(agent), before) == (shares[-1] == 0.0)
    assert 0.0 < shares[0] < 1.0 and shares[1] == 0.0


def test_trpo_fits_the_value_function_apart():
    """Its optimizer holds nothing of the policy; 2 passes of 4 learning steps each."""
    agent = built(TRPO(num_epochs=2, num_minibatches=4), OBSERVATIONS["image"])
    (group,) = agent.configure_optimizers()["value"].param_groups
    assert {*map(id, group["params"])}.isdisjoint(map(id, agent.policy_parameters()))
    batch = random_transition(agent, 8)
    fields = {"obs": torch.from_numpy(batch.obs), "action": torch.from_numpy(batch.action)}
    fields |= {"advantage": torch.randn(8), "return": torch.randn(8)}
    losses = []

    def step(name, loss):
        agent.zero_grad()
        loss.backward()
        losses.append(name)
        assert all(parameter.grad is None for parameter in agent.policy_parameters())

    agent.update(fields, step)
    assert losses == ["value"] * 8


def test_trpo_s_value_loss_is_the_squared_error():
    """Values 10 s of states 0 and 1, returns 3 and 6: (9 + 16) / 2, in one minibatch."""
    agent = actor_critic(TRPO, num_epochs=1, num_minibatches=1)
    batch = {"obs": torch.tensor([[0.0], [1.0]]), "action": torch.tensor([0, 1])}
    batch |= {"advantage": torch.zeros(2), "return": torch.tensor([3.0, 6.0])}
    assert losses_of(agent, batch) == {"value": pytest.approx(12.5)}


# --- REINFORCE ---


def reinforce(**kwargs):
    """V(s) = 10 s, discount 0.5, a policy that is the same everywhere."""
    defaults = {"discount": 0.5, "normalize_advantage": False}
    agent = built(REINFORCE(**{**defaults, **kwargs}), spaces.Box(-9.0, 9.0, (1,), np.float32))
    agent.network.value_layers = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(agent.network.value_layers.weight, 10.0)
    torch.nn.init.zeros_(agent.network.policy_layers[-2].weight)
    return agent


def two_episodes(end="terminated"):
    """States 0, 1 with rewards 1, 2, which ends the first in state 3; then state 2 with reward 4, which terminates."""
    ends = torch.tensor([[False], [True], [False]])
    last = torch.tensor([[False], [False], [True]])
    return {
        "obs": torch.tensor([[[0.0]], [[1.0]], [[2.0]]]),
        "action": torch.tensor([[0], [1], [0]]),
        "reward": torch.tensor([[1.0], [2.0], [4.0]]),
        "next_obs": torch.tensor([[[1.0]], [[3.0]], [[9.0]]]),
        "terminated": ends | last if end == "terminated" else last,
        "truncated": ends if end == "truncated" else torch.zeros_like(ends),
    }


@pytest.mark.parametrize(
    ("end", "baseline", "expected"),
    [
        ("terminated", False, [2.0, 2.0, 4.0]),  # 1 + 0.5 * 2; the next episode does not count
        ("truncated", False, [2.0, 2.0, 4.0]),  # nothing is known of what was cut off
        ("terminated", True, [2.0 - 0, 2.0 - 10, 4.0 - 20]),
        ("truncated", True, [1 + 0.5 * 17 - 0, 2 + 0.5 * 30 - 10, 4.0 - 20]),  # V(3) = 30 goes on
    ],
)
def test_reinforce_weighs_each_action_by_what_came_of_it(end, baseline, expected):
    """The loss is the mean of log 2 times the advantage; the baseline's adds the squared error, which is the same."""
    agent = reinforce(baseline=baseline, value_weight=0.1)
    advantages = torch.tensor(expected)
    value_loss = 0.1 * advantages.square().mean().item() if baseline else 0.0
    loss = math.log(2) * advantages.mean().item() + value_loss
    assert losses_of(agent, two_episodes(end)) == {"policy": pytest.approx(loss, rel=1e-5)}


def test_reinforce_normalises_the_advantages_but_not_the_baseline_s_target():
    """Equally likely actions: the normalised advantages add nothing, the squared errors 4, 64 and 256 do."""
    agent = reinforce(normalize_advantage=True, value_weight=1.0, entropy_weight=0.5)
    expected = 108.0 - 0.5 * math.log(2)
    assert losses_of(agent, two_episodes()) == {"policy": pytest.approx(expected, rel=1e-5)}


def test_reinforce_s_gradient_makes_good_actions_likelier():
    agent = reinforce(baseline=False)
    agent.update(two_episodes(), step=lambda name, loss: loss.backward())
    gradient = agent.network.policy_layers[-2].bias.grad  # of logits that are equal: -(A_0 - A_1) / 2 / 3
    torch.testing.assert_close(gradient, torch.tensor([-(2 + 4 - 2) / 6, (2 + 4 - 2) / 6]))


def test_without_a_baseline_there_is_no_value_to_train():
    agent = built(REINFORCE(baseline=False))
    trained = {id(p) for group in agent.configure_optimizers()["policy"].param_groups for p in group["params"]}
    assert trained == {*map(id, agent.network.policy_layers.parameters())}
    batch = next(random_batches(agent))
    assert "value_loss" not in agent.update(batch, ignore)


def test_dqn_without_replay_bootstraps_from_the_end_of_its_rollout():
    """Rewards 1, 1, 1 with a termination in the second row: targets 1 + 0.5, 1, and 1 + 0.5 * Q(s_3) of the last."""
    agent = built(DQN(buffer_size=None, num_steps=3, discount=0.5))
    memory = agent.make_memory(1)
    for t in range(3):
        obs, next_obs = np.full((1, 3), t, np.float32), np.full((1, 3), t + 1, np.float32)
        end = np.array([t == 1])
        memory.add(Transition(obs, np.zeros(1, np.int64), np.ones(1, np.float32), next_obs, end, ~end & end, {}))
    (batch,) = memory.batches()
    assert batch["reward"].tolist() == [1.5, 1.0, 1.0]
    assert batch["n"].tolist() == [2, 1, 1]
    assert batch["terminated"].tolist() == [True, True, False]
    assert batch["next_obs"][:, 0].tolist() == [2.0, 2.0, 3.0]
    losses = {}
    agent.update(batch, losses.__setitem__)
    with torch.no_grad():
        q = agent.network(batch["obs"])[:, 0]
        target = torch.tensor([1.5, 1.0, 1.0 + 0.5 * agent.target(batch["next_obs"])[2].max().item()])
    assert losses["q"].item() == pytest.approx(torch.nn.functional.smooth_l1_loss(q, target).item())
