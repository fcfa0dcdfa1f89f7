"""How many threads torch works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

MANY_WEIGHTS = 100_000
"""An agent with fewer is trained on one thread."""


@contextmanager
def fitting_threads(module: nn.Module, number: int | None) -> Iterator[None]:
    """Let torch use as many threads as is good for training a module; afterwards as many as before.

    Args:
        module: what is trained.
        number: of threads. None: one for small networks. More gain nothing there, and where another process has one of
            the cores, some thousand operations a second wait for it: on two cores PPO on CartPole-v1 then takes ten
            times as long.
    """
    before = torch.get_num_threads()
    if number is None:
        num_weights = sum(parameter.numel() for parameter in module.parameters())
        number = 1 if 0 < num_weights < MANY_WEIGHTS else before
    if number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
