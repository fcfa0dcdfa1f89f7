"""Prioritized replay: the tree against plain sums, the memory against priorities kept by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_lightning.memory import ReplayMemory, sum_tree
from rl_lightning.memory.sum_tree import SumTree
from rl_lightning.types import ConfigurationError, NonFiniteError, ShapeError
from tests.unit.test_memory import histories, same, saved_and_loaded, transition

# --- the tree ---


@given(
    size=st.integers(1, 300),
    fan_out=st.integers(2, 5),
    seed=st.integers(0, 999),
    share_of_zeros=st.sampled_from([0.0, 0.5, 0.99]),
    exponent=st.sampled_from([0, 8]),
)
def test_the_tree_against_plain_sums(size, fan_out, seed, share_of_zeros, exponent):
    """Numbers of very different sizes, set one by one (some of them twice) and in ranges, in trees of many levels."""
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_tree, "FAN_OUT", fan_out)
        patch.setattr(sum_tree, "MOST_ROOTS", 6)
        tree, plain = SumTree(size), np.zeros(size)
        for _ in range(5):
            where = rng.integers(size, size=rng.integers(1, 20))
            start, stop = np.sort(rng.integers(size + 1, size=2))
            for place in (where, slice(start, stop)):
                some = 10.0 ** rng.uniform(-exponent, exponent, size=len(plain[place]))
                numbers = np.where(rng.random(len(some)) < share_of_zeros, 0.0, some)
                tree[place] = plain[place] = numbers
        assert np.array_equal(tree[0:size], plain)
        assert tree.least == min(plain[plain > 0], default=np.inf)
        if plain.any():
            drawn = tree.draw(64, rng)
            assert (plain[drawn] > 0).all()
            # The i-th comes from the i-th of 64 equal parts of the sum, to rounding.
            ends, width = np.cumsum(plain), plain.sum() / 64
            slack = 1e-9 * plain.sum()
            assert (ends[drawn] >= width * np.arange(64) - slack).all()
            assert (ends[drawn] - plain[drawn] <= width * np.arange(1, 65) + slack).all()


def test_numbers_are_drawn_in_proportion():
    tree = SumTree(1000)
    tree[np.array([3, 500, 999])] = np.array([1.0, 2.0, 5.0])
    rng = np.random.default_rng(0)
    drawn = np.concatenate([tree.draw(10, rng) for _ in range(2_000)])
    counts = {position: int((drawn == position).sum()) for position in (3, 500, 999)}
    assert sum(counts.values()) == len(drawn)
    assert counts == pytest.approx({3: 2_500, 500: 5_000, 999: 12_500}, rel=0.02)


def test_a_tree_for_a_million_has_three_levels():
    assert [len(sums) for sums in SumTree(1_000_000)._sums] == [1_000_000, 62_512, 3_920]


# --- the memory ---


def prioritized(capacity, num_envs=1, **kwargs):
    defaults = {"batch_size": min(64, capacity), "learning_starts": 0, "alpha": 0.6, "beta_steps": 0}
    memory = ReplayMemory(capacity, num_envs=num_envs, **{**defaults, **kwargs})
    memory.rng = np.random.default_rng(0)
    return memory


def error_of(batch, scale=1.0):
    """An error for each transition that says which one it is."""
    return scale * (1.0 + batch["action"].float() % 7) * (1 - 2 * (batch["action"] % 2))


@given(history=histories(), num_rows=st.integers(1, 12), seed=st.integers(0, 99), num_steps=st.sampled_from([1, 3]))
def test_priorities_against_a_dictionary(history, num_rows, seed, num_steps):
    """Several envs with episodes of unequal length, around the ring's end: each valid transition that is stored has the
    priority of its last error, or the highest there was when it came, and no other one is ever drawn."""
    terminated, truncated, valid = history
    num_envs = valid.shape[1]
    memory = prioritized(num_rows * num_envs, num_envs, batch_size=num_rows * num_envs, num_steps=num_steps)
    rng = np.random.default_rng(seed)
    expected, highest = {}, 1.0
    for t in range(len(valid)):
        ends = {"terminated": terminated[t], "truncated": truncated[t]}
        memory.add(transition(t, num_envs, **ends, valid=valid[t]))
        expected |= {100 * env + t: highest for env in np.flatnonzero(valid[t]).tolist()}
        expected = {action: value for action, value in expected.items() if action % 100 > t - num_rows}
        if len(memory) and rng.random() < 0.6:
            batch = memory.sample()
            error = torch.from_numpy(rng.normal(size=memory.batch_size))
            memory.update_priorities(error)
            new = (error.abs().numpy() + 1e-6) ** 0.6
            expected |= dict(zip(batch["action"].tolist(), new.tolist(), strict=True))
            highest = max(highest, new.max())
    if not expected:
        return
    assert len(memory) == len(expected)
    batch = memory.sample()
    actions, weights = batch["action"].tolist(), batch["weight"].tolist()
    smallest = min(expected.values())
    for action, weight in zip(actions, weights, strict=True):
        assert weight == pytest.approx(smallest / expected[action], rel=1e-6)
    total = sum(expected.values())
    for action, value in expected.items():
        most = value / total * len(actions)
        assert np.floor(most) - 1 <= actions.count(action) <= np.ceil(most) + 1


def test_weights_by_hand():
    """Priorities 1, 2, 4 (alpha 1), beta 0.5: over the largest weight, 1, 2 ** -0.5 and 4 ** -0.5."""
    memory = prioritized(3, batch_size=3, alpha=1.0, beta=0.5, beta_steps=10**12)
    for step in range(3):
        memory.add(transition(step, 1))
    first = memory.sample()
    assert first["weight"].tolist() == [1.0, 1.0, 1.0] and first["weight"].dtype == torch.float32
    memory.update_priorities(torch.tensor([[-1.0, 2.0, -4.0][action] for action in first["action"]]))
    for _ in range(20):
        batch = memory.sample()
        expected = [[1.0, 0.5**0.5, 0.5][action] for action in batch["action"]]
        assert batch["weight"].tolist() == pytest.approx(expected, rel=1e-5)


def test_beta_rises_to_one_in_a_straight_line():
    memory = prioritized(8, batch_size=8, alpha=1.0, beta=0.2, beta_steps=4)
    for step, beta in enumerate([0.4, 0.6, 0.8, 1.0, 1.0]):
        memory.add(transition(step, 1))
        if step == 0:
            memory.sample()
            memory.update_priorities(torch.full((8,), 3.0))
        else:
            batch = memory.sample()
            memory.update_priorities(torch.where(batch["action"] == 0, 3.0, 1.0 - 1e-6))
            batch = memory.sample()
            assert batch["weight"][0].item() == pytest.approx((1 / 3) ** beta, rel=1e-4)


def test_an_error_of_zero_is_drawn_again_some_day():
    memory = prioritized(2, batch_size=2, alpha=0.5)
    for step in range(2):
        memory.add(transition(step, 1))
    memory.sample()
    memory.update_priorities(torch.zeros(2))
    assert set(memory.sample()["action"].tolist()) == {0, 1}


def test_errors_come_back_through_the_batch():
    memory = prioritized(4, batch_size=4, updates_per_step=2.0, alpha=1.0)
    for step in range(4):
        memory.add(transition(step, 1))
    for batch in memory.batches():
        batch["td_error"] = torch.where(batch["action"] == 2, 1.0, 0.0)
    assert memory.sample()["action"].tolist() == [2, 2, 2, 2]


def test_an_agent_that_leaves_no_errors_is_told():
    memory = prioritized(4)
    memory.add(transition(0, 1))
    with pytest.raises(ConfigurationError, match=r"left no batch\['td_error'\].*alpha=0"):
        list(memory.batches())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_errors_that_are_not_finite_are_refused(bad):
    memory = prioritized(2, batch_size=2)
    memory.add(transition(0, 1))
    memory.sample()
    with pytest.raises(NonFiniteError, match="not finite"):
        memory.update_priorities(torch.tensor([1.0, bad]))
    memory.update_priorities(torch.tensor([1.0, 2.0]))


def test_one_error_a_transition():
    memory = prioritized(2, batch_size=2)
    memory.add(transition(0, 1))
    memory.sample()
    with pytest.raises(ShapeError, match=r"shape \(2, 1\): it must be \(2,\)"):
        memory.update_priorities(torch.ones(2, 1))


def test_a_uniform_memory_has_no_priorities():
    memory = prioritized(2, alpha=0.0)
    memory.add(transition(0, 1))
    assert "weight" not in memory.sample()
    with pytest.raises(ConfigurationError, match="alpha above 0"):
        memory.update_priorities(torch.ones(2))


@pytest.mark.parametrize(
    "wrong", [{"alpha": -0.1}, {"alpha": float("nan")}, {"beta": -0.1}, {"beta": 1.1}, {"beta_steps": -1}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="beta from 0 to 1"):
        prioritized(4, **wrong)


@pytest.mark.parametrize("num_steps", [3, 17])
def test_it_is_restored_with_its_priorities(num_steps):
    def go_on(memory, start, stop):
        batches = []
        for step in range(start, stop):
            memory.add(transition(step, 2, truncated=step % 4 == 0, valid=[True, step % 5 > 0]))
            for batch in memory.batches():
                batch["td_error"] = error_of(batch)
                batches.append(batch)
        return batches

    make = {"num_envs": 2, "batch_size": 8, "num_steps": 2, "update_every": 3, "beta_steps": 40}
    memory, other = prioritized(20, **make), prioritized(20, **make)
    go_on(memory, 0, num_steps)
    memory.add(transition(num_steps, 2))  # it has no priority yet
    go_on(other, 0, 5)
    other.load_state_dict(saved_and_loaded(memory))
    ours, theirs = go_on(memory, num_steps + 1, 40), go_on(other, num_steps + 1, 40)
    assert len(ours) > 30 and all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def test_both_must_have_priorities():
    state = prioritized(4).state_dict()
    with pytest.raises(ConfigurationError, match=r"this one, with alpha=0\.0.*same alpha"):
        prioritized(4, alpha=0.0).load_state_dict(state)
