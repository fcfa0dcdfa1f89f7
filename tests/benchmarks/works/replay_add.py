"""Adding one transition after another to a memory for a million."""

from __future__ import annotations

import time
from functools import partial

from tests.benchmarks.replays import MEMORIES

UNIT = "transitions"
AMOUNT = 50_000
CAPACITY = 1_000_000


def fill(name: str, transitions: int) -> float:
    """One kind of memory, from empty."""
    add = MEMORIES[name](CAPACITY).add
    start = time.perf_counter()
    for i in range(transitions):
        add(i)
    return time.perf_counter() - start


CONTENDERS = {name: partial(fill, name) for name in MEMORIES}
