"""Bytes that a full replay memory holds for each transition, over those of the data itself; ours is one row each.

    python -m tests.benchmarks.replay_bytes

What a process of its own grows by, while the transitions are added.
"""

from __future__ import annotations

import argparse
import gc
import io
from contextlib import redirect_stderr

from tests.benchmarks.fresh import in_fresh_process, resident_bytes
from tests.benchmarks.replays import MEMORIES, PRIORITIZED, RAW_BYTES

KINDS = MEMORIES | {f"{name}, prioritized": make for name, make in PRIORITIZED.items()}


def growth(name: str, transitions: int) -> float:
    """Bytes a transition of one kind of memory."""
    with redirect_stderr(io.StringIO()):  # PFRL imports the old gym, which complains
        KINDS[name](1_000).add(0)  # so that its code is loaded
    gc.collect()
    before = resident_bytes()
    replay = KINDS[name](transitions)
    for i in range(transitions):
        replay.add(i)
    replay.sample()  # some leave work until then
    gc.collect()
    return (resident_bytes() - before) / transitions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=500_000)
    parser.add_argument("--only", nargs="+", default=list(KINDS), help="kinds of memory by name")
    arguments = parser.parse_args()
    print(f"{'bytes a transition':<22} {'in all':>10} {'x raw':>8}")
    print(f"  {'the data itself':<20} {RAW_BYTES:>10,} {1:>8.3f}")
    for name in arguments.only:
        try:
            size = in_fresh_process(growth, name, arguments.transitions)
        except ImportError as error:
            print(f"  {name}: left out ({error})")
        else:
            print(f"  {name:<20} {size:>10,.0f} {size / RAW_BYTES:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
