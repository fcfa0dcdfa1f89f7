"""Means of what learning steps report."""

import pytest
import torch

from rl_lightning.metrics import Means


def test_each_metric_over_the_steps_that_reported_it():
    means = Means()
    means.add({"loss": torch.tensor(1.0), "kl": 0.5})
    means.add({"loss": torch.tensor([3.0], requires_grad=True)})
    assert means.flush() == {"loss": 2.0, "kl": 0.5}
    assert means.flush() == {}


@pytest.mark.parametrize("count", [Means.LIMIT - 1, Means.LIMIT, 5 * Means.LIMIT + 3])
def test_many_steps_are_kept_as_sums(count):
    means = Means()
    for value in range(count):
        means.add({"value": float(value)})
        assert len(means._pending) < Means.LIMIT
    assert means.flush() == {"value": pytest.approx((count - 1) / 2)}
