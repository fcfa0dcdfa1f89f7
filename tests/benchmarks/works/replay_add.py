"""Adding one transition after another to a memory for a million."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from tests.benchmarks.replays import MEMORIES, Replay

UNIT = "transitions"
AMOUNT = 50_000
CAPACITY = 1_000_000


def fill(make: Callable[[int], Replay], transitions: int) -> float:
    """One kind of memory, from empty."""
    add = make(CAPACITY).add
    start = time.perf_counter()
    for i in range(transitions):
        add(i)
    return time.perf_counter() - start


CONTENDERS = {name: partial(fill, make) for name, make in MEMORIES.items()}
