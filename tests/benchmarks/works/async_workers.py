"""What more workers give: A3C in an env that computes for 1 ms a step, and in one that waits for 20 ms."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import gymnasium as gym

UNIT = "env steps"
AMOUNT = 2_000


class Costly(gym.Wrapper):
    """An env whose step takes so many seconds longer, computing or waiting."""

    def __init__(self, env: gym.Env, *, computes_s: float = 0.0, waits_s: float = 0.0) -> None:
        super().__init__(env)
        self._computes_s, self._waits_s = computes_s, waits_s

    def step(self, action: Any) -> Any:
        time.sleep(self._waits_s)
        end = time.perf_counter() + self._computes_s
        while time.perf_counter() < end:
            pass
        return self.env.step(action)


def run(steps: int, num_workers: int, **cost: float) -> float:
    """Seconds from the first env step on."""
    from rl_lightning import A2C
    from tests.benchmarks.ours import fit_async

    return fit_async(A2C(num_steps=20), lambda: Costly(gym.make("CartPole-v1"), **cost), steps, num_workers)


CONTENDERS = {
    "ours, 1 ms, 1 worker": partial(run, num_workers=1, computes_s=0.001),
    "ours, 1 ms, 2 workers": partial(run, num_workers=2, computes_s=0.001),
    "ours, 20 ms, 1 worker": partial(run, num_workers=1, waits_s=0.02),
    "ours, 20 ms, 8 workers": partial(run, num_workers=8, waits_s=0.02),
}
