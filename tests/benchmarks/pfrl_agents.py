"""PFRL's own agents on CartPole-v1, by PFRL's loop and by ours: the same scores, and at what speed.

python -m tests.benchmarks.pfrl_agents DQN --steps 20000 --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
import time
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pfrl
import torch

from rl_lightning.experiments import train_agent_with_evaluation
from tests.experiments import peer
from tests.experiments.scripted import OldEnv

AGENTS = {"DQN": peer.dqn, "PPO": peer.ppo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", choices=AGENTS)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"{'seed':>4} {'best':>7} {'last':>7} {'same scores':>12} {'same weights':>13} {'PFRL s':>7} {'ours s':>7}")
    best = []
    for seed in arguments.seeds:
        theirs, their_scores, their_time = run(arguments, seed, pfrl.experiments.train_agent_with_evaluation, OldEnv)
        ours, our_scores, our_time = run(arguments, seed, train_agent_with_evaluation, lambda env: env)
        same = our_scores == their_scores, torch.equal(peer.weights(ours), peer.weights(theirs))
        best.append(max(our_scores))
        print(
            f"{seed:>4} {best[-1]:>7.1f} {our_scores[-1]:>7.1f} {same[0]!s:>12} {same[1]!s:>13} "
            f"{their_time:>7.1f} {our_time:>7.1f}"
        )
    print(f"median of the best: {np.median(best):.1f}")


def run(arguments: argparse.Namespace, seed: int, train: Any, wrap: Any) -> tuple[Any, list[float], float]:
    """Train once; returns the agent, its scores, and how long it took."""
    agent = AGENTS[arguments.agent](seed)
    with tempfile.TemporaryDirectory() as outdir, redirect_stdout(io.StringIO()):  # no progress bar
        started = time.perf_counter()
        _, history = train(
            agent,
            wrap(peer.seeded_env(seed)),
            arguments.steps,
            eval_n_steps=None,
            eval_n_episodes=20,
            eval_interval=arguments.steps // 10,
            outdir=outdir,
            eval_env=wrap(peer.seeded_env(seed + 1_000)),
        )
        return agent, [row["eval_score"] for row in history], time.perf_counter() - started


if __name__ == "__main__":
    main()
