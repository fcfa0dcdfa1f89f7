"""Does a step cost more, or memory grow, as training goes on or as the replay memory fills? Only ours.

    python -m tests.benchmarks.growth --steps 10000 100000 1000000 10000000 --stored 1000 100000 1000000

The idle agent's rows are of one run, each from half as many env steps on; DQN's are of a run each, in which a full
replay memory of so many transitions is drawn from in every step. All with the TensorBoard logger and checkpoints on.
Each run has a process of its own, and memory is what that holds; `grown` is by how much it grew while the speed was
measured.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch

from tests.benchmarks.__main__ import silence
from tests.benchmarks.fresh import in_fresh_process, resident_bytes

WARM_UP, MEASURED, BATCH = 500, 2_000, 32


class Row(NamedTuple):
    """Env steps a second between two marks, and bytes that the process holds at the second."""

    speed: float
    resident: int
    grown: int


class Marks(pl.Callback):
    """Notes the time and the memory at some env steps."""

    def __init__(self, steps: Iterable[int]) -> None:
        self.steps = set(steps)
        self.notes: dict[int, tuple[float, int]] = {}

    def on_env_step_end(self, trainer: Any, pl_module: Any, transition: Any) -> None:
        step = trainer.global_step
        if step in self.steps:
            self.notes[step] = time.perf_counter(), resident_bytes()

    def row(self, start: int, end: int) -> Row:
        (start_time, start_bytes), (end_time, end_bytes) = self.notes[start], self.notes[end]
        return Row((end - start) / (end_time - start_time), end_bytes, end_bytes - start_bytes)


def idle(steps: list[int]) -> list[Row]:
    """A row for each number of env steps, all of them even."""
    from tests.benchmarks.idle import Idle

    marks = Marks([*steps, *(step // 2 for step in steps)])
    _fit(Idle(), marks, max(steps))
    return [marks.row(step // 2, step) for step in steps]


def dqn(stored: int) -> Row:
    """With so many transitions stored before the first step."""
    from rl_lightning import DQN, RLModule
    from rl_lightning.memory import ReplayMemory
    from rl_lightning.types import Transition

    agent = DQN(hidden_sizes=(64, 64), batch_size=BATCH)
    # it learns from the first step after these on
    memory = ReplayMemory(stored, num_envs=1, batch_size=BATCH, learning_starts=stored)
    obs, reward, no = np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, bool)
    for _ in range(stored):
        memory.add(Transition(obs, np.zeros(1, np.int64), reward, obs, no, no, {}))
    marks = Marks([WARM_UP, WARM_UP + MEASURED])
    _fit(RLModule(agent, memory), marks, WARM_UP + MEASURED)
    return marks.row(WARM_UP, WARM_UP + MEASURED)


def _fit(agent: Any, marks: Marks, steps: int) -> None:
    from rl_lightning import Trainer

    torch.set_num_threads(1)
    silence()
    with tempfile.TemporaryDirectory() as root, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        Trainer(max_steps=steps, default_root_dir=root, callbacks=[marks]).fit(agent, "CartPole-v1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--stored", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    arguments = parser.parse_args()
    print(f"{'':<32} {'env steps/s':>12} {'us each':>8} {'MB held':>8} {'MB grown':>9}")
    for step, row in zip(arguments.steps, in_fresh_process(idle, arguments.steps), strict=True):
        show(f"idle, {step:,} env steps", row)
    for stored in arguments.stored:
        show(f"DQN, {stored:,} transitions", in_fresh_process(dqn, stored))


def show(name: str, row: Row) -> None:
    held, grown = row.resident / 2**20, row.grown / 2**20
    print(f"{name:<32} {row.speed:>12,.0f} {1e6 / row.speed:>8.1f} {held:>8.0f} {grown:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
