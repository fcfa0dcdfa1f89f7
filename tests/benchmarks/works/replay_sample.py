"""Drawing 256 transitions uniformly from a memory for a million that holds `FILLED` (an environment variable)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache, partial

from tests.benchmarks.replays import MEMORIES, Replay

UNIT = "batches of 256"
AMOUNT = 2_000
CAPACITY, FILLED = 1_000_000, int(os.environ.get("FILLED", 100_000))


@cache
def filled(make: Callable[[int], Replay]) -> Replay:
    """The same one in every repeat: a second one would only take more memory."""
    replay = make(CAPACITY)
    for i in range(FILLED):
        replay.add(i)
    return replay


def draw(make: Callable[[int], Replay], batches: int) -> float:
    """From one kind of memory."""
    sample = filled(make).sample
    start = time.perf_counter()
    for _ in range(batches):
        sample()
    return time.perf_counter() - start


CONTENDERS = {name: partial(draw, make) for name, make in MEMORIES.items()}
