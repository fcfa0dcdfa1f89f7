"""Every example runs, and is as short as it claims."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
MAX_STEPS = {
    "ddpg_pendulum": 10_050,  # it learns from 10,000 on
    "dqn_cartpole": 2_000,
    "dqn_acrobot": 1_600,
    "optuna_study": 1_600,
    "pfrl_agent": 1_200,
    "ppo_lunarlander": 17_000,
    "ppo_pendulum": 4_500,
    "sac_pendulum": 300,
    "td3_pendulum": 10_050,
}

NEEDS = {"ppo_lunarlander": ["Box2D"], "pfrl_agent": ["pfrl"]}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "optuna_study"], ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    for needed in NEEDS.get(path.stem, ()):
        pytest.importorskip(needed)
    score = load(path).main(max_steps=MAX_STEPS.get(path.stem, 3_000), root=str(tmp_path))
    assert isinstance(score, float)
    assert score == score
    assert list(tmp_path.rglob("scores.txt"))


def test_the_study_prunes_some_of_its_trials_and_draws_them_all(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    example, studies = load(EXAMPLES[0].with_name("optuna_study.py")), []
    draw = example.draw
    monkeypatch.setattr(example, "draw", lambda study, path: (studies.append(study), draw(study, path)))
    assert example.main(max_steps=MAX_STEPS["optuna_study"], root=str(tmp_path)) == studies[0].best_value
    states = [trial.state for trial in studies[0].trials]
    assert len(states) == 20
    assert {*states} == {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_may_run_twice_in_a_repository(tmp_path):
    """There, `generate_exp_id` gives both runs one name."""
    pytest.importorskip("pfrl")
    identity = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    for command in (["init"], [*identity, "commit", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    example = load(EXAMPLES[0].with_name("pfrl_agent.py"))
    for _ in range(2):
        example.main(max_steps=200, root=str(tmp_path))
    assert len(list(tmp_path.glob("pfrl-*/200_finish"))) == 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path):
    assert len(path.read_text().splitlines()) < (80 if path.stem == "new_algorithm" else 65)
