"""SEMANTICS.md section 4: where we are better, each as a test that the old behaviour would fail; and bad input."""

from __future__ import annotations

import os
import shutil
import stat
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

from rl_lightning import ConfigurationError, RLModule, Trainer
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import EnvRecipe, GymEnvModule
from rl_lightning.evaluation import evaluate
from rl_lightning.experiments import (
    Evaluator,
    train_agent,
    train_agent_batch,
    train_agent_batch_with_evaluation,
    train_agent_with_evaluation,
)
from tests.experiments.scripted import Env, Evaluations, Told, Without, Worth, named
from tests.trainer.helpers import quiet, small_ppo


@pytest.fixture
def log():
    return []


def vector(log, *lengths):
    return SyncVectorEnv([partial(Env, log, own) for own in lengths])


# ---- evaluation envs -------------------------------------------------------------------------------------------------


def test_in_batch_evaluation_gets_envs_of_its_own(log, tmp_path):
    """Every observation that the agent acts on in training follows from its last action."""
    made = []

    def make():
        made.append(Env(log, (5,), name=f"{len(made)} "))
        return made[-1]

    hook = Evaluations()
    train_agent_batch_with_evaluation(Told(log), EnvRecipe(make, 2), 12, None, 1, 4, tmp_path, evaluation_hooks=[hook])
    assert len(made) == 4
    assert [call[1] for call in named(log, "act")] == [[[i // 5, i % 5]] * 2 for i in range(6)]
    assert len(hook.calls) == 3


def test_in_batch_a_bare_vector_env_cannot_be_evaluated_in(log, tmp_path):
    envs = vector(log, (5,), (5,))
    for eval_env in (None, envs):
        with pytest.raises(ConfigurationError, match="eval_env is needed|in the training env itself"):
            train_agent_batch_with_evaluation(Told(log), envs, 12, None, 1, 4, tmp_path, eval_env=eval_env)
    assert not named(log, "step")


def test_in_sync_a_bare_env_is_evaluated_in_between_its_episodes(log, tmp_path):
    """Training episodes 0 and 1, evaluation in episode 2, training goes on in episode 3."""
    train_agent_with_evaluation(Told(log), Env(log, (2,)), 6, None, 1, 4, tmp_path)
    assert [call[1] for call in named(log, "act")] == [[0, 0], [0, 1], [1, 0], [1, 1], [3, 0], [3, 1]]
    assert [call[1] for call in named(log, "eval act")] == [[2, 0], [2, 1]]
    assert len(named(log, "reset")) == 4


def test_in_sync_an_env_that_says_how_it_was_made_is_left_alone(tmp_path):
    env = gym.make("CartPole-v1")
    hook = Evaluations()
    train_agent_with_evaluation(small_ppo(), env, 60, None, 1, 20, tmp_path, evaluation_hooks=[hook])
    assert {call["env"].unwrapped is env.unwrapped for call in hook.calls} == {False}


SHARED = {
    "itself": lambda env: env,
    "wrapped": lambda env: gym.wrappers.TimeLimit(env, 5),
    "from a factory": lambda env: lambda: env,
    "in a vector env": lambda env: SyncVectorEnv([lambda: env]),
    "from a factory of a vector env": lambda env: lambda: SyncVectorEnv([lambda: env]),
}


@pytest.mark.parametrize("share", SHARED.values(), ids=SHARED)
def test_a_trainer_refuses_to_evaluate_in_the_middle_of_an_episode(share, log, tmp_path):
    train = Env(log)
    evaluation = Evaluation(1, every_n_steps=4, env=share(train))
    with pytest.raises(ConfigurationError, match=r"in the training env itself.*at_episode_end=True"):
        Trainer(max_steps=9, **quiet(evaluation)).fit(Told(log), train)
    assert not named(log, "step") and not train.closed


def test_nor_does_it_in_one_of_several_training_envs(log, tmp_path):
    envs = vector(log, (5,), (5,))
    evaluation = Evaluation(1, every_n_steps=4, at_episode_end=True, env=envs.envs[1])
    with pytest.raises(ConfigurationError, match="in the training env itself"):
        Trainer(max_steps=9, **quiet(evaluation)).fit(Told(log), envs)
    assert not named(log, "step")


@pytest.mark.parametrize("share", SHARED.values(), ids=SHARED)
def test_in_sync_the_training_env_may_be_lent_to_evaluation_between_its_episodes(share, log, tmp_path):
    """As above; the env is left open, for it is its owner's."""
    train = Env(log, (2,))
    train_agent_with_evaluation(Told(log), train, 6, None, 1, 4, tmp_path, eval_env=share(train))
    assert [call[1] for call in named(log, "act")] == [[0, 0], [0, 1], [1, 0], [1, 1], [3, 0], [3, 1]]
    assert len(named(log, "eval act")) == 2
    assert len(named(log, "reset")) == 4 and not train.closed


def test_an_env_module_evaluates_in_its_evaluation_envs(tmp_path):
    hook, module = Evaluations(), GymEnvModule("CartPole-v1", num_envs=3, num_eval_envs=1)
    train_agent_batch_with_evaluation(
        small_ppo(), module, 30, None, 1, 15, tmp_path, eval_env=module, evaluation_hooks=[hook]
    )
    assert hook.calls and not any(hasattr(call["env"], "num_envs") for call in hook.calls)


class ActsInOne(Without):
    """Has `act` and `observe` only."""

    def __init__(self, log):
        super().__init__(log, "batch_act")


def whole():
    return gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")


@pytest.mark.parametrize(
    ("make", "env", "evaluation", "match"),
    [
        (ActsInOne, Env, {"eval_env": lambda log: vector(log, (3,), (3,))}, "no batch_act and batch_observe"),
        (Told, Env, {"eval_env": lambda log: whole()}, "spends steps on resets"),
        (
            lambda log: small_ppo(),
            lambda log: "CartPole-v1",
            {"eval_env": lambda log: whole(), "eval_max_episode_len": 5},
            "max_episode_len=5: .*cannot reset some of its envs",
        ),
        (
            lambda log: small_ppo(),
            lambda log: "CartPole-v1",
            {"eval_env": lambda log: "Acrobot-v1"},
            r"built for observation space .*4,.*; the evaluation env .*6,",
        ),
    ],
)
def test_an_evaluation_env_that_cannot_work_is_refused_before_any_step(make, env, evaluation, match, log, tmp_path):
    evaluation = {**evaluation, "eval_env": evaluation["eval_env"](log)}
    with pytest.raises(ConfigurationError, match=match):
        train_agent_with_evaluation(
            make(log),
            env(log),
            60,
            None,
            1,
            30,
            tmp_path,
            step_hooks=[lambda *step: log.append(("hook",))],
            **evaluation,
        )
    assert not named(log, "act", "hook")


def test_an_evaluation_by_steps_ends_with_a_reset(log):
    evaluate(Told(log), Env(log, (9,)), num_steps=2)
    assert [call[4] for call in named(log, "eval observe")] == [False, True]


# ---- going on in the same directory ----------------------------------------------------------------------------------


def rows(path):
    return [line.split("\t")[:4:3] for line in (path / "scores.txt").read_text().splitlines()[1:]]


def go_on(log, tmp_path, offset, steps, scores, **kwargs):
    agent = Told(log)
    train_agent_with_evaluation(
        agent, Env([], (1,)), steps, None, 1, 1, tmp_path, step_offset=offset, eval_env=Worth(scores), **kwargs
    )
    return agent


def test_earlier_rows_are_kept_up_to_the_offset(log, tmp_path):
    go_on(log, tmp_path, 0, 4, [1, 2, 3, 4])
    go_on(log, tmp_path, 2, 4, [7, 8])
    assert rows(tmp_path) == [["1", "1.0"], ["2", "2.0"], ["3", "7.0"], ["4", "8.0"]]


def test_the_best_agent_is_not_overwritten_by_a_worse_one(log, tmp_path):
    """The first run's best is of step 4, which is after the offset; 4.0 is only matched, then beaten."""
    first = go_on(log, tmp_path, 0, 4, [1, 2, 3, 4])
    best = tmp_path / "best/num_acts"
    assert int(best.read_text()) == first.num_acts
    go_on(log, tmp_path, 2, 4, [1, 4])
    assert int(best.read_text()) == first.num_acts
    second = go_on(log, tmp_path, 4, 5, [5])
    assert int(best.read_text()) == second.num_acts != first.num_acts


def test_nor_by_one_of_a_later_continuation_whose_rows_know_nothing_of_it(log, tmp_path):
    """The best, 4.0, is of the first run's step 4; going on from step 2 cuts off its row."""
    go_on(log, tmp_path, 0, 4, [1, 2, 3, 4])
    go_on(log, tmp_path, 2, 3, [1])
    go_on(log, tmp_path, 3, 4, [3])
    assert rows(tmp_path) == [["1", "1.0"], ["2", "2.0"], ["3", "1.0"], ["4", "3.0"]]
    assert ((tmp_path / "best/num_acts").read_text(), (tmp_path / "best/score.txt").read_text()) == ("8", "4.0\n")


def test_the_best_score_is_also_that_of_an_agent_that_was_not_saved(log, tmp_path):
    go_on(log, tmp_path, 0, 1, [1])
    go_on(log, tmp_path, 1, 2, [20], save_best_so_far_agent=False)
    go_on(log, tmp_path, 2, 3, [15])
    assert (tmp_path / "best/score.txt").read_text() == "1.0\n"
    go_on(log, tmp_path, 3, 4, [21])
    assert (tmp_path / "best/score.txt").read_text() == "21.0\n"


@pytest.mark.parametrize("saves", [True, False])
def test_success_counts_the_best_of_the_earlier_run_too(saves, log, tmp_path):
    """Its score, 9, is of step 2; going on from step 1 cuts off that row, but not the agent `best`."""
    go_on(log, tmp_path, 0, 2, [5, 9])
    go_on(log, tmp_path, 1, 6, [1, 1, 1, 1, 1], successful_score=8, save_best_so_far_agent=saves)
    assert [row[0] for row in rows(tmp_path)] == ["1", "2"]


def test_a_best_agent_whose_score_nobody_knows(log, tmp_path):
    (tmp_path / "best").mkdir()
    with pytest.raises(ConfigurationError, match=r"score.txt in it does not say its score.*Write its mean return"):
        go_on(log, tmp_path, 5, 6, [-1])
    assert not log
    go_on(log, tmp_path, 5, 6, [-1], save_best_so_far_agent=False)
    assert not any((tmp_path / "best").iterdir())


def test_our_own_agent_goes_on_with_its_networks_and_optimizer(tmp_path):
    agent = small_ppo(lr=0.1)
    train_agent(agent, "CartPole-v1", 16, tmp_path / "a")
    before = torch.cat([parameter.detach().flatten() for parameter in agent.parameters()]).clone()
    seen = []

    def look(env, agent, step):
        seen.append((step, torch.cat([parameter.detach().flatten() for parameter in agent.parameters()]).clone()))

    train_agent(agent, "CartPole-v1", 24, tmp_path / "b", step_offset=16, step_hooks=[look])
    assert seen[0][0] == 17 and torch.equal(seen[0][1], before)
    (optimizer,) = RLModule(agent).named_optimizers().values()
    assert {int(state["step"]) for state in optimizer.state.values()} == {3 * 4}  # 3 rollouts of 8


# ---- atomic ----------------------------------------------------------------------------------------------------------


class Torn(Told):
    """Writes half of itself, and then the disk is full."""

    full = False

    def save(self, dirname):
        super().save(dirname)
        if self.full:
            Path(dirname, "num_acts").write_text("to")
            raise OSError(28, "No space left on device")


def test_a_best_agent_that_cannot_be_written_leaves_the_one_before(log, tmp_path):
    agent = Torn(log)

    def fill_the_disk(env, given, step):
        agent.full = step == 2

    with pytest.raises(OSError, match="No space left"):
        train_agent_with_evaluation(
            agent, Env([], (1,)), 3, None, 1, 1, tmp_path, eval_env=Worth([1, 2, 3]), step_hooks=[fill_the_disk]
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["best", "scores.txt"]
    assert (tmp_path / "best/num_acts").read_text() == "2"


@pytest.mark.parametrize(("at", "best"), [(1, "2"), (2, "4")])
def test_ctrl_c_while_the_best_agent_is_replaced_leaves_one(at, best, log, tmp_path, monkeypatch):
    """After the first renaming the new agent is not there yet; after the second it is."""
    real, renamed = os.replace, []

    def replace(source, target):
        real(source, target)
        if Path(target).name in ("best", ".replaced-best"):
            renamed.append(target)
            if len(renamed) == 1 + at:  # the first best agent takes one
                raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        go_on(log, tmp_path, 0, 3, [1, 2, 3])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["2_except", "best", "scores.txt"]
    assert (tmp_path / "best/num_acts").read_text() == best


@pytest.mark.parametrize("has_name", [False, True])
def test_a_best_agent_whose_process_was_killed_meanwhile_is_found(has_name, log, tmp_path):
    go_on(log, tmp_path, 0, 2, [1, 2])
    (tmp_path / "best").rename(tmp_path / ".replaced-best")
    if has_name:
        shutil.copytree(tmp_path / ".replaced-best", tmp_path / "best")
    go_on(log, tmp_path, 2, 3, [0])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["2_finish", "3_finish", "best", "scores.txt"]
    assert (tmp_path / "best/num_acts").read_text() == "4"


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [train_agent, train_agent_batch])
def test_an_outdir_that_cannot_be_written(train, log, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"outdir='.*file/out' cannot be written to"):
        train(Told(log), Env(log), 9, tmp_path / "file/out")
    assert not log


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_outdir_without_permission(log, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ConfigurationError, match="cannot be written to"):
        train_agent(Told(log), Env(log), 9, tmp_path)
    assert not log


def test_the_scores_of_another_run(log, tmp_path):
    go_on(log, tmp_path, 0, 2, [1, 2])
    before = (tmp_path / "scores.txt").read_text()
    with pytest.raises(ConfigurationError, match=r"holds the scores.txt and best of another run.*step_offset"):
        go_on(log, tmp_path, 0, 2, [1, 2])
    assert (tmp_path / "scores.txt").read_text() == before
    (tmp_path / "scores.txt").unlink()
    with pytest.raises(ConfigurationError, match=r"holds the best of another run.*prepare_output_dir\(args, exp_id="):
        go_on(log, tmp_path, 0, 2, [1, 2])


@pytest.mark.parametrize(
    "content", ["garbage\n1\n", "garbage\n", "steps\tmean\n1.0\tx\n", "steps\tmedian\n1\t2\n", "\xff"]
)
def test_a_scores_file_that_is_none(content, log, tmp_path):
    scores = tmp_path / "scores.txt"
    scores.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"scores.txt is not of a run like this.*Move it away"):
        go_on(log, tmp_path, 1, 2, [1])
    assert not log and scores.read_bytes() == content.encode("latin-1")
    evaluation = Evaluation(num_episodes=1, every_n_steps=1)
    with pytest.raises(ConfigurationError, match=r"scores.txt is not of a run like this"):
        Trainer(max_steps=2, default_root_dir=tmp_path, **quiet(evaluation)).fit(
            small_ppo(), "CartPole-v1", step_offset=1
        )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"steps": 5, "step_offset": 5}, "steps=5, step_offset=5"),
        ({"steps": 5, "step_offset": -1}, "step_offset=-1"),
        ({"steps": 5.0}, "steps=5.0.*whole"),
        ({"steps": 5, "step_offset": 1.5}, "step_offset=1.5.*whole"),
        ({"steps": 5, "checkpoint_freq": 0}, "checkpoint_freq=0.*whole number, at least 1"),
        ({"steps": 5, "checkpoint_freq": 2.5}, "checkpoint_freq=2.5"),
        ({"steps": 5, "max_episode_len": 0}, "max_episode_len=0"),
        ({"steps": 5, "agent": "PPO"}, "str is no agent"),
        ({"steps": 5, "env": 3}, "int"),
        ({"steps": 5, "env": GymEnvModule("CartPole-v1", num_envs=2)}, "num_envs=2"),
    ],
)
def test_other_arguments_that_cannot_work(arguments, match, log, tmp_path):
    with pytest.raises(ConfigurationError, match=match):
        train_agent(**{"agent": Told(log), "env": Env(log), "outdir": tmp_path, **arguments})
    assert not log


def test_scores_and_best_go_where_the_evaluator_says(log, tmp_path):
    evaluator = Evaluator(Told(log), Env(log), None, 1, 3, tmp_path / "scores", use_tensorboard=True)
    train_agent(evaluator.agent, Env(log), 3, tmp_path / "agents", evaluator=evaluator)
    assert [entry.name for entry in (tmp_path / "agents").iterdir()] == ["3_finish"]
    names = {entry.name.split(".")[0] for entry in (tmp_path / "scores").iterdir()}
    assert names == {"best", "events", "hparams", "scores"}


def test_an_evaluator_for_another_offset(log, tmp_path):
    evaluator = Evaluator(Told(log), Env(log), None, 1, 3, tmp_path, step_offset=3)
    with pytest.raises(ConfigurationError, match="step_offset=0, and the Evaluator's is 3"):
        train_agent(evaluator.agent, Env(log), 9, tmp_path, evaluator=evaluator)
    assert not log


@pytest.mark.parametrize("interval", [0, -3, 2.5, None])
@pytest.mark.parametrize("train", [train_agent_with_evaluation, train_agent_batch_with_evaluation])
def test_an_interval_that_is_none(train, interval, log, tmp_path):
    with pytest.raises(ConfigurationError, match=f"eval_interval={interval}: "):
        train(Told(log), Env(log), 9, None, 1, interval, tmp_path, eval_env=Env(log))
    assert not log


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"log_interval": 0}, "log_interval=0: .*at least 1"),
        ({"log_interval": 2.5}, "log_interval=2.5: .*whole"),
        ({"return_window_size": 0}, "return_window_size=0"),
        ({"return_window_size": -1}, "return_window_size=-1"),
    ],
)
def test_numbers_for_a_log_that_cannot_be_written(arguments, match, log, tmp_path):
    with pytest.raises(ConfigurationError, match=match):
        train_agent_batch(Told(log), Env(log), 9, tmp_path, **arguments)
    assert not log


def test_numpys_whole_numbers_count_as_such(log, tmp_path):
    _, history = train_agent_with_evaluation(
        Told(log), Env(log), np.int64(9), None, np.int64(1), np.int64(3), tmp_path, eval_env=Env(log)
    )
    assert len(history) == 3


@pytest.mark.parametrize(
    ("name", "match"), [("eval_mode", r"no eval_mode\(\)"), ("save", r"no save\(dirname\)"), ("observe", "no agent")]
)
def test_a_foreign_agent_that_lacks_something(name, match, log, tmp_path):
    agent = Without(log, name)
    if name == "observe":
        agent.__dict__["batch_observe"] = None
    with pytest.raises(ConfigurationError, match=match):
        train_agent_with_evaluation(agent, Env(log), 9, None, 1, 3, tmp_path, eval_env=Env(log))
    assert not log


@pytest.mark.parametrize("train", [train_agent, train_agent_batch])
def test_an_agent_that_cannot_be_saved_is_not_trained_in_vain(train, log, tmp_path):
    with pytest.raises(ConfigurationError, match=r"Without has no save\(dirname\), and .*enable_checkpointing=False"):
        train(Without(log, "save"), Env(log), 9, tmp_path)
    assert not log
    Trainer(max_steps=9, **quiet()).fit(Without(log, "save"), Env(log))  # the cure


def test_an_evaluator_for_another_agent(log, tmp_path):
    evaluator = Evaluator(Told(log), Env(log), None, 1, 3, tmp_path)
    with pytest.raises(ConfigurationError, match="made for another agent, a Told"):
        train_agent(Told(log), Env(log), 9, tmp_path, evaluator=evaluator)
    assert not log


def test_a_foreign_agent_needs_no_statistics(log, tmp_path):
    _, history = train_agent_with_evaluation(
        Without(log, "get_statistics"), Env(log), 3, None, 1, 3, tmp_path, eval_env=Env(log)
    )
    assert history == [{"eval_score": 3.0}]
