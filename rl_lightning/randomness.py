"""The global random generators, as plain data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from rl_lightning.types import plain_state


def random_state() -> dict[str, Any]:
    """Where the generators of torch (all devices), NumPy and Python are: tensors and plain data."""
    state = {
        "torch": torch.get_rng_state(),
        "numpy": plain_state(np.random.get_state(legacy=False)),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators where `random_state` found them; those of devices that are not here are left out."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    for device, of_one in enumerate(state.get("cuda", ())[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(of_one, device)
