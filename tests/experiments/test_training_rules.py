"""SEMANTICS.md section 2: the rules of the training loop, one by one."""

from __future__ import annotations

import inspect
import logging
import signal
import sys

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lightning import DQN, RLModule, Trainer, experiments
from rl_lightning.envs import GymEnvModule
from rl_lightning.experiments import (
    EvaluationHook,
    LinearInterpolationHook,
    train_agent,
    train_agent_batch,
    train_agent_batch_with_evaluation,
    train_agent_with_evaluation,
)
from tests.experiments.scripted import Env, Evaluations, Steps, Told, named
from tests.trainer.helpers import quiet, small_dqn, small_ppo

MODES = list(AutoresetMode)


def vector(log, *lengths, mode=AutoresetMode.NEXT_STEP, **kwargs):
    """Env i writes down its calls as `{i} reset` and so on."""
    makers = [lambda i=i, own=own: Env(log, own, name=f"{i} ", **kwargs) for i, own in enumerate(lengths)]
    return SyncVectorEnv(makers, autoreset_mode=mode)


@pytest.fixture
def log():
    return []


# ---- section 1: the contract -----------------------------------------------------------------------------------------

WITH_EVALUATION = "agent env steps eval_n_steps eval_n_episodes eval_interval outdir checkpoint_freq=None "
SIGNATURES = {
    "train_agent": "agent env steps outdir checkpoint_freq=None max_episode_len=None step_offset=0 evaluator=None "
    "successful_score=None step_hooks=() eval_during_episode=False logger=None",
    "train_agent_with_evaluation": WITH_EVALUATION + "train_max_episode_len=None step_offset=0 "
    "eval_max_episode_len=None eval_env=None successful_score=None step_hooks=() evaluation_hooks=() "
    "save_best_so_far_agent=True use_tensorboard=False eval_during_episode=False logger=None",
    "train_agent_batch": "agent env steps outdir checkpoint_freq=None log_interval=None max_episode_len=None "
    "step_offset=0 evaluator=None successful_score=None step_hooks=() return_window_size=100 logger=None",
    "train_agent_batch_with_evaluation": WITH_EVALUATION + "max_episode_len=None step_offset=0 "
    "eval_max_episode_len=None return_window_size=100 eval_env=None log_interval=None successful_score=None "
    "step_hooks=() evaluation_hooks=() save_best_so_far_agent=True use_tensorboard=False logger=None",
    "LinearInterpolationHook": "total_steps start_value stop_value setter",
    "OptunaPrunerHook": "trial",
    "generate_exp_id": f"prefix=None argv={sys.argv!r}",
    "prepare_output_dir": "args basedir=None exp_id=None argv=None time_format='%Y%m%dT%H%M%S.%f' make_backup=True",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_are_the_contract(name):
    parameters = inspect.signature(getattr(experiments, name)).parameters.values()
    given = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert " ".join(given) == SIGNATURES[name]


def test_hooks_are_abstract_and_support_nothing_unless_they_say_so():
    for hook in (experiments.StepHook, EvaluationHook):
        with pytest.raises(TypeError, match="abstract.*__call__"):
            hook()
    flags = ["support_train_agent", "support_train_agent_batch", "support_train_agent_async"]
    assert [getattr(EvaluationHook, flag) for flag in flags] == [False] * 3
    pruner = experiments.OptunaPrunerHook
    assert [getattr(pruner, flag) for flag in flags] == [True, True, False]
    assert issubclass(LinearInterpolationHook, experiments.StepHook) and issubclass(pruner, EvaluationHook)
    arguments = list(inspect.signature(EvaluationHook.__call__).parameters)
    assert arguments == ["self", "env", "agent", "evaluator", "step", "eval_stats", "agent_stats", "env_stats"]
    assert list(inspect.signature(experiments.StepHook.__call__).parameters) == ["self", "env", "agent", "step"]


# ---- 1 to 3: steps, ends of episodes, agent.t ------------------------------------------------------------------------


def test_1_hooks_are_numbered_from_one(log, tmp_path):
    train_agent(Told(log), Env(log), 5, tmp_path, step_hooks=[Steps(log)])
    assert named(log, "hook") == [("hook", t) for t in (1, 2, 3, 4, 5)]


def test_1_the_first_hook_comes_one_after_the_offset(log, tmp_path):
    train_agent(Told(log), Env(log), 14, tmp_path, step_offset=10, step_hooks=[Steps(log)])
    assert named(log, "hook") == [("hook", t) for t in (11, 12, 13, 14)]
    assert len(named(log, "step")) == 4


@pytest.mark.parametrize(
    ("ends", "max_len", "flags"),
    [
        ("terminated", None, [(False, False), (False, False), (True, False)]),
        ("truncated", None, [(False, False), (False, False), (False, True)]),
        ("needs_reset", None, [(False, False), (False, False), (False, True)]),
        ("terminated", 2, [(False, False), (False, True), (False, False)]),
        ("terminated", 3, [(False, False), (False, False), (True, True)]),
    ],
)
def test_2_done_is_terminated_and_reset_is_cut_off(ends, max_len, flags, log, tmp_path):
    train_agent(Told(log), Env(log, (3,), ends=ends), 3, tmp_path, max_episode_len=max_len)
    assert [call[3:] for call in named(log, "observe")] == flags


@pytest.mark.parametrize("mode", MODES)
def test_2_in_batch(mode, log, tmp_path):
    """Lengths 3 and 1 under a limit of 2."""
    train_agent_batch(Told(log), vector(log, (3,), (1,), mode=mode), 6, tmp_path, max_episode_len=2)
    assert [call[3:] for call in named(log, "observe")] == [
        ([False, True], [False, False]),
        ([False, True], [True, False]),
        ([False, True], [False, False]),
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ends", ["truncated", "needs_reset"])
def test_2_in_batch_cut_off_is_not_done_in_a_users_vector_env(ends, mode, log, tmp_path):
    """Lengths 2 and 3; the last reset of training is not made, but for those that SAME_STEP makes itself."""
    train_agent_batch(Told(log), vector(log, (2,), (3,), ends=ends, mode=mode), 8, tmp_path)
    resets = [[False, False], [True, False], [False, True], [True, False]]
    assert [call[3:] for call in named(log, "observe")] == [([False, False], reset) for reset in resets]
    by_itself = mode == AutoresetMode.SAME_STEP and ends == "truncated"
    assert (len(named(log, "0 reset")), len(named(log, "1 reset"))) == (2 + by_itself, 2)


def test_3_the_agents_own_count_starts_at_the_offset(log, tmp_path):
    agent = Told(log)
    train_agent(agent, Env(log), 12, tmp_path, step_offset=10)
    assert agent.t == 10
    train_agent_batch(agent, vector(log, (3,), (3,)), 8, tmp_path)
    assert agent.t == 0


# ---- 4: the order of calls -------------------------------------------------------------------------------------------


class Evaluator:
    """One from elsewhere; due at every second step."""

    max_score = 0.0

    def __init__(self, log):
        self.log = log

    def evaluate_if_necessary(self, t, episodes):
        self.log.append(("evaluate", t, episodes))
        return float(t) if t % 2 == 0 else None


class LogHandler(logging.Handler):
    def __init__(self, log):
        super().__init__()
        self.log = log

    def emit(self, record):
        if " step:" in record.getMessage():
            self.log.append(("log",))


@pytest.fixture
def logger(log):
    logger = logging.Logger("test")
    logger.addHandler(LogHandler(log))
    return logger


def test_4_order_of_a_sync_step(log, logger, tmp_path):
    """Episodes of two steps; a checkpoint every two; nothing is reset after the last."""
    train_agent(
        Told(log),
        Env(log, (2,)),
        4,
        tmp_path,
        checkpoint_freq=2,
        evaluator=Evaluator(log),
        step_hooks=[Steps(log)],
        logger=logger,
    )
    assert [call[0] for call in log] == [
        *("reset", "act", "step", "observe", "hook"),
        *("act", "step", "observe", "hook", "log", "evaluate", "reset", "save"),
        *("act", "step", "observe", "hook"),
        *("act", "step", "observe", "hook", "log", "evaluate", "save"),
    ]
    assert named(log, "save") == [("save", "2_checkpoint"), ("save", "4_finish")]


def test_4_order_of_a_batch_step(log, logger, tmp_path):
    """Env 1 ends at the second vector step; only it is reset, and not after the last."""
    train_agent_batch(
        Told(log),
        vector(log, (5,), (2,)),
        6,
        tmp_path,
        checkpoint_freq=3,
        log_interval=4,
        evaluator=Evaluator(log),
        step_hooks=[Steps(log)],
        logger=logger,
    )
    step = ["act", "0 step", "1 step", "observe", "hook"]
    assert [call[0] for call in log] == [
        *("0 reset", "1 reset", *step, "hook", "evaluate"),
        *(*step, "save", "hook", "log", "evaluate", "1 reset"),
        *(*step, "save", "hook", "evaluate", "save"),
    ]
    assert named(log, "hook") == [("hook", t) for t in range(1, 7)]
    assert [name for _, name in named(log, "save")] == ["4_checkpoint", "6_checkpoint", "6_finish"]


@pytest.mark.parametrize(
    ("agent", "steps"),
    [(small_ppo(), [8]), (small_dqn(learning_starts=3), [4, 5, 6, 7, 8, 9])],  # rollouts of 8; a batch each step
    ids=["PPO", "DQN"],
)
def test_4_hooks_of_our_own_agents_come_after_learning(agent, steps, tmp_path):
    seen = []

    def hook(env, given, step):
        assert given is agent and isinstance(env.unwrapped, gym.Env)
        seen.append(torch.cat([parameter.detach().flatten() for parameter in agent.parameters()]).clone())

    train_agent(agent, "CartPole-v1", 9, tmp_path, step_hooks=[hook])
    assert [i + 1 for i in range(1, 9) if not torch.equal(seen[i - 1], seen[i])] == steps


# ---- 5: when to evaluate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("during", "steps"), [(False, [8, 12, 15]), (True, [5, 10, 15])])
def test_5_sync_evaluates_at_the_ends_of_episodes(during, steps, log, tmp_path):
    """Due from 5, 10 and 15 on; episodes end at 4, 8 and 12, and training at 15."""
    hook = Evaluations()
    evaluation = {"eval_n_steps": None, "eval_n_episodes": 1, "eval_interval": 5, "outdir": tmp_path}
    train_agent_with_evaluation(
        Told(log),
        Env(log, (4,)),
        15,
        **evaluation,
        eval_env=Env(log, name="eval "),
        evaluation_hooks=[hook],
        eval_during_episode=during,
    )
    assert [call["step"] for call in hook.calls] == steps


def test_5_batch_evaluates_at_any_vector_step(log, tmp_path):
    """Three envs: due from 5, 10 and 15 on, seen at 6, 12 and 15."""
    hook, env = Evaluations(), vector(log, (4,), (4,), (4,))
    evaluation = {"eval_n_steps": None, "eval_n_episodes": 1, "eval_interval": 5, "outdir": tmp_path}
    train_agent_batch_with_evaluation(Told(log), env, 15, **evaluation, eval_env=Env(log), evaluation_hooks=[hook])
    assert [call["step"] for call in hook.calls] == [6, 12, 15]


def test_5_evaluation_during_episodes_needs_an_env_of_its_own(log, tmp_path):
    env = Env(log)
    for eval_env in (None, env):
        with pytest.raises(ValueError, match="own|itself"):
            train_agent_with_evaluation(
                Told(log), env, 9, None, 1, 3, tmp_path, eval_env=eval_env, eval_during_episode=True
            )
    assert not named(log, "step")


# ---- 6 and 7: directories, numbers of steps --------------------------------------------------------------------------


def directories(path):
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


def test_6_directories_of_an_agent_that_saves_itself(log, tmp_path):
    train_agent_with_evaluation(
        Told(log), Env(log), 7, None, 1, 3, tmp_path, checkpoint_freq=2, eval_env=Env(log, name="eval ")
    )
    assert directories(tmp_path) == ["2_checkpoint", "4_checkpoint", "6_checkpoint", "7_finish", "best"]
    assert (tmp_path / "7_finish/num_acts").read_text() == "13"  # 7 in training, 3 in each of two evaluations


def fails_at(at, error):
    def hook(env, agent, step):
        if step == at:
            raise error

    return hook


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize(("batch", "at"), [(False, 4), (True, 3), (True, 4)])
def test_6_what_was_learned_is_saved_when_something_fails(batch, at, error, log, tmp_path):
    """With two envs, the agent has observed step 4 when the hook of step 3 is called."""
    hook = fails_at(at, error)
    handler = signal.getsignal(signal.SIGINT)
    train, env = (train_agent_batch, vector(log, (9,), (9,))) if batch else (train_agent, Env(log))
    with pytest.raises(type(error)) as raised:
        train(Told(log), env, 9, tmp_path, step_hooks=[hook])
    assert raised.value is error
    assert signal.getsignal(signal.SIGINT) is handler
    assert directories(tmp_path) == ["4_except"]


def test_6_success_leaves_a_finish_too(log, tmp_path):
    agent, history = train_agent_with_evaluation(
        Told(log), Env(log), 90, None, 1, 3, tmp_path, eval_env=Env(log), successful_score=3.0
    )
    assert directories(tmp_path) == ["3_finish", "best"]
    assert len(history) == 1


@pytest.mark.parametrize("batch", [False, True])
def test_6_our_own_agents_leave_checkpoints_to_go_on_from(batch, tmp_path):
    env = GymEnvModule("CartPole-v1", num_envs=2 if batch else 1)
    train = train_agent_batch if batch else train_agent
    train(small_ppo(), env, 40, tmp_path, checkpoint_freq=20)
    assert directories(tmp_path) == ["20_checkpoint", *(["40_checkpoint"] if batch else []), "40_finish"]
    trainer = Trainer(max_steps=60, **quiet())
    trainer.fit(small_ppo(), env, ckpt_path=tmp_path / "20_checkpoint/agent.ckpt")
    assert trainer.global_step == 60


def test_6_a_large_memory_is_written_once_for_all_directories(tmp_path, monkeypatch):
    """Each directory has what it needs to go on, wherever it is moved: hard links to the same rows."""
    monkeypatch.setattr("rl_lightning._lightning.resume.FEW_BYTES", 0)

    def agent():
        return DQN(hidden_sizes=(8,), buffer_size=100, batch_size=4, learning_starts=10)

    train_agent(agent(), GymEnvModule("CartPole-v1"), 90, tmp_path, checkpoint_freq=30)
    files = {path.parent.parent.name: path for path in sorted(tmp_path.glob("*/memory/rows-0-5-*.npy"))}
    assert list(files) == ["30_checkpoint", "60_checkpoint", "90_finish"]
    assert {path.stat().st_ino for path in files.values()} == {files["30_checkpoint"].stat().st_ino}
    (tmp_path / "60_checkpoint").rename(tmp_path / "moved")
    trainer = Trainer(max_steps=70, **quiet())
    trainer.fit(agent(), "CartPole-v1", ckpt_path=tmp_path / "moved" / "agent.ckpt")
    assert len(trainer.memory) == 70


@pytest.mark.parametrize(("steps", "last"), [(6, 6), (7, 9), (8, 9)])
def test_7_batch_rounds_up(steps, last, log, tmp_path):
    train_agent_batch(Told(log), vector(log, (9,), (9,), (9,)), steps, tmp_path, checkpoint_freq=5)
    assert len(named(log, "act")) == last // 3
    assert directories(tmp_path) == ["6_checkpoint", f"{last}_finish"]


def steps_in(path):
    return torch.load(path / "agent.ckpt", weights_only=True)["global_step"]


def test_7_names_say_what_the_directories_hold(tmp_path):
    """Three envs: multiples of 10 are passed at 12 and 21, and reached at 30; step 8 is the second of three."""
    train_agent_batch(small_ppo(), GymEnvModule("CartPole-v1", num_envs=3), 30, tmp_path, checkpoint_freq=10)
    names = ["12_checkpoint", "21_checkpoint", "30_checkpoint", "30_finish"]
    assert directories(tmp_path) == names
    assert [steps_in(tmp_path / name) for name in names] == [12, 21, 30, 30]
    hook = fails_at(8, OSError("unplugged"))
    with pytest.raises(OSError, match="unplugged"):
        train_agent_batch(small_ppo(), GymEnvModule("CartPole-v1", num_envs=3), 30, tmp_path, step_hooks=[hook])
    assert steps_in(tmp_path / "9_except") == 9


def test_7_a_vector_step_that_passes_several_multiples_is_saved_once(log, tmp_path):
    train_agent_batch(Told(log), vector(log, (9,), (9,), (9,)), 6, tmp_path, checkpoint_freq=1)
    assert directories(tmp_path) == ["3_checkpoint", "6_checkpoint", "6_finish"]


def test_7_the_log_has_the_mean_of_the_last_episodes(log, tmp_path):
    """Returns 1, 2 and 3 one after the other; the window holds two."""
    lines = []
    logger = logging.Logger("test")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    train_agent_batch(
        Told(log), vector(log, (1, 2, 3)), 6, tmp_path, log_interval=3, return_window_size=2, logger=logger
    )
    lines = [line.partition(" ")[2] for line in lines if "average_R" in line]
    assert lines == ["step:3 episode:2 last_R:2.0 average_R:1.5", "step:6 episode:3 last_R:3.0 average_R:2.5"]


# ---- 8 and 10: history, hooks that do not support the mode -----------------------------------------------------------


def test_8_history(log, tmp_path):
    agent = Told(log)
    given, history = train_agent_with_evaluation(agent, Env(log), 6, None, 2, 3, tmp_path, eval_env=Env(log))
    assert given is agent
    assert history == [{"num_acts": 9, "eval_score": 3.0}, {"num_acts": 18, "eval_score": 3.0}]
    assert train_agent(agent, Env(log), 3, tmp_path) == []


def test_8_history_of_our_own_agents(tmp_path):
    agent = small_ppo()
    given, history = train_agent_batch_with_evaluation(
        agent, GymEnvModule("CartPole-v1", num_envs=2), 64, None, 2, 32, tmp_path
    )
    assert given is agent
    best = RLModule.load_from_checkpoint(tmp_path / "best/agent.ckpt").agent
    assert type(best) is type(agent)
    assert [set(row) > {"eval_score", "value_loss", "policy_loss"} for row in history] == [True, True]


class Unsupported(EvaluationHook):
    def __call__(self, **arguments):
        raise AssertionError

    def __str__(self):
        return "<hook>"


@pytest.mark.parametrize("train", [train_agent_with_evaluation, train_agent_batch_with_evaluation])
def test_10_a_hook_that_does_not_support_the_mode(train, log, tmp_path):
    outdir = tmp_path / "out"
    with pytest.raises(ValueError, match=rf"^<hook> does not support {train.__name__}\(\)\.$"):
        train(Told(log), Env(log), 6, None, None, 3, outdir, evaluation_hooks=[Unsupported()])
    assert not log and not outdir.exists()


# ---- hooks -----------------------------------------------------------------------------------------------------------


def test_linear_interpolation(log, tmp_path):
    """From 1 at step 1 to 0 at step 5."""
    values = []
    hook = LinearInterpolationHook(5, 1.0, 0.0, lambda env, agent, value: values.append(value))
    train_agent(Told(log), Env(log), 7, tmp_path, step_hooks=[hook])
    assert values == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]


def test_linear_interpolation_over_one_step(log):
    values = []
    hook = LinearInterpolationHook(1, 1.0, 0.5, lambda env, agent, value: values.append(value))
    hook(None, None, 1)
    assert values == [0.5]
    with pytest.raises(ValueError, match="total_steps=0"):
        LinearInterpolationHook(0, 1.0, 0.0, print)
