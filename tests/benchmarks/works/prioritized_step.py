"""What a learning step at every env step asks of a prioritized memory: add one, draw 256, set their priorities."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from tests.benchmarks.replays import PRIORITIZED, Replay
from tests.benchmarks.works.replay_sample import filled

UNIT = "steps"
AMOUNT = 500


def step(make: Callable[[int], Replay], steps: int) -> float:
    """With one kind of memory."""
    replay = filled(make)
    start = time.perf_counter()
    for i in range(steps):
        replay.add(i)
        replay.sample()
    return time.perf_counter() - start


CONTENDERS = {name: partial(step, make) for name, make in PRIORITIZED.items()}
