"""What the configs in `configs/` reach: train with several seeds, then test the best and the last agent afresh.

    python -m tests.benchmarks.learning ppo_cartpole a2c_cartpole --seeds 0 1 2 3 4

The best agent was chosen by the evaluations of training; its score here is from 100 other episodes.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch

from rl_lightning.callbacks import Evaluation
from rl_lightning.cli import RLCLI

CONFIGS = Path(__file__).parents[2] / "configs"


def run(config: str, seed: int, num_episodes: int, overrides: list[str]) -> dict[str, float]:
    """Train one config with one seed. Returns mean returns over `num_episodes` episodes, and seconds of training."""
    with tempfile.TemporaryDirectory() as root:
        arguments = ["--config", str(CONFIGS / f"{config}.yaml"), "--seed_everything", str(seed)]
        quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        cli = RLCLI([*arguments, "--trainer.default_root_dir", root, *quiet, *overrides], run=False)
        trainer = cli.trainer
        started = time.perf_counter()
        trainer.fit(cli.model, cli.datamodule)
        seconds = time.perf_counter() - started
        for callback in trainer.callbacks:
            if isinstance(callback, Evaluation):
                callback.num_episodes = num_episodes
        last = trainer.test(cli.model, cli.datamodule, verbose=False)[0]["test/mean"]
        best = trainer.test(cli.model, cli.datamodule, ckpt_path="best", verbose=False)[0]["test/mean"]
        return {"seed": seed, "best": best, "last": last, "steps": trainer.global_step, "seconds": round(seconds, 1)}


def main() -> None:
    """Run the configs named on the command line and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--override", action="append", default=[], help="such as --override=--trainer.max_steps=1000")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for config in arguments.configs:
        results = []
        for seed in arguments.seeds:
            results.append(run(config, seed, arguments.episodes, arguments.override))
            print(json.dumps({"config": config, **results[-1]}), flush=True)
        medians = {key: statistics.median(result[key] for result in results) for key in ("best", "last", "seconds")}
        print(
            f"{config}: median of {len(results)} seeds: best {medians['best']:.1f}, last {medians['last']:.1f}, "
            f"{results[0]['steps']:,} env steps in {medians['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
