"""SAC and TD3 beside Stable-Baselines3's on MuJoCo: same hyperparameters, seeds and evaluation; do ours learn as well?

    python -m tests.benchmarks.side_by_side --seeds 0 1 2 3 4 --json side_by_side.json

Every `--every` env steps the policy of then, without noise, plays `--episodes` episodes, from the same starts each time
and in both libraries, in an env of its own. Each run has a process of its own and is written into the file when it is
done; called again, with other seeds too, it goes on with what is not there yet.

What is the same: the random start, replay, batch, Adam, learning rate, discount, tau, layers and how they are drawn,
temperature and its goal, noises, policy delay, a learning step every two env steps. Networks, batch and learning steps
are half the published ones, so that twenty runs of 100,000 env steps take about an hour of one core: this compares the
two libraries, and says nothing of published scores. In HalfCheetah-v5 every episode has 1,000 steps, whatever the
policy does: a median of five seeds says more there than in Hopper-v5, where to fall a little later doubles a return.
Ours is compiled, which changes the numbers by rounding only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from tests.benchmarks.__main__ import silence
from tests.benchmarks.fresh import in_fresh_process

LR, DISCOUNT, TAU, BATCH, EVERY, NOISE = 1e-3, 0.99, 0.005, 128, 2, 0.1
SIZES = (128, 128)
AGENTS, LIBRARIES = ("SAC", "TD3"), ("ours", "SB3")

Score = Callable[[Any], float]


def ours(agent: str, settings: dict[str, Any], score: Score) -> list[float]:
    """The scores of `rl_lightning`'s."""
    import pytorch_lightning as pl

    import rl_lightning

    class Curve(pl.Callback):
        scores: list[float] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.scores.append(score(pl_module.agent))

    pl.seed_everything(settings["seed"], verbose=False)
    learner = getattr(rl_lightning, agent)(
        lr=LR,
        discount=DISCOUNT,
        tau=TAU,
        batch_size=BATCH,
        buffer_size=settings["steps"],
        learning_starts=settings["steps"] // 20,
        update_every=EVERY,
        updates_per_step=1 / EVERY,
        hidden_sizes=SIZES,
        **({"noise_std": NOISE} if agent == "TD3" else {}),
    )
    curve = Curve()
    with tempfile.TemporaryDirectory() as root:
        rl_lightning.Trainer(
            max_steps=settings["steps"],
            steps_per_epoch=settings["every"],
            callbacks=[curve],
            compile=True,
            default_root_dir=root,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        ).fit(learner, settings["env"])
    return curve.scores


def sb3(agent: str, settings: dict[str, Any], score: Score) -> list[float]:
    """The scores of Stable-Baselines3's."""
    import stable_baselines3
    from stable_baselines3.common.noise import NormalActionNoise

    env = gym.make(settings["env"])
    shape = env.action_space.shape
    model = getattr(stable_baselines3, agent)(
        "MlpPolicy",
        env,
        learning_rate=LR,
        gamma=DISCOUNT,
        tau=TAU,
        batch_size=BATCH,
        buffer_size=settings["steps"],
        learning_starts=settings["steps"] // 20,
        train_freq=EVERY,
        gradient_steps=1,
        policy_kwargs={"net_arch": list(SIZES)},
        seed=settings["seed"],
        device="cpu",
        **({"action_noise": NormalActionNoise(np.zeros(shape), np.full(shape, NOISE))} if agent == "TD3" else {}),
    )
    scores: list[float] = []

    def evaluate_when_due(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps % settings["every"] == 0:
            scores.append(score(Deterministic(model)))
        return True

    model.learn(settings["steps"], callback=evaluate_when_due, log_interval=None)
    return scores


class Deterministic:
    """A model of Stable-Baselines3 as an agent that `evaluate` takes."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.eval_mode = nullcontext

    def act(self, obs: Any) -> Any:
        """The action without noise."""
        return self._model.predict(obs, deterministic=True)[0]

    def observe(self, obs: Any, reward: float, done: bool, reset: bool) -> None:
        """Nothing: it does not learn here."""


def run(library: str, agent: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train once, on one thread: scores at each evaluation, and seconds."""
    from rl_lightning import evaluate

    torch.set_num_threads(1)
    silence()
    starts = [10_000 + i for i in range(settings["episodes"])]

    def score(policy: Any) -> float:
        return evaluate(policy, settings["env"], episode_seeds=starts).statistics()["mean"]

    started = time.perf_counter()
    scores = (ours if library == "ours" else sb3)(agent, settings, score)
    return {"scores": scores, "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=10_000, help="env steps between two evaluations")
    parser.add_argument("--episodes", type=int, default=5, help="in each evaluation")
    parser.add_argument("--json", type=Path, default=Path("side_by_side.json"), help="where runs are kept")
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("env", "steps", "every", "episodes")}
    results: dict[str, Any] = {"settings": settings, "runs": {}}
    if arguments.json.exists():
        results = json.loads(arguments.json.read_text())
        if results["settings"] != settings:
            raise SystemExit(f"{arguments.json} is of other settings: {results['settings']}. Give another --json.")
    libraries = [library for library in LIBRARIES if library != "SB3" or find_spec("stable_baselines3") is not None]
    if "SB3" not in libraries:
        print("SB3: left out (stable-baselines3 is not installed)")
    runs = results["runs"]
    for seed in arguments.seeds:
        for agent in arguments.agents:
            for library in libraries:
                if (key := f"{agent} {library} {seed}") not in runs:
                    runs[key] = in_fresh_process(run, library, agent, {**settings, "seed": seed})
                    write(arguments.json, results)
                    print(f"{key}: last {runs[key]['scores'][-1]:.0f}, {runs[key]['seconds']:.0f} s", flush=True)
    for agent in arguments.agents:
        show(
            agent,
            settings,
            {library: [runs[f"{agent} {library} {s}"] for s in arguments.seeds] for library in libraries},
        )


def write(path: Path, results: dict[str, Any]) -> None:
    """All of it or nothing."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(part, path)


def show(agent: str, settings: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> None:
    """Print both curves, medians over the seeds, and below them each one's last scores in order."""
    print(f"{agent}, {settings['env']}, median of {len(runs['ours'])} seeds")
    print(f"{'env steps':>10}", *(f"{library:>9}" for library in runs))
    curves = [zip(*(each["scores"] for each in of_library), strict=True) for of_library in runs.values()]
    for i, scores in enumerate(zip(*curves, strict=True), start=1):
        print(f"{i * settings['every']:>10,}", *(f"{statistics.median(each):>9.1f}" for each in scores))
    for library, of_library in runs.items():
        last = " ".join(f"{score:.0f}" for score in sorted(each["scores"][-1] for each in of_library))
        seconds = statistics.median(each["seconds"] for each in of_library)
        print(f"{library:>10} last: {last}; {seconds:.0f} s a run")


if __name__ == "__main__":
    main()
