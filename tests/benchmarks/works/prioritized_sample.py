"""Drawing 256 transitions by priority, and setting their priorities; as `replay_sample` else."""

from __future__ import annotations

from functools import partial

from tests.benchmarks.replays import PRIORITIZED
from tests.benchmarks.works.replay_sample import UNIT, draw

__all__ = ["AMOUNT", "CONTENDERS", "UNIT"]

AMOUNT = 500
CONTENDERS = {name: partial(draw, make) for name, make in PRIORITIZED.items()}
