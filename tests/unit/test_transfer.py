"""Batches on their way to a device; what a GPU does of it runs only where there is one."""

import pytest
import torch

from rl_lightning.transfer import pinned, to_device


def make_batch():
    return {"obs": {"a": torch.arange(3.0), "b": torch.zeros(3, 2, dtype=torch.uint8)}, "reward": torch.ones(3)}


@pytest.fixture
def pins(monkeypatch):
    """The tensors that were pinned, which without a GPU cannot be."""
    them = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: them.append(tensor) or tensor.clone())
    return them


def test_on_the_host_nothing_is_copied_and_nothing_pinned(pins):
    batch = make_batch()
    there = to_device(batch, torch.device("cpu"))
    assert there["reward"] is batch["reward"] and there["obs"]["a"] is batch["obs"]["a"]
    assert not pins


def test_to_another_device_than_a_gpu_nothing_is_pinned(pins):
    there = to_device(make_batch(), torch.device("meta"))
    assert there["reward"].is_meta and there["obs"]["b"].is_meta
    assert not pins


def test_every_tensor_of_the_host_is_pinned(pins):
    batch = {**make_batch(), "elsewhere": torch.ones(2, device="meta"), "number": 3}
    result = pinned(batch)
    assert [id(tensor) for tensor in pins] == [id(batch["obs"]["a"]), id(batch["obs"]["b"]), id(batch["reward"])]
    assert result["elsewhere"] is batch["elsewhere"] and result["number"] == 3
    assert torch.equal(result["obs"]["a"], batch["obs"]["a"]) and result["obs"]["a"] is not batch["obs"]["a"]


def test_a_gpu_copies_while_the_host_goes_on(pins, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, **flags: asked.append((device, flags)) or tensor)
    to_device(make_batch(), torch.device("cuda", 0))
    assert asked == [(torch.device("cuda", 0), {"non_blocking": True})] * 3
    assert len(pins) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    batch = make_batch()
    assert pinned(batch)["reward"].is_pinned()
    there = to_device(batch, torch.device("cuda", 0))
    assert there["reward"].is_cuda and there["obs"]["b"].cpu().equal(batch["obs"]["b"])
