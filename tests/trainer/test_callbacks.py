"""Our own callbacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import DQN, PPO, ConfigurationError, RLModule, Trainer
from rl_lightning.callbacks import (
    BestAgent,
    Checkpoint,
    Evaluation,
    LinearInterpolation,
    RLProgressBar,
    SuccessfulScore,
)
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import quiet, small_dqn, small_ppo
from tests.trainer.test_stock_callbacks import Scores

# a resumed run goes on in the folder of its checkpoint, and Lightning warns of every folder that is not empty
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
ROOT = Path(__file__).resolve().parents[2]
CARTPOLE = GymEnvModule("CartPole-v1", num_envs=2)


def fit(*callbacks, agent=small_ppo, max_steps=80, ckpt_path=None, **arguments):
    """Four epochs of 20 env steps."""
    arguments = {"max_steps": max_steps, "steps_per_epoch": 20, **quiet(*callbacks), **arguments}
    trainer = Trainer(**arguments)
    trainer.fit(agent(), CARTPOLE, ckpt_path=ckpt_path)
    return trainer


# ---- Evaluation --------------------------------------------------------------------------------------------------


def test_scores_file(tmp_path):
    trainer = fit(Evaluation(num_episodes=3), default_root_dir=tmp_path)
    header, *rows = [line.split("\t") for line in (tmp_path / "scores.txt").read_text().splitlines()]
    assert header[:8] == ["steps", "episodes", "elapsed", "mean", "median", "stdev", "max", "min"]
    assert "value_loss" in header[8:]
    assert [int(row[0]) for row in rows] == [20, 40, 60, 80]
    assert int(rows[-1][1]) == trainer.num_episodes
    last = trainer.last_evaluation.statistics()
    assert [float(cell) for cell in rows[-1][3:8]] == [last[name] for name in header[3:8]]
    elapsed = [float(row[2]) for row in rows]
    assert elapsed == sorted(elapsed)


def test_each_score_is_on_disk_at_once(tmp_path):
    lines = []

    class Look(pl.Callback):
        def on_validation_end(self, trainer, module):
            lines.append(len((tmp_path / "scores.txt").read_text().splitlines()))

    fit(Evaluation(num_episodes=1), Look(), default_root_dir=tmp_path)
    assert lines == [2, 3, 4, 5]


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint(tmp_path):
    fit(Evaluation(num_episodes=1), Checkpoint(tmp_path, "{step}", save_top_k=-1), default_root_dir=tmp_path)
    before = (tmp_path / "scores.txt").read_text().splitlines()
    resumed = {"ckpt_path": next(tmp_path.glob("*step=40.ckpt")), "default_root_dir": tmp_path}
    fit(Evaluation(num_episodes=1), Checkpoint(tmp_path, save_top_k=-1), max_steps=60, **resumed)
    after = (tmp_path / "scores.txt").read_text().splitlines()
    assert after[:3] == before[:3]
    assert [row.split("\t")[0] for row in after] == ["steps", "20", "40", "60"]
    assert float(after[3].split("\t")[2]) >= float(after[2].split("\t")[2])


def test_a_fresh_run_moves_an_older_file_away(tmp_path):
    for _ in range(3):
        fit(Evaluation(num_episodes=1), default_root_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores-v1.txt", "scores-v2.txt", "scores.txt"]


def test_evaluation_by_steps():
    trainer = fit(Evaluation(num_episodes=None, num_steps=50))
    assert sum(trainer.last_evaluation.lengths) <= 50


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_steps": 5},
        {"num_episodes": None},
        {"num_episodes": 0},
        {"every_n_steps": 0},
        {"max_episode_len": -1},
        {"every_n_steps": 2.5},
    ],
)
def test_evaluation_arguments(arguments):
    with pytest.raises(ConfigurationError, match="exactly one|at least 1"):
        Evaluation(**arguments)


def test_a_long_history_takes_little_of_a_checkpoint(tmp_path):
    """Rows as they come: with other statistics from some evaluation on, with NaN, with what is no number."""
    evaluation, rows = Evaluation(), []
    for number in range(3_000):
        row = {"eval_score": float(number)} | ({"loss": float("nan") if number % 3 else 0.5} if number > 100 else {})
        evaluation.add_to_history({"name": "text", **row})
        rows.append(row)
    torch.save(evaluation.state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 3_000 * 2 * 8 + 5_000
    resumed = Evaluation()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert repr(resumed.history) == repr(rows)
    resumed.add_to_history(rows[-1])
    assert repr(resumed.history) == repr([*rows, rows[-1]])
    again = Evaluation()
    again.load_state_dict(resumed.state_dict())
    assert repr(again.history) == repr(resumed.history)


# ---- BestAgent ---------------------------------------------------------------------------------------------------


def saved_steps(*scores, best=None, **arguments):
    """Env steps of the evaluations after which the best agent was saved."""
    best, steps = best or BestAgent(), []

    class Watch(pl.Callback):
        def on_save_checkpoint(self, trainer, module, checkpoint):
            steps.append(trainer.global_step)

    evaluation = Evaluation(num_episodes=1)
    fit(Scores(*scores), evaluation, best, Watch(), max_steps=20 * len(scores), **arguments)
    return steps, best


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((1.0, 2.0, 3.0), [20, 40, 60]),
        ((2.0, 2.0, 1.0), [20]),
        ((float("nan"), 1.0, float("nan")), [40]),
        ((float("-inf"), float("-inf"), -1e300), [20, 60]),
        ((1.0, 1.0 + 1e-12, 1.0), [20, 40]),
    ],
)
def test_only_strictly_better_is_saved(scores, expected):
    steps, best = saved_steps(*scores)
    assert steps == expected
    saved = torch.load(best.best_model_path, weights_only=True)
    assert saved["global_step"] == expected[-1]
    assert best.best_model_score.item() == scores[expected[-1] // 20 - 1]


def test_less_can_be_better():
    with pytest.warns(UserWarning, match="a higher return is better"):
        assert saved_steps(3.0, 1.0, 2.0, best=BestAgent(mode="min"))[0] == [20, 40]
    with pytest.raises(ConfigurationError, match="'max' or 'min'"):
        BestAgent(mode="most")


def test_nothing_to_save_leaves_no_file(tmp_path):
    assert saved_steps(float("nan"), default_root_dir=tmp_path)[0] == []
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore:Training ended early")
def test_a_failed_save_leaves_the_previous_best(tmp_path, monkeypatch):
    best = BestAgent(dirpath=tmp_path)
    save = torch.save

    def full_disk(checkpoint, file):
        if checkpoint["global_step"] == 40:
            file.write(b"half of it")
            raise OSError("No space left on device")
        save(checkpoint, file)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        saved_steps(1.0, 2.0, best=best)
    assert [path.name for path in tmp_path.iterdir() if "best" in path.name] == ["best.ckpt"]
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 20
    assert best.best_model_score == 1.0


def test_resume_never_overwrites_the_best_with_a_worse_one(tmp_path):
    last = Checkpoint(tmp_path, save_last=True, save_top_k=0, every_n_epochs=1)
    fit(Scores(1.0, 9.0), Evaluation(num_episodes=1), BestAgent(dirpath=tmp_path), last, max_steps=40)
    best = BestAgent(dirpath=tmp_path)
    scores, resumed = Scores(3.0, 10.0), {"max_steps": 80, "ckpt_path": tmp_path / "last.ckpt"}
    steps = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, module):
            steps.append(torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"])

    fit(scores, Evaluation(num_episodes=1), best, Watch(), Checkpoint(tmp_path, every_n_epochs=1), **resumed)
    assert steps == [40, 40]  # before the last evaluation's save, which comes after other callbacks
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 80


def test_another_runs_best_agent_is_left_alone(tmp_path):
    for _ in range(2):
        saved_steps(1.0, best=BestAgent(dirpath=tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best-v1.ckpt", "best.ckpt"]


def test_the_best_agent_gives_its_score_again_in_a_new_process(tmp_path):
    pl.seed_everything(0, verbose=False)
    trainer = fit(Evaluation(num_episodes=20), BestAgent(dirpath=tmp_path), max_steps=400, steps_per_epoch=200)
    script = """
import json, sys, torch
from rl_lightning import RLModule
from rl_lightning.envs import EnvRecipe
from rl_lightning.evaluation import evaluate

path = sys.argv[1]
recorded = torch.load(path, weights_only=True)["callbacks"]["Evaluation"]["last"]
agent = RLModule.load_from_checkpoint(path).agent
again = evaluate(agent, EnvRecipe("CartPole-v1", num_envs=2), num_episodes=20, seed=recorded["seed"])
print(json.dumps([recorded["mean"], again.statistics()["mean"]]))
"""
    command = [sys.executable, "-c", script, tmp_path / "best.ckpt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env=environment).stdout
    recorded, again = json.loads(output.splitlines()[-1])
    assert recorded == again == trainer.checkpoint_callback.best_model_score


# ---- LinearInterpolation -----------------------------------------------------------------------------------------


def values_of(callback, read, agent, **arguments):
    """What each env step of a run leaves, by env step."""
    values = {}

    class Look(pl.Callback):
        def on_env_step(self, trainer, module, transition):
            values[trainer.global_step] = read(trainer, module)

    fit(callback, Look(), agent=agent, **arguments)
    return values


@pytest.mark.parametrize("name", ["clip_range", "entropy_weight"])
def test_interpolation_of_an_agents_value(name):
    schedule = LinearInterpolation(name, start_value=1.0, stop_value=0.5, total_steps=40)
    values = values_of(schedule, lambda _, module: getattr(module.agent, name).item(), small_ppo)
    assert [values[step] for step in (2, 20, 40, 42, 80)] == pytest.approx([0.975, 0.75, 0.5, 0.5, 0.5])


def test_interpolation_of_the_learning_rate_to_the_end_of_training():
    schedule = LinearInterpolation("learning_rate", start_value=0.8, stop_value=0.0)
    values = values_of(schedule, lambda trainer, _: trainer.optimizers[0].param_groups[0]["lr"], small_ppo)
    assert [values[step] for step in (2, 40, 80)] == pytest.approx([0.78, 0.4, 0.0])


def test_an_agents_own_schedule_and_the_users_in_its_place():
    def epsilon(trainer, module):
        return module.agent.epsilon.item()

    def agent():
        return small_dqn(epsilon=1.0, final_epsilon=0.5, epsilon_steps=50)

    own = values_of(Evaluation(num_episodes=1), epsilon, agent)
    assert [own[step] for step in (10, 50, 80)] == pytest.approx([0.9, 0.5, 0.5])
    users = LinearInterpolation("epsilon", start_value=0.2, stop_value=0.1, total_steps=20)
    assert [values_of(users, epsilon, agent)[step] for step in (10, 20, 80)] == pytest.approx([0.15, 0.1, 0.1])


def test_interpolation_goes_on_after_a_resume(tmp_path):
    def schedule():
        return LinearInterpolation("clip_range", start_value=1.0, stop_value=0.0, total_steps=100)

    fit(schedule(), Checkpoint(tmp_path, save_last=True), max_steps=40)
    values = {}

    class Look(pl.Callback):
        def on_env_step(self, trainer, module, transition):
            values[trainer.global_step] = module.agent.clip_range.item()

    fit(schedule(), Checkpoint(tmp_path, save_last=True), Look(), ckpt_path=tmp_path / "last.ckpt")
    assert min(values) == 42
    assert values[42] == pytest.approx(0.58)


def test_an_unknown_value():
    expected = r"LinearInterpolation\(target='eps'\): DQN has no such value. It has: epsilon, learning_rate\."
    with pytest.raises(ConfigurationError, match=expected):
        fit(LinearInterpolation("eps", start_value=1, stop_value=0), agent=DQN)


def test_no_end_to_interpolate_to():
    with pytest.raises(ConfigurationError, match="needs total_steps"):
        fit(LinearInterpolation("clip_range", start_value=1, stop_value=0), max_steps=-1, max_epochs=1)
    with pytest.raises(ConfigurationError, match="at least 1 env step"):
        LinearInterpolation("clip_range", start_value=1, stop_value=0, total_steps=0)


# ---- SuccessfulScore, Checkpoint ---------------------------------------------------------------------------------


def test_successful_score_stops_training():
    success = SuccessfulScore(5.0)
    trainer = fit(Scores(1.0, 4.0, 5.0, 9.0), Evaluation(num_episodes=1), success)
    assert trainer.global_step == 60
    assert success.best == 5


def test_success_is_remembered_in_the_checkpoint():
    success = SuccessfulScore(5.0)
    success.load_state_dict({"best": 7.0})
    assert fit(Scores(1.0, 1.0, 1.0, 1.0), Evaluation(num_episodes=1), success).global_step == 20


def test_checkpoint_fires_on_crossing(tmp_path):
    checkpoint = Checkpoint(tmp_path, "{step}", every_n_train_steps=30, save_top_k=-1, save_last=True)
    fit(checkpoint, agent=lambda: PPO(num_steps=4, hidden_sizes=(8,)), max_steps=100)  # learns every 8 env steps
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step=32.ckpt", "step=64.ckpt", "step=96.ckpt", "last.ckpt"}
    assert Checkpoint(monitor="eval/mean").mode == "max"


# ---- RLProgressBar -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["tqdm", "rich"])
def test_progress_bar_shows_the_run(style, capsys):
    bar = RLProgressBar(style)
    trainer = fit(Evaluation(num_episodes=2), bar, max_steps=3_000, steps_per_epoch=1_500, enable_progress_bar=True)
    text = capsys.readouterr().out
    assert "3000/3000" in text
    assert "train/return=" in text
    assert "eval/mean=" in text
    assert "step" in text
    assert "training" in text
    module = trainer.lightning_module
    trainer.validate(module, verbose=False)
    trainer.test(module, verbose=False)
    trainer.predict(module)
    text = capsys.readouterr().out
    for word in ("evaluating", "testing", "predicting", "2/2"):
        assert word in text


def test_progress_bar_is_throttled_by_time(monkeypatch):
    redraws = []
    monkeypatch.setattr(RLProgressBar, "on_tick", lambda self, trainer, module: redraws.append(trainer.global_step))
    timer = pl.callbacks.Timer()
    fit(RLProgressBar("tqdm"), timer, agent=small_dqn, max_steps=2_000, enable_progress_bar=True)
    assert 2 <= len(redraws) <= 20 + 20 * timer.time_elapsed("train")


def test_no_progress_bar(capsys):
    fit(Evaluation(num_episodes=1))
    assert "step" not in capsys.readouterr().out


def test_progress_bar_style():
    with pytest.raises(ConfigurationError, match="'auto', 'tqdm' or 'rich'"):
        RLProgressBar("bar")


def test_a_module_can_be_trained_by_agent_alone():
    trainer = Trainer(max_steps=20, **quiet())
    trainer.fit(small_ppo(), "CartPole-v1")
    assert isinstance(trainer.lightning_module, RLModule)
