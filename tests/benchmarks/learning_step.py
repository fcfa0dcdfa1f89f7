"""What the Trainer adds to one learning step: a tiny MLP through the whole loop, and by hand with a fused Adam.

    python -m tests.benchmarks.learning_step

The two run in turn, in one process, on one thread; machines are noisy, so only the difference counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rl_lightning import Agent, RLModule, Trainer
from rl_lightning.strategies import Strategy
from rl_lightning.strategies.strategy import Episodes
from rl_lightning.types import Batch, Transition


def network() -> nn.Module:
    """The tiny MLP of both sides."""
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of both sides."""
    return nn.functional.mse_loss(model(batch["obs"]), batch["target"])


BATCH: Batch = {"obs": torch.randn(32, 4), "target": torch.randn(32, 2)}


class OneBatch:
    """A memory that has the same batch due at every step."""

    rng: Any = None

    def add(self, transition: Transition) -> None: ...

    def batches(self) -> Iterator[Batch]:
        yield BATCH

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Still(Strategy):
    """Gathers nothing, so that only learning is measured."""

    num_steps = 1

    def setup(self, agent: Agent, pool: Any, *, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.episodes = Episodes(1)
        zero, no = np.zeros((1, 4), np.float32), np.zeros(1, np.bool_)
        self.transition = Transition(zero, np.zeros(1, np.int64), np.zeros(1, np.float32), zero, no, no, {})

    def advance(self) -> Transition:
        return self.transition

    def teardown(self) -> None: ...


class Regression(Agent):
    """Learns the batch by heart."""

    def build(self, observation_space: Any, action_space: Any) -> None:
        self.network = network()

    def act(self, obs: Any, *, explore: bool) -> Any:
        raise NotImplementedError

    def update(self, batch: Batch, step: Any) -> dict[str, Tensor]:
        loss = loss_of(self.network, batch)
        step("adam", loss)
        return {"loss": loss.detach()}

    def configure_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"adam": torch.optim.Adam(self.parameters(), fused=True)}

    def make_memory(self, num_envs: int) -> Any:
        return OneBatch()


def by_hand(num_steps: int) -> float:
    """Seconds for `num_steps` learning steps in a plain loop."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    started = time.perf_counter()
    for _ in range(num_steps):
        loss = loss_of(model, BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def by_trainer(num_steps: int) -> float:
    """Seconds for `num_steps` learning steps through `Trainer.fit`, set-up left out."""
    trainer = Trainer(
        max_steps=num_steps,
        strategy=Still(),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    started = 0.0

    class Watch(RLModule):
        def on_train_start(self) -> None:
            nonlocal started
            started = time.perf_counter()

        def on_train_end(self) -> None:
            nonlocal started
            started = time.perf_counter() - started

    trainer.fit(Watch(Regression()), gym.make("CartPole-v1"))
    return started


def main() -> None:
    """Run both in turn and print microseconds a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    by_hand(200), by_trainer(200)
    times = [(by_hand(arguments.steps), by_trainer(arguments.steps)) for _ in range(arguments.repeats)]
    scale = 1e6 / arguments.steps
    hand, whole = ([pair[i] * scale for pair in times] for i in (0, 1))
    extra = [b - a for a, b in zip(hand, whole, strict=True)]
    for name, values in {"by hand": hand, "Trainer.fit": whole, "difference": extra}.items():
        print(f"{name:>12}: median {statistics.median(values):6.1f} us/step, {min(values):6.1f} to {max(values):6.1f}")


if __name__ == "__main__":
    main()
