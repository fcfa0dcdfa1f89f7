"""What is timed: one module a kind of work, with the contenders by name.

Each has `UNIT`, `AMOUNT` (how much of it by default) and `CONTENDERS`: name -> function from an amount to seconds. The
function imports what it needs, makes everything ready, and then times the work alone. Names: "ours" or "ours, so and
so", "tight loop" for what somebody would write by hand for this one task, and the peer's own for anything else.
"""
