"""How long does PPO train until CartPole-v1 is solved? Ours and Stable-Baselines3's, with its zoo's hyperparameters.

    python -m tests.benchmarks.solve_cartpole --seeds 0 1 2 3 4

Solved is the first evaluation, one every 5,000 env steps, whose mean of 10 episodes is at least 475. Evaluations are
not counted in the seconds; of ours all else is: the whole `Trainer.fit`, with progress bar, TensorBoard logger and
checkpoints. Hyperparameters: 8 envs x 32 steps, 20 epochs of one batch, a learning rate that falls from 0.001 to 0 and
a clip range from 0.2 to 0 in 100,000 env steps.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from tests.benchmarks.__main__ import silence

NUM_ENVS, NUM_STEPS, NUM_EPOCHS, LR, CLIP_RANGE, DISCOUNT, TRACE_DECAY = 8, 32, 20, 1e-3, 0.2, 0.98, 0.8
SCORE, EPISODES, INTERVAL = 475.0, 10, 5_000


class Outcome(NamedTuple):
    """Seconds of training, env steps taken, and the last evaluation's mean return."""

    seconds: float
    steps: int
    score: float


class Stopwatch(pl.Callback):
    """Seconds that evaluations took, without what callbacks then do about them."""

    seconds = 0.0

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.seconds -= time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds += time.perf_counter()


def ours(seed: int, budget: int) -> Outcome:
    from rl_lightning import PPO, Trainer
    from rl_lightning.callbacks import BestAgent, Evaluation, LinearInterpolation, SuccessfulScore
    from rl_lightning.envs import GymEnvModule

    pl.seed_everything(seed, verbose=False)
    agent = PPO(
        lr=LR,
        num_steps=NUM_STEPS,
        num_epochs=NUM_EPOCHS,
        num_minibatches=1,
        discount=DISCOUNT,
        trace_decay=TRACE_DECAY,
        clip_range=CLIP_RANGE,
    )
    stopwatch = Stopwatch()
    callbacks = [
        stopwatch,
        Evaluation(EPISODES, every_n_steps=INTERVAL),
        BestAgent(),
        SuccessfulScore(SCORE),
        LinearInterpolation("learning_rate", start_value=LR, stop_value=0.0),
        LinearInterpolation("clip_range", start_value=CLIP_RANGE, stop_value=0.0),
    ]
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(max_steps=budget, default_root_dir=root, callbacks=callbacks)
        start = time.perf_counter()
        trainer.fit(agent, GymEnvModule("CartPole-v1", num_envs=NUM_ENVS))
        seconds = time.perf_counter() - start - stopwatch.seconds
    return Outcome(seconds, trainer.global_step, trainer.callback_metrics["eval/mean"].item())


def sb3(seed: int, budget: int) -> Outcome:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    class Evaluations(BaseCallback):
        score, seconds = float("-inf"), 0.0

        def _on_step(self) -> bool:
            if self.num_timesteps % INTERVAL:
                return True
            start = time.perf_counter()
            self.score = evaluate_policy(self.model, evaluation_envs, n_eval_episodes=EPISODES)[0]
            self.seconds += time.perf_counter() - start
            return self.score < SCORE

    evaluation_envs = make_vec_env("CartPole-v1", n_envs=NUM_ENVS, seed=seed + 1_000)
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=NUM_ENVS),
        learning_rate=lambda left: LR * left,
        clip_range=lambda left: CLIP_RANGE * left,
        n_steps=NUM_STEPS,
        batch_size=NUM_ENVS * NUM_STEPS,
        n_epochs=NUM_EPOCHS,
        gamma=DISCOUNT,
        gae_lambda=TRACE_DECAY,
        ent_coef=0.0,
        seed=seed,
        device="cpu",
    )
    evaluations = Evaluations()
    start = time.perf_counter()
    model.learn(budget, callback=evaluations, log_interval=None)
    seconds = time.perf_counter() - start - evaluations.seconds
    return Outcome(seconds, model.num_timesteps, evaluations.score)


CONTENDERS = {"ours": ours, "SB3": sb3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--budget", type=int, default=100_000, help="env steps after which it has failed")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", type=Path, help="also write the results there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    silence()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in arguments.only if is_there(name)}
    print(f"{'':<6} {'seed':>5} {'seconds':>8} {'env steps':>10} {'last mean':>10}")
    for seed in arguments.seeds:
        for name, them in outcomes.items():
            outcome = quietly(name, seed, arguments.budget)
            them.append(outcome)
            failed = "" if outcome.score >= SCORE else "  not solved"
            numbers = f"{outcome.seconds:>8.2f} {outcome.steps:>10,} {outcome.score:>10.1f}"
            print(f"{name:<6} {seed:>5} {numbers}{failed}", flush=True)
    for name, them in outcomes.items():
        solved = sum(outcome.score >= SCORE for outcome in them)
        seconds, steps, _ = map(statistics.median, zip(*them, strict=True))
        print(f"{name}: solved by {solved} of {len(them)} seeds; medians {seconds:.2f} s, {steps:,.0f} env steps")
    if arguments.json is not None:
        rows = {name: [outcome._asdict() for outcome in them] for name, them in outcomes.items()}
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def is_there(name: str) -> bool:
    """Whether a contender is installed; a short run of it imports whatever is imported late."""
    try:
        quietly(name, 0, 2 * NUM_ENVS * NUM_STEPS)
    except ImportError as error:
        print(f"{name}: left out ({error})")
        return False
    return True


def quietly(name: str, seed: int, budget: int) -> Outcome:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # the progress bar writes there
        return CONTENDERS[name](seed, budget)


if __name__ == "__main__":
    main()
