"""PFRL 0.4.0 itself: its loops and ours call the same things in the same order, and its agents learn the same."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from torch import nn

from rl_lightning import RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation
from rl_lightning.envs import GymEnvModule
from rl_lightning.evaluation import evaluate
from rl_lightning.experiments import train_agent, train_agent_batch, train_agent_with_evaluation
from tests.experiments.scripted import Env, Evaluations, OldEnv, Steps, Told, named
from tests.trainer.helpers import quiet

pfrl = pytest.importorskip("pfrl")
pytestmark = pytest.mark.filterwarnings(  # PFRL 0.4.0 under today's torch
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning",
    "ignore:Creating a tensor from a list of numpy.ndarrays:UserWarning",
)


# ---- three of the rules, side by side --------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
@pytest.mark.parametrize(("offset", "max_len"), [(0, None), (3, 3)])
def test_the_order_of_calls_in_sync(ends, offset, max_len, tmp_path):
    """Rules 2.1 to 2.6, 3.2 and 3.8, with an evaluation env of its own."""
    ours: list = []
    theirs: list = []
    for log, train, wrap, outdir in (
        (ours, train_agent_with_evaluation, lambda env: env, "ours"),
        (theirs, pfrl.experiments.train_agent_with_evaluation, OldEnv, "theirs"),
    ):
        train(
            agent=Told(log),
            env=wrap(Env(log, (4, 2, 5), ends=ends)),
            steps=22,
            eval_n_steps=None,
            eval_n_episodes=2,
            eval_interval=5,
            outdir=str(tmp_path / outdir),
            checkpoint_freq=5,
            train_max_episode_len=max_len,
            step_offset=offset,
            eval_env=wrap(Env(log, (1, 3), name="eval ")),
            step_hooks=[Steps(log)],
            evaluation_hooks=[Evaluations(log)],
        )
    assert ours == theirs
    assert len(named(ours, "hook")) == 22 - offset and named(ours, "evaluation hook")


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
@pytest.mark.parametrize("max_len", [None, 2])
def test_the_order_of_calls_in_batch(ends, max_len, tmp_path):
    """Rules 2.4 and 2.7; which envs are reset, and when."""
    ours: list = []
    theirs: list = []
    lengths = [(3, 1), (5,), (2, 4)]
    common = {"steps": 20, "checkpoint_freq": 4, "max_episode_len": max_len}
    makers = [partial(Env, ours, own, name=f"{i} ", ends=ends) for i, own in enumerate(lengths)]
    train_agent_batch(Told(ours), SyncVectorEnv(makers), outdir=tmp_path / "ours", step_hooks=[Steps(ours)], **common)
    envs = [OldEnv(Env(theirs, own, name=f"{i} ", ends=ends)) for i, own in enumerate(lengths)]
    pfrl.experiments.train_agent_batch(
        Told(theirs), Serial(envs), outdir=str(tmp_path / "theirs"), step_hooks=[Steps(theirs)], **common
    )
    assert ours == theirs
    assert len(named(ours, "hook")) == 21


class Serial(pfrl.env.VectorEnv):
    """Several old envs, one after the other."""

    def __init__(self, envs):
        self.envs, self.num_envs, self.last = envs, len(envs), [None] * len(envs)

    def step(self, actions):
        results = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        self.last, rewards, dones, infos = map(list, zip(*results, strict=True))
        return list(self.last), rewards, dones, infos

    def reset(self, mask=None):
        for i, env in enumerate(self.envs):
            if mask is None or not mask[i]:
                self.last[i] = env.reset()
        return list(self.last)

    def seed(self, seeds):
        raise NotImplementedError

    def close(self):
        for env in self.envs:
            env.close()


@pytest.mark.parametrize(("n_steps", "n_episodes"), [(None, 1), (None, 3), (None, 6), (5, None), (7, None), (20, None)])
@pytest.mark.parametrize("lengths", [((5,), (1,)), ((2, 3), (3, 1), (9, 1))])
def test_which_episodes_of_several_envs_count(n_steps, n_episodes, lengths):
    """Rule 3.5; what the agent is told, `done` and `reset` taken together.

    Where no episode fits into the steps, PFRL fails under numpy 2.
    """
    ours: list = []
    theirs: list = []
    result = evaluate(
        Told(ours),
        SyncVectorEnv([partial(Env, ours, own, name=f"{i} ") for i, own in enumerate(lengths)]),
        num_steps=n_steps,
        num_episodes=n_episodes,
    )
    envs = Serial([OldEnv(Env(theirs, own, name=f"{i} ")) for i, own in enumerate(lengths)])
    scores, lens = pfrl.experiments.evaluator.batch_run_evaluation_episodes(envs, Told(theirs), n_steps, n_episodes)
    assert (result.returns, result.lengths) == (scores, lens)
    assert [over(call) for call in ours] == [over(call) for call in theirs]


def over(call):
    if call[0] != "eval observe":
        return call
    *rest, done, reset = call
    return (*rest, [a or b for a, b in zip(done, reset, strict=True)])


# ---- its agents ------------------------------------------------------------------------------------------------------


def observation(obs):
    return np.asarray(obs, np.float32)


def dqn(seed=0):
    pfrl.utils.set_random_seed(seed)
    head = pfrl.q_functions.DiscreteActionValueHead()
    network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2), head)
    explorer = pfrl.explorers.LinearDecayEpsilonGreedy(1.0, 0.05, 500, lambda: np.random.randint(2))
    return pfrl.agents.DQN(
        network,
        torch.optim.Adam(network.parameters(), lr=1e-3),
        pfrl.replay_buffers.ReplayBuffer(10_000),
        0.99,
        explorer,
        replay_start_size=100,
        target_update_interval=100,
        phi=observation,
    )


def actor_critic(policy_outputs=2, inputs=4):
    policy = pfrl.policies.SoftmaxCategoricalHead()
    return pfrl.nn.Branched(
        nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, policy_outputs), policy),
        nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 1)),
    )


def ppo(seed=0):
    pfrl.utils.set_random_seed(seed)
    network = actor_critic()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    return pfrl.agents.PPO(
        network, optimizer, update_interval=128, minibatch_size=32, epochs=2, phi=observation,
        act_deterministically=True,
    )  # fmt: skip


def a2c(seed=0):
    pfrl.utils.set_random_seed(seed)
    network = actor_critic()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    return pfrl.agents.A2C(network, optimizer, gamma=0.99, num_processes=2, update_steps=5, phi=observation)


def sac(seed=0):
    pfrl.utils.set_random_seed(seed)

    def squashed(output):
        mean, log_scale = torch.chunk(output, 2, dim=1)
        normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_scale.clamp(-5, 2).exp()), 1)
        transforms = [torch.distributions.transforms.TanhTransform(cache_size=1)]
        return torch.distributions.TransformedDistribution(normal, transforms)

    def critic():
        return nn.Sequential(pfrl.nn.ConcatObsAndAction(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    policy = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2), pfrl.nn.lmbda.Lambda(squashed))
    networks = policy, critic(), critic()
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in networks]
    return pfrl.agents.SoftActorCritic(
        *networks, *optimizers, pfrl.replay_buffers.ReplayBuffer(10_000), 0.99, replay_start_size=50,
        minibatch_size=16, burnin_action_func=lambda: np.random.uniform(-1, 1, 1).astype(np.float32), phi=observation,
    )  # fmt: skip


def weights(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.model.parameters()])


def seeded_env(seed=1):
    env = gym.make("CartPole-v1")
    env.reset(seed=seed)
    return env


@pytest.mark.parametrize("make", [dqn, ppo])
def test_in_one_env_they_learn_the_same_as_in_their_own_loop(make, tmp_path):
    """Bit for bit, evaluations included: CartPole, one seed for the agent, one for the env."""
    ours, theirs = make(), None
    _, our_history = train_agent_with_evaluation(
        ours, seeded_env(), 800, None, 2, 200, tmp_path / "ours", eval_env=seeded_env(2)
    )
    theirs = make()
    _, their_history = pfrl.experiments.train_agent_with_evaluation(
        theirs, OldEnv(seeded_env()), 800, None, 2, 200, str(tmp_path / "theirs"), eval_env=OldEnv(seeded_env(2))
    )
    assert torch.equal(weights(ours), weights(theirs))
    assert [row["eval_score"] for row in our_history] == [row["eval_score"] for row in their_history]
    assert len(our_history) == 4


@pytest.mark.parametrize("make", [dqn, ppo, a2c])
def test_in_several_envs_they_learn_the_same_as_in_their_own_loop(make, tmp_path):
    ours = make()
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    envs.reset(seed=1)
    train_agent_batch(ours, envs, 800, tmp_path / "ours")
    theirs = make()
    envs = Serial([OldEnv(seeded_env(1)), OldEnv(seeded_env(2))])
    pfrl.experiments.train_agent_batch(theirs, envs, 800, str(tmp_path / "theirs"))
    assert torch.equal(weights(ours), weights(theirs))


@pytest.mark.parametrize(
    ("make", "env", "num_envs"),
    [
        *[(dqn, "CartPole-v1", 1), (ppo, "CartPole-v1", 1), (sac, "Pendulum-v1", 1)],
        *[(dqn, "CartPole-v1", 2), (ppo, "CartPole-v1", 2), (a2c, "CartPole-v1", 2), (sac, "Pendulum-v1", 2)],
    ],
)
def test_they_train_under_the_trainer(make, env, num_envs, tmp_path):
    agent, strategy = make(), "sync" if num_envs == 1 else "batch"
    before = agent.get_statistics()
    callbacks = quiet(Evaluation(num_episodes=1, every_n_steps=150, max_episode_len=20), best := BestAgent())
    trainer = Trainer(max_steps=300, strategy=strategy, default_root_dir=tmp_path, **callbacks)
    trainer.fit(agent, GymEnvModule(env, num_envs=num_envs))
    assert agent.get_statistics() != before
    score = trainer.test(ckpt_path="best", verbose=False)[0]["test/mean"]
    other = make()
    loaded = RLModule.load_from_checkpoint(best.best_model_path, agent=RLModule(other).agent)
    assert loaded.given_agent is other
    assert np.isfinite(score)


def test_sync_functions_take_an_agent_that_acts_in_batches_only(tmp_path):
    """PFRL's act passes through its batch_act."""
    agent = dqn()
    train_agent(agent, "CartPole-v1", 150, tmp_path)
    assert agent.t == 150
