"""What a checkpoint costs whose replay memory is large: 17 + 6 floats a transition, TD3 of layers of 256 beside it.

    python -m tests.benchmarks.checkpoints --stored 1000000 --new 10000 --repeats 5

"all rows" is the first checkpoint in a directory; "new rows" is one that many env steps later, in the same directory;
"in one file" is as if the memory were a small one. Peers write their replay memory alone, and in no safe way. Then the
share of a run's time that checkpoints take: DQN, CartPole-v1, a learning step each env step, saved every `--new` env
steps, with a memory that was filled before. Files are put on the disk (fsync) in `--directory`.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from tests.benchmarks.__main__ import silence
from tests.benchmarks.fresh import in_fresh_process
from tests.benchmarks.replays import NUM_ACTIONS, NUM_OBS, Source

Costs = dict[str, list[tuple[float, int]]]
"""By what was saved: seconds and bytes, each time."""


class Still(gym.Env[Any, Any]):
    """An env of these sizes, in which nothing happens."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (NUM_OBS,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (NUM_ACTIONS,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(NUM_OBS, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(NUM_OBS, np.float32), 0.0, False, False, {}


def ours(stored: int, new: int, repeats: int, directory: Path) -> Costs:
    from rl_lightning import TD3, RLModule, Trainer
    from rl_lightning._lightning import resume
    from rl_lightning.memory import ReplayMemory
    from rl_lightning.memory.row_store import RowStore
    from rl_lightning.types import Transition

    silence()
    memory = ReplayMemory(stored, num_envs=1, batch_size=256, learning_starts=stored)
    source, numbers = Source(), count()
    fields = source.obs[:-1], source.action, source.reward, source.obs[1:], source.terminated, source.never

    def add(num: int) -> None:
        for _ in range(num):
            i = next(numbers) % source.num
            memory.add(Transition(*(field[i : i + 1] for field in fields), {}))

    add(stored)
    arguments = {"enable_checkpointing": False, "logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=1, enable_model_summary=False, **arguments)
    trainer.fit(RLModule(TD3(buffer_size=stored), memory), Still())
    costs: Costs = {"ours, all rows": [], "ours, new rows": [], "ours, in one file": []}
    for repeat in range(repeats):
        trainer.row_store, folder = RowStore(memory), directory / str(repeat)
        costs["ours, all rows"].append(cost(lambda path: trainer.save_checkpoint(path), folder / "a.ckpt"))
        add(new)
        costs["ours, new rows"].append(cost(lambda path: trainer.save_checkpoint(path), folder / "b.ckpt"))
        resume.FEW_BYTES, few = 10**12, resume.FEW_BYTES
        resume.MOST_BYTES = 10**12
        costs["ours, in one file"].append(cost(lambda path: trainer.save_checkpoint(path), folder / "c.ckpt"))
        resume.FEW_BYTES = few
    return costs


def peer(name: str, stored: int, new: int, repeats: int, directory: Path) -> Costs:
    from tests.benchmarks.replays import MEMORIES

    replay = MEMORIES[name](stored)
    for i in range(stored):
        replay.add(i)
    assert replay.save is not None
    return {f"{name}, memory alone": [cost(replay.save, directory / f"{name} {i}") for i in range(repeats)]}


def cost(save: Callable[[Path], object], path: Path) -> tuple[float, int]:
    """Seconds that it takes, and bytes of what is in the directory and was not there before."""
    path.parent.mkdir(exist_ok=True)
    before = set(files_in(path.parent))
    started = time.perf_counter()
    save(path)
    seconds = time.perf_counter() - started
    return seconds, sum(file.stat().st_size for file in files_in(path.parent) if file not in before)


def files_in(directory: Path) -> Iterator[Path]:
    return (file for file in directory.rglob("*") if file.is_file())


def share_of_a_run(stored: int, new: int, directory: Path) -> tuple[float, float, int]:
    """Seconds of a run, those that checkpoints took, and how many there were."""
    from rl_lightning import DQN, RLModule, Trainer
    from rl_lightning.callbacks import Checkpoint
    from rl_lightning.memory import ReplayMemory
    from rl_lightning.types import Transition

    silence()
    torch.set_num_threads(1)
    memory = ReplayMemory(stored, num_envs=1, batch_size=32, learning_starts=0)
    obs, reward, no = np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, bool)
    for _ in range(stored):
        memory.add(Transition(obs, np.zeros(1, np.int64), reward, obs, no, no, {}))
    memory.pace.due = 0
    seconds: list[float] = []

    class Timed(Trainer):
        def save_checkpoint(self, *arguments: Any, **keywords: Any) -> None:
            started = time.perf_counter()
            super().save_checkpoint(*arguments, **keywords)
            seconds.append(time.perf_counter() - started)

    saving = Checkpoint(directory / "run", every_n_train_steps=new)
    trainer = Timed(max_steps=4 * new, callbacks=[saving], default_root_dir=directory)
    started = time.perf_counter()
    trainer.fit(RLModule(DQN(hidden_sizes=(64, 64), batch_size=32), memory), "CartPole-v1")
    # the first one writes all that was stored before
    return time.perf_counter() - started, sum(seconds[1:]), len(seconds) - 1


def quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return function(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", type=int, default=1_000_000)
    parser.add_argument("--new", type=int, default=10_000, help="env steps between two checkpoints")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", help="of what is written; the system's for temporary files")
    arguments = parser.parse_args()
    sizes = arguments.stored, arguments.new, arguments.repeats
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        show(in_fresh_process(quietly, ours, *sizes, Path(directory)), stored=arguments.stored)
        for name in ("SB3", "PFRL"):
            try:
                show(in_fresh_process(quietly, peer, name, *sizes, Path(directory)))
            except ImportError as error:
                print(f"{name}: left out ({error})")
        whole, saving, num = in_fresh_process(quietly, share_of_a_run, arguments.stored, arguments.new, Path(directory))
    print(f"a run of {whole:.1f} s: {num} checkpoints after the first took {saving:.3f} s, {saving / whole:.2%}")


def show(costs: Costs, stored: int | None = None) -> None:
    if stored is not None:
        print(f"{f'{stored:,} transitions stored':<28} {'ms':>9} {'min':>9} {'max':>9} {'MB':>9}")
    for name, each in costs.items():
        milliseconds = [1e3 * seconds for seconds, _ in each]
        numbers = [statistics.median(milliseconds), min(milliseconds), max(milliseconds)]
        megabytes = statistics.median(num_bytes for _, num_bytes in each) / 1e6
        print(f"  {name:<26}", *(f"{number:>9.1f}" for number in numbers), f"{megabytes:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
