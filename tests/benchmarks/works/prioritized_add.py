"""Adding to a prioritized memory, as `replay_add`. Ours ranks what is new when it is next drawn from."""

from __future__ import annotations

from functools import partial

from tests.benchmarks.replays import PRIORITIZED
from tests.benchmarks.works.replay_add import AMOUNT, UNIT, fill

__all__ = ["AMOUNT", "CONTENDERS", "UNIT"]

CONTENDERS = {name: partial(fill, make) for name, make in PRIORITIZED.items()}
