"""Means of what learning steps report, reduced only when they are logged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_lightning.types import Metrics


class Means:
    """The mean of each metric over the learning steps that reported it.

    Nothing waits for the device before `values` or `flush`, and no more than `LIMIT` reports are kept.
    """

    LIMIT = 256

    def __init__(self) -> None:
        self._pending: list[Metrics] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Metrics) -> None:
        """Count one learning step's metrics: numbers, or tensors of one element."""
        self._pending.append(metrics)
        if len(self._pending) == self.LIMIT:
            self._reduce()

    def values(self) -> dict[str, float]:
        """The means since the last `flush`; one transfer from the device for all of them."""
        self._reduce()
        if not self._sums:
            return {}
        means = torch.stack([total / self._counts[name] for name, total in self._sums.items()]).tolist()
        return dict(zip(self._sums, means, strict=True))

    def flush(self) -> dict[str, float]:
        """The means since the last call, and begin anew."""
        means = self.values()
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """What was reported since the last `flush`, as it is kept: sums of floats depend on what is summed first."""
        pending = [
            {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in metrics.items()}
            for metrics in self._pending
        ]
        return {"pending": pending, "sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._pending, self._sums, self._counts = list(state["pending"]), dict(state["sums"]), dict(state["counts"])

    def _reduce(self) -> None:
        columns: dict[str, list[Tensor]] = {}
        for metrics in self._pending:
            for name, value in metrics.items():
                columns.setdefault(name, []).append(value if isinstance(value, Tensor) else torch.tensor(float(value)))
        self._pending.clear()
        for name, values in columns.items():
            if any(value.dtype != torch.float32 or value.dim() for value in values):
                values = [value.float().reshape(()) for value in values]
            total = torch.stack(values).detach().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts.get(name, 0) + len(values)
