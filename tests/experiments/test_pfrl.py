"""PFRL 0.4.0 itself: its loops and ours call the same things in the same order, and its agents learn the same."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

from rl_lightning import RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation
from rl_lightning.envs import GymEnvModule
from rl_lightning.evaluation import evaluate
from rl_lightning.experiments import train_agent, train_agent_batch, train_agent_with_evaluation
from rl_lightning.experiments import train_agent_batch_with_evaluation as batch_with_evaluation
from tests.experiments.scripted import Env, Evaluations, OldEnv, Steps, Told, named
from tests.trainer.helpers import quiet

pfrl = pytest.importorskip("pfrl")
peer = pytest.importorskip("tests.experiments.peer")
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
    """Rules 2.4 and 2.7; which envs are reset, and when.

    Checkpoints fall on the third of three envs' steps: between those, PFRL's names are not of what the agent has seen.
    """
    ours: list = []
    theirs: list = []
    lengths = [(3, 1), (5,), (2, 4)]
    common = {"steps": 20, "checkpoint_freq": 6, "max_episode_len": max_len}
    makers = [partial(Env, ours, own, name=f"{i} ", ends=ends) for i, own in enumerate(lengths)]
    train_agent_batch(Told(ours), SyncVectorEnv(makers), outdir=tmp_path / "ours", step_hooks=[Steps(ours)], **common)
    envs = [OldEnv(Env(theirs, own, name=f"{i} ", ends=ends)) for i, own in enumerate(lengths)]
    pfrl.experiments.train_agent_batch(
        Told(theirs), peer.Serial(envs), outdir=str(tmp_path / "theirs"), step_hooks=[Steps(theirs)], **common
    )
    assert ours == theirs
    assert len(named(ours, "hook")) == 21


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
    envs = peer.Serial([OldEnv(Env(theirs, own, name=f"{i} ")) for i, own in enumerate(lengths)])
    scores, lens = pfrl.experiments.evaluator.batch_run_evaluation_episodes(envs, Told(theirs), n_steps, n_episodes)
    assert (result.returns, result.lengths) == (scores, lens)
    assert [over(call) for call in ours] == [over(call) for call in theirs]


def over(call):
    if call[0] != "eval observe":
        return call
    *rest, done, reset = call
    return (*rest, [a or b for a, b in zip(done, reset, strict=True)])


# ---- its agents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [peer.dqn, peer.ppo])
def test_in_one_env_they_learn_the_same_as_in_their_own_loop(make, tmp_path):
    """Bit for bit, evaluations included: CartPole, one seed for the agent, one for the env."""
    ours, theirs = make(), None
    _, our_history = train_agent_with_evaluation(
        ours, peer.seeded_env(), 800, None, 2, 200, tmp_path / "ours", eval_env=peer.seeded_env(2)
    )
    theirs = make()
    _, their_history = pfrl.experiments.train_agent_with_evaluation(
        theirs,
        OldEnv(peer.seeded_env()),
        800,
        None,
        2,
        200,
        str(tmp_path / "theirs"),
        eval_env=OldEnv(peer.seeded_env(2)),
    )
    assert torch.equal(peer.weights(ours), peer.weights(theirs))
    assert [row["eval_score"] for row in our_history] == [row["eval_score"] for row in their_history]
    assert len(our_history) == 4


@pytest.mark.parametrize("make", [peer.dqn, peer.ppo, peer.a2c])
def test_in_several_envs_they_learn_the_same_as_in_their_own_loop(make, tmp_path):
    ours = make()
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    envs.reset(seed=1)
    train_agent_batch(ours, envs, 800, tmp_path / "ours")
    theirs = make()
    envs = peer.Serial([OldEnv(peer.seeded_env(1)), OldEnv(peer.seeded_env(2))])
    pfrl.experiments.train_agent_batch(theirs, envs, 800, str(tmp_path / "theirs"))
    assert torch.equal(peer.weights(ours), peer.weights(theirs))


AGENTS = pytest.mark.parametrize(
    ("make", "env", "num_envs"),
    [
        (peer.dqn, "CartPole-v1", 1),
        (peer.ppo, "CartPole-v1", 1),
        (partial(peer.a2c, num_envs=1), "CartPole-v1", 1),
        (peer.sac, "Pendulum-v1", 1),
        (peer.dqn, "CartPole-v1", 2),
        (peer.ppo, "CartPole-v1", 2),
        (peer.a2c, "CartPole-v1", 2),
        (peer.sac, "Pendulum-v1", 2),
    ],
)


@AGENTS
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


@AGENTS
def test_they_train_under_the_functions(make, env, num_envs, tmp_path):
    """Pendulum's episodes are cut off, or too few would end; PFRL's A2C warns of those that are."""
    agent = make()
    before, train = agent.get_statistics(), train_agent_with_evaluation if num_envs == 1 else batch_with_evaluation
    envs = GymEnvModule(env, num_envs=num_envs, max_episode_len=50 if env == "Pendulum-v1" else None)
    given, history = train(agent, envs, 300, None, 2, 100, tmp_path, checkpoint_freq=150, eval_max_episode_len=20)
    assert given is agent and agent.get_statistics() != before
    assert len(history) == 3 and all(np.isfinite(row["eval_score"]) for row in history)
    in_batch = [] if num_envs == 1 else ["300_checkpoint"]
    directories = ["150_checkpoint", *in_batch, "300_finish", "best"]
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir()) == directories
    for name in directories:
        make().load(str(tmp_path / name))


def test_sync_functions_take_an_agent_that_acts_in_batches_only(tmp_path):
    """PFRL's act passes through its batch_act."""
    agent = peer.dqn()
    train_agent(agent, "CartPole-v1", 150, tmp_path)
    assert agent.t == 150
