"""The benchmarks run, shortened; nothing is said of how fast."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_runner(tmp_path):
    works = {"ppo_cartpole": 1_024, "dqn_cartpole": 200, "idle_cartpole": 500, "evaluation_cartpole": 3}
    for work, amount in works.items():
        arguments = [work, "--repeats=1", f"--amount={amount}", f"--json={tmp_path / work}"]
        command = [sys.executable, "-m", "tests.benchmarks", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stderr
        assert "ours" in done.stdout and "first is" in done.stdout
        speeds = json.loads((tmp_path / work).read_text())["results"][work]["speeds"]
        assert len(speeds) >= 2 and all(values[0] > 0 for values in speeds.values())
