"""How fast is it? Ours, a tight loop by hand, and the peers, in turn in one process, on one thread.

    python -m tests.benchmarks ppo_cartpole dqn_cartpole --repeats 5 --json speed.json

Machines are noisy, and more so when shared: only ratios within one run count. A peer that is not installed is left out
(`pip install stable-baselines3 pfrl`).
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import platform
import statistics
import sys
import warnings
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path
from typing import Any

import torch

WORKS = sorted(path.stem for path in (Path(__file__).parent / "works").glob("[a-z]*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="+", choices=WORKS, metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--amount", type=int, help="of each work; default: each its own")
    parser.add_argument("--only", nargs="+", help="contenders by name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the results there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "pfrl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    results = {work: race(work, arguments) for work in arguments.works}
    if arguments.json is not None:
        machine = {"date": str(date.today()), "machine": platform.platform(), "torch": torch.__version__}
        arguments.json.write_text(json.dumps({**machine, "results": results}, indent=2) + "\n")


def race(work: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders of one work in turn; print and return speeds in units a second."""
    module = importlib.import_module(f"tests.benchmarks.works.{work}")
    amount = arguments.amount or module.AMOUNT
    speeds: dict[str, list[float]] = {name: [] for name in arguments.only or module.CONTENDERS}
    print(f"{work}: {amount:_} {module.UNIT}, {arguments.repeats} repeats", flush=True)
    for _ in range(arguments.repeats):
        for name in list(speeds):
            torch.manual_seed(0)
            try:
                with redirect_stdout(io.StringIO()):  # no progress bars
                    seconds = module.CONTENDERS[name](amount)
            except ImportError as error:
                print(f"  {name}: left out ({error})", file=sys.stderr)
                del speeds[name]
                continue
            speeds[name].append(amount / seconds)
    first = statistics.median(next(iter(speeds.values())))
    print(f"  {'':<22} {'median':>10} {'min':>10} {'max':>10}   first is")
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"  {name:<22} {median:>10,.0f} {min(values):>10,.0f} {max(values):>10,.0f}   {first / median:>5.2f} x")
    return {"unit": f"{module.UNIT} a second", "amount": amount, "speeds": speeds}


if __name__ == "__main__":
    main()
