"""How long until training steps its first env? In processes of their own, in turn; medians.

    python -m tests.benchmarks.startup --repeats 5

What importing rl_lightning costs beside pytorch_lightning, which it needs anyway; and from the call of `fit`, with the
default logger, checkpoints and progress bar, `Evaluation()` and `BestAgent()`, until the training env is first stepped.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import gymnasium as gym

from tests.benchmarks.fresh import in_fresh_process

IMPORTS = {
    "import pytorch_lightning": "import pytorch_lightning",
    "import rl_lightning, its Trainer": "import rl_lightning; rl_lightning.Trainer",
}
AGENTS = {"PPO": 8, "DQN": 1}
"""The agents, and in how many envs each."""


def seconds_to_import(code: str) -> float:
    timed = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


class NotesFirstStep(gym.Wrapper):
    """When any env was first stepped."""

    first: float | None = None

    def step(self, action: Any) -> Any:
        if NotesFirstStep.first is None:
            NotesFirstStep.first = time.perf_counter()
        return super().step(action)


def seconds_to_first_step(agent: str) -> float:
    """In this process, which has not trained before."""
    import rl_lightning
    from rl_lightning.callbacks import BestAgent, Evaluation
    from rl_lightning.envs import GymEnvModule
    from tests.benchmarks.__main__ import silence

    silence()
    with tempfile.TemporaryDirectory() as root, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        trainer = rl_lightning.Trainer(max_steps=8, default_root_dir=root, callbacks=[Evaluation(), BestAgent()])
        envs = GymEnvModule("CartPole-v1", num_envs=AGENTS[agent], wrappers=[NotesFirstStep])
        start = time.perf_counter()
        trainer.fit(getattr(rl_lightning, agent)(), envs)
    assert NotesFirstStep.first is not None
    return NotesFirstStep.first - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):
        for name, code in IMPORTS.items():
            seconds.setdefault(name, []).append(seconds_to_import(code))
        for agent in AGENTS:
            name = f"fit to first env step, {agent}"
            seconds.setdefault(name, []).append(in_fresh_process(seconds_to_first_step, agent))
    print(f"{'seconds':<34} {'median':>8} {'min':>8} {'max':>8}")
    for name, values in seconds.items():
        print(f"  {name:<32} {statistics.median(values):>8.2f} {min(values):>8.2f} {max(values):>8.2f}")
    theirs, ours = (statistics.median(seconds[name]) for name in IMPORTS)
    print(f"  {'the second over the first':<32} {ours - theirs:>8.2f}")


if __name__ == "__main__":
    main()
