"""The benchmarks run, shortened; nothing is said of how fast."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(command: str, *arguments: object) -> str:
    """What a module of `tests.benchmarks` prints, in a process of its own."""
    line = [sys.executable, "-m", f"tests.{command}", *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


QUICK = ("ours", "tight loop", "gymnasium", "PFRL", "SB3")
"""All but what is compiled, for some seconds, and Tianshou, which is slow."""


@pytest.mark.parametrize(
    ("works", "only"),
    [
        ({"ppo_cartpole": 1_024, "idle_cartpole": 500, "idle_vector": 100, "evaluation_cartpole": 3}, QUICK),
        ({"dqn_cartpole": 300, "replay_sample": 10, "replay_add": 1_000}, QUICK),
        ({"prioritized_sample": 10, "prioritized_step": 10, "prioritized_add": 1_000}, QUICK),
        pytest.param({"a2c_cartpole": 1_600}, (), marks=[pytest.mark.slow, pytest.mark.ci]),
        pytest.param({"sac_pendulum": 270, "td3_pendulum": 270}, QUICK, marks=[pytest.mark.slow, pytest.mark.ci]),
        pytest.param({"a3c_cartpole": 1_000, "async_workers": 50}, (), marks=[pytest.mark.slow, pytest.mark.ci]),
    ],
    ids=["ppo", "dqn", "prioritized", "a2c", "pendulum", "async"],
)
def test_the_runner(works, only, tmp_path, monkeypatch):
    monkeypatch.setenv("FILLED", "1000")
    arguments = ["--repeats=1", f"--json={tmp_path / 'speed.json'}", *(["--only", *only] if only else [])]
    printed = run("benchmarks", *(f"{work}={amount}" for work, amount in works.items()), *arguments)
    assert printed.count("us each") == len(works) and "x fastest peer" in printed
    assert ("x tight loop" in printed) == ("prioritized_sample" not in works and "a3c_cartpole" not in works)
    for work, result in json.loads((tmp_path / "speed.json").read_text())["results"].items():
        assert result["amount"] == works[work]
        assert any(name.startswith("ours") for name in result["medians"]) and set(result["medians"]) == set(
            result["speeds"]
        )
        assert all(speed > 0 for speed in result["medians"].values())


@pytest.mark.slow
@pytest.mark.ci
def test_envs_in_processes():
    printed = run("benchmarks", "subprocess_envs=20", "--repeats=1")
    assert "ours, 2 processes" in printed and "gymnasium" in printed


@pytest.mark.slow
@pytest.mark.ci
def test_bytes_of_a_transition():
    """A row of the memory is what was stored, and little more."""
    printed = run("benchmarks.replay_bytes", "--transitions=100000", "--only", "ours", "PFRL")
    over_raw = {line.split()[0]: float(line.split()[-1]) for line in printed.splitlines()[2:]}
    assert 1.0 < over_raw["ours"] <= 1.05 < over_raw["PFRL"]


@pytest.mark.slow
@pytest.mark.ci
def test_growth():
    printed = run("benchmarks.growth", "--steps", 1_000, 2_000, "--stored", 1_000)
    assert "idle, 2,000 env steps" in printed and "DQN, 1,000 transitions" in printed


@pytest.mark.slow
@pytest.mark.ci
def test_checkpoints():
    printed = run("benchmarks.checkpoints", "--stored=150000", "--new=100", "--repeats=1")
    assert "ours, new rows" in printed and "a run of" in printed


@pytest.mark.slow
@pytest.mark.ci
def test_startup():
    assert "fit to first env step, DQN" in run("benchmarks.startup", "--repeats=1")


def test_time_to_solve(tmp_path):
    printed = run("benchmarks.solve_cartpole", "--seeds=0", "--budget=512", f"--json={tmp_path / 'solve.json'}")
    assert "not solved" in printed and "ours: solved by 0 of 1 seeds" in printed
    assert json.loads((tmp_path / "solve.json").read_text())["ours"][0]["steps"] == 512


@pytest.mark.slow
@pytest.mark.ci
def test_side_by_side(tmp_path):
    """Curves are of the same length, what is there is not run again, and a peer that is not installed is left out."""
    libraries = {"ours", "SB3"} if importlib.util.find_spec("stable_baselines3") else {"ours"}
    file = tmp_path / "curves.json"
    arguments = ["--env=Pendulum-v1", "--agents=TD3", "--steps=400", "--every=200", "--episodes=1", f"--json={file}"]
    printed = run("benchmarks.side_by_side", *arguments, "--seeds", 0)
    runs = json.loads(file.read_text())["runs"]
    assert set(runs) == {f"TD3 {library} 0" for library in libraries}
    assert {len(each["scores"]) for each in runs.values()} == {2}
    again = run("benchmarks.side_by_side", *arguments, "--seeds", 0)
    assert again.splitlines() == [
        line for line in printed.splitlines() if not line.startswith("TD3 ") or "median" in line
    ]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="ale-py is not installed")
def test_the_runner_on_pong(tmp_path):
    arguments = ["--repeats=1", "--only", "ours", "ours, ALE's vector env", "PFRL"]
    printed = run("benchmarks", "atari_dqn=120", "atari_ppo=64", *arguments)
    assert printed.count("  ours  ") == 2 and "  PFRL  " in printed and "  ours, ALE's vector env  " in printed
