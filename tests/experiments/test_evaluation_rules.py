"""SEMANTICS.md section 3: the rules of evaluation, one by one."""

from __future__ import annotations

import logging
import math
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lightning import ConfigurationError, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation, EvaluationHooks, OptunaPruner
from rl_lightning.evaluation import evaluate
from rl_lightning.experiments import (
    Evaluator,
    OptunaPrunerHook,
    train_agent,
    train_agent_batch_with_evaluation,
    train_agent_with_evaluation,
)
from rl_lightning.experiments.directories import BestDirectory
from tests.experiments.scripted import Env, Evaluations, Told, Worth, named
from tests.trainer.helpers import quiet, small_dqn, small_ppo


@pytest.fixture
def log():
    return []


def run(tmp_path, scores, *, agent=None, interval=1, **kwargs):
    """Evaluate after every step; the scores come one after the other. Returns hook and history."""
    hook = Evaluations()
    hooks = [hook, *kwargs.pop("evaluation_hooks", [])]
    _, history = train_agent_with_evaluation(
        agent or Told([]),
        Env([], (1,)),
        len(scores) * interval,
        None,
        1,
        interval,
        tmp_path,
        eval_env=Worth(scores),
        evaluation_hooks=hooks,
        **kwargs,
    )
    return hook, history


# ---- 1 and 2: how long, and when -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_steps", "n_episodes"), [(None, None), (3, 3)])
@pytest.mark.parametrize("train", [train_agent_with_evaluation, train_agent_batch_with_evaluation])
def test_1_exactly_one_of_steps_and_episodes(train, n_steps, n_episodes, log, tmp_path):
    with pytest.raises(ConfigurationError, match=f"n_steps={n_steps}, n_episodes={n_episodes}"):
        train(Told(log), Env(log), 9, n_steps, n_episodes, 3, tmp_path, eval_env=Env(log))
    assert not log


@pytest.mark.parametrize(
    ("offset", "steps"),
    [(0, [6, 10, 16, 20]), (4, [6, 10, 16, 20]), (5, [11, 15, 21]), (12, [16, 20])],
)
def test_2_due_where_a_multiple_is_crossed(offset, steps, log, tmp_path):
    """Interval 5, episodes of two steps from the offset on: due from the first multiple of 5 after the offset."""
    hook = Evaluations()
    train_agent_with_evaluation(
        Told(log),
        Env(log, (2,)),
        22 if offset == 5 else 21,
        None,
        1,
        5,
        tmp_path,
        step_offset=offset,
        eval_env=Env(log, name="eval "),
        evaluation_hooks=[hook],
    )
    assert [call["step"] for call in hook.calls] == steps


def test_2_nothing_at_the_start_or_at_an_end_that_is_not_due(log, tmp_path):
    hook = Evaluations()
    train_agent_with_evaluation(
        Told(log), Env(log, (2,)), 7, None, 1, 4, tmp_path, eval_env=Env(log), evaluation_hooks=[hook]
    )
    assert [call["step"] for call in hook.calls] == [4]


# ---- 3: in evaluation mode -------------------------------------------------------------------------------------------


class Counting(Env):
    """Counts its steps since `clear_statistics`."""

    steps = 0

    def step(self, action):
        self.steps += 1
        return super().step(action)

    def clear_statistics(self):
        self.log.append(("clear",))
        self.steps = 0

    def get_statistics(self):
        return [("steps", self.steps)]


def test_3_env_statistics_are_cleared_before_and_read_after(log, tmp_path):
    hook = Evaluations()
    train_agent_with_evaluation(
        Told(log), Env(log), 6, None, 2, 3, tmp_path, eval_env=Counting(log, (5,)), evaluation_hooks=[hook]
    )
    assert [call["env_stats"] for call in hook.calls] == [[("steps", 10)]] * 2
    assert len(named(log, "clear")) == 2
    assert (tmp_path / "scores.txt").read_text().splitlines()[0].split("\t")[-1] == "env_steps"


def test_3_evaluation_mode_is_left_also_after_an_error(log):
    class Fails(Env):
        def step(self, action):
            raise OSError("unplugged")

    agent = Told(log)
    with pytest.raises(OSError, match="unplugged"):
        evaluate(agent, Fails(log), num_episodes=1)
    assert not agent.evaluating
    assert named(log, "eval act") and not named(log, "act")


# ---- 4 and 5: which episodes count -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_steps", "lengths"), [(2, [2]), (5, [3]), (6, [3, 3])])
def test_4_one_env_steps_exactly_so_often(n_steps, lengths, log):
    """Episodes of 3: the unfinished last is dropped, unless it is the only one."""
    result = evaluate(Told(log), Env(log), num_steps=n_steps)
    assert (result.lengths, result.returns) == (lengths, [float(n) for n in lengths])
    assert len(named(log, "step")) == n_steps


def test_4_one_env_plays_so_many_episodes(log):
    assert evaluate(Told(log), Env(log, (2, 1)), num_episodes=3).lengths == [2, 1, 2]
    assert len(named(log, "reset")) == 3


def vector(log, *lengths):
    return SyncVectorEnv([partial(Env, log, own) for own in lengths])


@pytest.mark.parametrize(("n", "lengths"), [(1, [10]), (2, [10, 1]), (4, [10, 1, 1, 1])])
def test_5_the_earliest_started_episodes_count(n, lengths, log):
    """Env 0 plays episodes of 10, env 1 of 1: those to finish first would all be short."""
    assert evaluate(Told(log), vector(log, (10,), (1,)), num_episodes=n).lengths == lengths


@pytest.mark.parametrize(("n_steps", "lengths"), [(2, [2]), (5, [2, 3]), (6, [2, 3]), (7, [2, 3, 2]), (1, [1])])
def test_5_those_that_fit_in_the_steps_count_in_the_order_of_their_starts(n_steps, lengths, log):
    assert evaluate(Told(log), vector(log, (2,), (3,)), num_steps=n_steps).lengths == lengths


def test_5_an_env_that_needs_a_reset_ends_its_episode(log):
    envs = SyncVectorEnv([partial(Env, log, (2,), ends="needs_reset")] * 2)
    assert evaluate(Told(log), envs, num_episodes=3).lengths == [2, 2, 2]


def test_5_in_the_last_observe_every_env_is_reset(log):
    evaluate(Told(log), vector(log, (2,), (9,), (9,)), num_episodes=1)
    assert [call[4] for call in named(log, "eval observe")] == [[False] * 3, [True] * 3]


# ---- 6 and 7: statistics and their file ------------------------------------------------------------------------------


def test_6_statistics(log):
    """Lengths 1, 2 and 6, two a step: returns 2, 4, 12; sample standard deviation of 1, 2, 6 is sqrt(7)."""
    statistics = evaluate(Told(log), Env(log, (1, 2, 6), reward=2.0), num_episodes=3).statistics()
    expected = {"mean": 6.0, "median": 4.0, "stdev": 2 * math.sqrt(7), "max": 12.0, "min": 2.0}
    lengths = {"length_mean": 3.0, "length_median": 2.0, "length_stdev": math.sqrt(7), "length_max": 6, "length_min": 1}
    assert statistics == pytest.approx({"episodes": 3, **expected, **lengths})
    assert evaluate(Told(log), Env(log), num_episodes=1).statistics()["stdev"] == 0.0


def test_7_scores_file(log, tmp_path):
    pandas = pytest.importorskip("pandas")
    train_agent_with_evaluation(
        Told(log), Env(log), 7, None, 2, 3, tmp_path, eval_env=Counting(log, (1, 3)), evaluation_hooks=[]
    )
    table = pandas.read_csv(tmp_path / "scores.txt", sep="\t")
    assert list(table.columns) == [
        *("steps", "episodes", "elapsed", "mean", "median", "stdev", "max", "min"),
        *("num_acts", "env_steps"),  # the agent's, then the env's own statistics; there is a column `steps` already
    ]
    assert table[["steps", "episodes", "mean", "max", "num_acts", "env_steps"]].to_numpy().tolist() == [
        [3, 1, 2, 3, 7, 4],
        [6, 2, 2, 3, 14, 4],
    ]


def test_7_each_row_is_on_disk_when_the_hooks_are_called(tmp_path):
    lines = []

    class Look(Evaluations):
        def __call__(self, **arguments):
            lines.append(len((tmp_path / "scores.txt").read_text().splitlines()))

    run(tmp_path, [1, 2, 3], evaluation_hooks=[Look()])
    assert lines == [2, 3, 4]


@pytest.mark.parametrize("make", [small_ppo, lambda: small_dqn(learning_starts=30)])
def test_7_columns_that_come_later(make, tmp_path):
    """Our own agents have no statistics before they have learned."""
    pandas = pytest.importorskip("pandas")
    train_agent_with_evaluation(make(), "CartPole-v1", 60, 5, None, 1, tmp_path, eval_during_episode=True)
    table = pandas.read_csv(tmp_path / "scores.txt", sep="\t")
    (loss,) = (name for name in table.columns if name in ("value_loss", "loss"))
    assert list(table["steps"]) == list(range(1, 61))
    assert table[loss].isna()[:7].all() and not table[loss].isna()[40:].any()


# ---- 8: order, and the best agent ------------------------------------------------------------------------------------


class Lines(logging.Handler):
    """Puts lines about evaluations into `log`, with the rows that are written when they come."""

    def __init__(self, log, path):
        super().__init__()
        self.log, self.path = log, path

    def emit(self, record):
        text = record.getMessage()
        text = text.partition(" step:")[2] or text
        if "evaluation episode" in text or "evaluation:" in text:
            rows = len(self.path.read_text().splitlines()) - 1 if self.path.exists() else 0
            self.log.append(("line", text, rows))


def logs_to(log, tmp_path):
    logger = logging.Logger("test")
    logger.addHandler(Lines(log, tmp_path / "scores.txt"))
    return logger


def test_8_order_of_an_evaluation(log, tmp_path):
    """Row, log, hooks, which see the previous best, then the new best."""
    hook, logger = Evaluations(log), logs_to(log, tmp_path)
    evaluator = Evaluator(Told(log), Worth([1, 3]), None, 1, 1, tmp_path, evaluation_hooks=[hook], logger=logger)
    train_agent(evaluator.agent, Env([], (1,)), 2, tmp_path, evaluator=evaluator)
    calls = [(*call[:1], call[1][:12], *call[2:]) if call[0] == "line" else call for call in log]
    assert named(calls, "evaluation hook", "line", "save") == [
        *[("line", "evaluation e", 0), ("line", "1 evaluation", 1), ("evaluation hook", 1, 1.0), ("save", "best")],
        *[("line", "evaluation e", 1), ("line", "2 evaluation", 2), ("evaluation hook", 2, 3.0), ("save", "best")],
        ("save", "2_finish"),
    ]
    assert [call["max_score"] for call in hook.calls] == [-math.inf, 1.0]
    assert evaluator.max_score == 3.0
    assert [call["evaluator"] for call in hook.calls] == [evaluator] * 2


def test_8_every_evaluation_is_logged_better_or_not(log, tmp_path):
    run(tmp_path, [2, 1], agent=Told([]), logger=logs_to(log, tmp_path))
    lines = [text for _, text, _ in named(log, "line")]
    assert lines[::2] == ["evaluation episode 0 length:1 R:2.0", "evaluation episode 0 length:1 R:1.0"]
    assert [line[:41] for line in lines[1::2]] == [
        "1 evaluation:{'episodes': 1, 'mean': 2.0,",
        "2 evaluation:{'episodes': 1, 'mean': 1.0,",
    ]


def saves(log):
    return [name for _, name in named(log, "save")].count("best")


@pytest.mark.parametrize(("scores", "expected"), [([1, 2, 2, 1, 3], 3), ([-5, -5], 1), ([-5, -4], 2)])
def test_8_only_a_strictly_better_agent_is_saved(scores, expected, log, tmp_path):
    run(tmp_path, scores, agent=Told(log))
    assert saves(log) == expected


def test_8_nan_is_never_the_best(log, tmp_path):
    """No env gives it (`NonFiniteError`), so the scores come from a stand-in for the Trainer."""
    best = BestDirectory(tmp_path, logging.getLogger("test"))
    module = SimpleNamespace(given_agent=Told(log))
    saved = []
    for score in (math.nan, 1.0, math.nan, 1.0, 2.0):
        metrics = {"eval/mean": torch.tensor(score, dtype=torch.float64)}
        state = {"fast_dev_run": False, "sanity_checking": False, "state": SimpleNamespace(fn="fit")}
        best.on_validation_end(
            SimpleNamespace(callback_metrics=metrics, lightning_module=module, synchronize=int, **state), module
        )
        saved.append(saves(log))
    assert saved == [0, 1, 1, 1, 2]
    assert best.max_score == 2.0


def test_8_scores_are_compared_in_float64(log, tmp_path):
    """2 ** 24, then one more, which float32 would round down: each is the sum of two rewards."""

    class Large(Env):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, 2**23 + (self.episode if self.t == 2 else 0), *rest

    train_agent_with_evaluation(Told(log), Env([], (1,)), 2, None, 1, 1, tmp_path, eval_env=Large([], (2,)))
    assert saves(log) == 2


def test_8_no_best_agent_if_it_is_not_wanted(log, tmp_path):
    hook, _ = run(tmp_path, [1, 2], agent=Told(log), save_best_so_far_agent=False)
    assert saves(log) == 0
    assert [call["max_score"] for call in hook.calls] == [-math.inf, 1.0]


class Trial:
    """Prunes at a step."""

    def __init__(self, at):
        self.at, self.reports = at, []

    def report(self, score, step):
        self.reports.append((score, step))

    def should_prune(self):
        return self.reports[-1][1] == self.at


def test_8_a_pruned_trial_leaves_its_row(tmp_path):
    optuna = pytest.importorskip("optuna")
    trial = Trial(at=2)
    with pytest.raises(optuna.TrialPruned):
        run(tmp_path, [1, 3, 5], evaluation_hooks=[OptunaPrunerHook(trial)])
    assert trial.reports == [(1.0, 1), (3.0, 2)]
    assert len((tmp_path / "scores.txt").read_text().splitlines()) == 3
    assert (tmp_path / "2_except").is_dir()


def test_8_the_same_for_any_trainer(tmp_path):
    optuna = pytest.importorskip("optuna")
    trial = Trial(at=40)
    callbacks = quiet(Evaluation(num_episodes=1, every_n_steps=20), OptunaPruner(trial))
    with pytest.raises(optuna.TrialPruned):
        Trainer(max_steps=80, default_root_dir=tmp_path, **callbacks).fit(small_ppo(), "CartPole-v1")
    assert [step for _, step in trial.reports] == [20, 40]


# ---- 9 and 10: TensorBoard, success ----------------------------------------------------------------------------------


def scalars(path):
    events = EventAccumulator(str(path))
    events.Reload()
    return events, {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_9_tensorboard(log, tmp_path):
    env = Counting(log, (1, 3))
    train_agent_with_evaluation(Told(log), Env(log), 6, None, 2, 3, tmp_path, eval_env=env, use_tensorboard=True)
    events, values = scalars(tmp_path)
    for name, value in {"mean": 2.0, "median": 2.0, "max": 3.0, "min": 1.0, "stdev": math.sqrt(2)}.items():
        assert values[f"eval/{name}"] == [(3, pytest.approx(value)), (6, pytest.approx(value))]
    assert values["extras/meanplusstdev"] == [(step, pytest.approx(2 + math.sqrt(2))) for step in (3, 6)]
    assert values["extras/meanminusstdev"] == [(step, pytest.approx(2 - math.sqrt(2))) for step in (3, 6)]
    assert values["agent/num_acts"] == [(3, 7.0), (6, 14.0)]
    assert values["env/steps"] == [(3, 4.0), (6, 4.0)]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    for text in (b"Aggregate Charts", b"mean w/ min-max", b"mean +/- std", b"extras/meanplusstdev", b"eval/min"):
        assert text in layout


def test_10_success_is_that_of_the_best_so_far(tmp_path):
    hook, history = run(tmp_path, [1, 5, 2, 3], successful_score=4.0)
    assert [row["eval_score"] for row in history] == [1, 5]


def test_10_in_batch(log, tmp_path):
    _, history = train_agent_batch_with_evaluation(
        Told(log), vector(log, (3,), (3,)), 90, None, 1, 4, tmp_path, eval_env=Worth([1, 5, 2]), successful_score=5
    )
    assert [row["eval_score"] for row in history] == [1, 5]
    assert (tmp_path / "8_finish").is_dir()


# ---- the same through the Trainer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [small_ppo(), Told([])], ids=["ours", "foreign"])
def test_evaluation_hooks_among_a_trainers_callbacks(agent, tmp_path):
    hook = Evaluations()
    callbacks = [Evaluation(num_episodes=2, every_n_steps=8), EvaluationHooks([hook]), BestAgent(dirpath=tmp_path)]
    env = Env([], (3,)) if isinstance(agent, Told) else "CartPole-v1"
    if isinstance(agent, Told):
        callbacks[0].env = Env([])
    Trainer(max_steps=16, default_root_dir=tmp_path, **quiet(*callbacks)).fit(agent, env)
    assert [call["step"] for call in hook.calls] == [8, 16]
    assert all(call["agent"] is agent for call in hook.calls)
    assert hook.calls[1]["max_score"] == hook.calls[0]["eval_stats"]["mean"]
    assert dict(hook.calls[1]["agent_stats"]).keys() >= ({"num_acts"} if isinstance(agent, Told) else {"value_loss"})
    assert (tmp_path / "best.ckpt").exists()


def untrained(size):
    torch.manual_seed(0)
    module, env = RLModule(small_ppo(hidden_sizes=(size,))), gym.make("CartPole-v1")
    module.build(env.observation_space, env.action_space)
    return module.agent


def test_two_agents_can_be_compared_on_the_same_starts():
    first, second, again = (evaluate(untrained(n), "CartPole-v1", episode_seeds=[5, 6, 7]) for n in (8, 9, 8))
    assert again.returns == first.returns
    assert len(second.returns) == 3
    low, high = first.confidence_interval(0.9)
    assert low <= np.mean(first.returns) <= high
