"""How fast is it? Ours, a tight loop by hand, and the peers, in turn in one process, on one thread.

    python -m tests.benchmarks ppo_cartpole dqn_cartpole=20000 --repeats 5 --json speed.json

Machines are noisy, and more so when shared: only ratios within one run count. A peer that is not installed is left out.
All of them: `pip install "rl-lightning[benchmark]"`, without the constraints of the tests, which Tianshou cannot meet.
What no speed can say has commands of its own, beside this one: `solve_cartpole`, `replay_bytes`, `growth`, `startup`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import platform
import statistics
import warnings
from contextlib import redirect_stderr, redirect_stdout
from datetime import date
from pathlib import Path
from typing import Any

import torch

WORKS = sorted(path.stem for path in (Path(__file__).parent / "works").glob("[a-z]*.py"))
TIGHT = "tight loop"
"""What contenders are called that nobody has to reach by a library."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="+", type=amount_of, metavar="WORK[=AMOUNT]", help=", ".join(WORKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="contenders by name, where a work has them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the results there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    silence()
    results = {work: race(work, amount, arguments) for work, amount in arguments.works}
    if arguments.json is not None:
        about = {"date": str(date.today()), "machine": platform.platform(), "torch": torch.__version__}
        about["threads"] = arguments.threads
        arguments.json.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


def amount_of(given: str) -> tuple[str, int | None]:
    """A work, and how much of it; None is as much as it says itself."""
    work, _, amount = given.partition("=")
    if work not in WORKS:
        raise argparse.ArgumentTypeError(f"{work}: none of {', '.join(WORKS)}")
    return work, int(amount) if amount else None


def silence() -> None:
    """No warnings, and nothing from loggers but errors; what is printed is caught where it is printed."""
    importlib.import_module("pytorch_lightning")  # its import sets the level of its own logger
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "pfrl", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def race(work: str, amount: int | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders of one work in turn; print and return speeds in units a second."""
    module = importlib.import_module(f"tests.benchmarks.works.{work}")
    amount = amount or module.AMOUNT
    wanted = [name for name in module.CONTENDERS if arguments.only is None or name in arguments.only]
    if not wanted:
        raise SystemExit(f"{work} has none of {', '.join(arguments.only)}. It has {', '.join(module.CONTENDERS)}.")
    speeds: dict[str, list[float]] = {name: [] for name in wanted}
    print(f"{work}: {amount:_} {module.UNIT}, {arguments.repeats} repeats", flush=True)
    for _ in range(arguments.repeats):
        for name in list(speeds):
            torch.manual_seed(0)
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # the progress bar writes there
                    seconds = module.CONTENDERS[name](amount)
            except ImportError as error:
                print(f"  {name}: left out ({error})", flush=True)
                del speeds[name]
                continue
            speeds[name].append(amount / seconds)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    if speeds:
        show(speeds, medians)
    return {"unit": f"{module.UNIT} a second", "amount": amount, "medians": medians, "speeds": speeds}


def show(speeds: dict[str, list[float]], medians: dict[str, float]) -> None:
    """Print a row for each contender, with how many times as fast as the fastest peer and as the tight loop it is."""
    peers = {name: median for name, median in medians.items() if name != TIGHT and not name.startswith("ours")}
    columns = {"x fastest peer": max(peers.values(), default=None), "x tight loop": medians.get(TIGHT)}
    columns = {column: speed for column, speed in columns.items() if speed is not None}
    print(f"  {'a second':<22} {'median':>10} {'min':>10} {'max':>10} {'us each':>10}", *columns)
    for name, values in speeds.items():
        numbers = f"{medians[name]:>10,.0f} {min(values):>10,.0f} {max(values):>10,.0f} {1e6 / medians[name]:>10,.1f}"
        ratios = [f"{medians[name] / speed:>{len(column)}.2f}" for column, speed in columns.items()]
        print(f"  {name:<22} {numbers}", *ratios)


if __name__ == "__main__":
    main()
