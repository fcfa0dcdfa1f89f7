"""Learning steps that make no denormal numbers: faster, with the same weights."""

import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import SAC, Trainer
from rl_lightning.denormals import without_denormals
from rl_lightning.resume_check import first_difference
from tests.trainer.helpers import quiet


def denormal():
    return torch.full((1,), 1e-38).mul(0.1).item()


def test_only_inside_they_are_zero():
    assert without_denormals(denormal)() == 0.0
    assert denormal() == pytest.approx(1e-39, rel=1e-3)
    with pytest.raises(ZeroDivisionError):
        without_denormals(lambda: 1 / 0)()
    assert denormal() > 0.0


def test_who_wants_none_anywhere_has_none_afterwards():
    torch.set_flush_denormal(True)
    try:
        assert without_denormals(denormal)() == 0.0
        assert denormal() == 0.0
    finally:
        torch.set_flush_denormal(False)


def test_the_weights_are_the_same_bit_for_bit(monkeypatch):
    """Once with, once without; after 1,000 learning steps the averages of what is off have become denormal."""
    weights, num_denormal = [], []
    for wrapper in (without_denormals, lambda learn: learn):
        monkeypatch.setattr("rl_lightning._lightning.fit_loop.without_denormals", wrapper)
        pl.seed_everything(0, verbose=False)
        trainer = Trainer(max_steps=1_200, **quiet())
        agent = SAC(hidden_sizes=(64, 64), lr=1e-3, buffer_size=2_000, batch_size=16, learning_starts=100)
        trainer.fit(agent, "Pendulum-v1")
        states = [state for optimizer in trainer.optimizers for state in optimizer.state_dict()["state"].values()]
        sizes = torch.cat([state["exp_avg"].abs().flatten() for state in states])
        num_denormal.append(int(((sizes > 0) & (sizes < torch.finfo(torch.float32).tiny)).sum()))
        weights.append(trainer.lightning_module.state_dict())
    assert first_difference(*weights) is None
    assert num_denormal[0] == 0 < num_denormal[1]
