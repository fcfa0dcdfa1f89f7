"""Memories against brute force: which transitions come back, summed how, and when."""

from __future__ import annotations

import io
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_lightning.memory import Memory, ReplayMemory, RolloutMemory
from rl_lightning.types import ConfigurationError, ShapeError, Transition


def transition(step, num_envs, *, terminated=False, truncated=False, valid=None, nested=False):
    """Row `step`: obs is [env, step], next_obs [env, step + 0.5], every reward another, action 100 * env + step."""
    env = np.arange(num_envs)
    obs = np.stack([env, np.full(num_envs, step)], axis=1).astype(np.float32)
    next_obs = obs + np.array([0, 0.5], np.float32)
    if nested:
        obs, next_obs = ({"a.b": x, "image": np.full((num_envs, 2, 2), step, np.uint8)} for x in (obs, next_obs))
    return Transition(
        obs=obs,
        action=100 * env + step,
        reward=(1 + env + 0.37 * step).astype(np.float32),
        next_obs=next_obs,
        terminated=np.broadcast_to(terminated, num_envs).copy(),
        truncated=np.broadcast_to(truncated, num_envs).copy(),
        extras={"sample": obs["a.b"] * 2 if nested else obs * 2},
        valid=None if valid is None else np.asarray(valid),
    )


def saved_and_loaded(memory):
    """The state as it comes back from a checkpoint file, read without trusting it."""
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a.dtype == b.dtype and torch.equal(a, b)


# --- rollout ---


def filled(memory, num_steps=None, **kwargs):
    for step in range(memory.num_steps if num_steps is None else num_steps):
        memory.add(transition(step, memory.num_envs, **kwargs))
    return memory


def test_both_are_memories():
    assert isinstance(RolloutMemory(2, 3), Memory)
    assert isinstance(ReplayMemory(8, num_envs=1, batch_size=1, learning_starts=0), Memory)


def test_nothing_to_learn_from_before_the_rollout_is_full():
    memory = RolloutMemory(3, 2)
    for step in range(6):
        memory.add(transition(step, 2))
        assert len(list(memory.batches())) == (step in (2, 5))


def test_one_whole_batch_in_order_without_copies():
    memory = filled(RolloutMemory(3, 2))
    (batch,) = memory.batches()
    assert batch["obs"].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2]]
    assert batch["action"].tolist() == [0, 100, 1, 101, 2, 102]
    assert {name: field.dtype for name, field in batch.items()} == {
        "obs": torch.float32,
        "action": torch.int64,
        "reward": torch.float32,
        "next_obs": torch.float32,
        "terminated": torch.bool,
        "truncated": torch.bool,
        "sample": torch.float32,
    }
    assert batch["obs"].data_ptr() == memory._rows["obs"].ctypes.data


@given(
    num_steps=st.integers(1, 6),
    num_envs=st.integers(1, 4),
    num_epochs=st.integers(1, 3),
    num_minibatches=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_epoch_has_each_valid_row_once(num_steps, num_envs, num_epochs, num_minibatches, seed):
    num_minibatches = min(num_minibatches, num_steps * num_envs)
    memory = RolloutMemory(num_steps, num_envs, num_epochs=num_epochs, num_minibatches=num_minibatches)
    rng = np.random.default_rng(seed)
    valid = rng.random((num_steps, num_envs)) < rng.choice([0.5, 1.0])
    for step in range(num_steps):
        memory.add(transition(step, num_envs, valid=valid[step]))
    batches = list(memory.batches())
    expected = Counter(100 * env + step for step, env in np.argwhere(valid))
    parts = min(num_minibatches, valid.sum())
    assert len(batches) == num_epochs * parts
    for epoch in range(num_epochs):
        own = batches[epoch * parts : (epoch + 1) * parts]
        assert Counter(action for batch in own for action in batch["action"].tolist()) == expected
        sizes = [len(batch["action"]) for batch in own]
        assert max(sizes, default=0) - min(sizes, default=0) <= 1
    for batch in batches:
        assert torch.equal(batch["obs"][:, 0] * 100 + batch["obs"][:, 1], batch["action"].float())
        assert "valid" not in batch


def test_epochs_are_shuffled_apart_by_the_memory_s_own_generator():
    def orders(seed):
        memory = filled(RolloutMemory(16, 2, num_epochs=2, num_minibatches=2))
        memory.rng = np.random.default_rng(seed)
        return [batch["action"].tolist() for batch in memory.batches()]

    first = orders(0)
    assert first == orders(0) != orders(1)
    assert first[:2] != first[2:] and sorted(first[0]) != first[0]


def test_prepare_sees_time_and_envs_apart():
    seen = []

    def prepare(rollout):
        seen.append({name: tuple(field.shape) for name, field in rollout.items()})
        return {"double": rollout["action"] * 2, "obs": rollout["obs"]}

    memory = filled(RolloutMemory(3, 2, num_epochs=2, num_minibatches=2, prepare=prepare))
    batches = list(memory.batches())
    assert len(seen) == 1
    assert seen[0]["obs"] == (3, 2, 2) and seen[0]["reward"] == (3, 2) and "valid" not in seen[0]
    assert all(batch.keys() == {"double", "obs"} for batch in batches)
    assert sorted(torch.cat([batch["double"] for batch in batches[:2]]).tolist()) == [0, 2, 4, 200, 202, 204]


def test_prepare_sees_which_rows_are_no_experience():
    masks = []
    memory = RolloutMemory(2, 2, prepare=lambda rollout: masks.append(rollout.get("valid")) or rollout)
    memory.add(transition(0, 2))
    memory.add(transition(1, 2, valid=[True, False]))
    (batch,) = memory.batches()
    assert masks[0].tolist() == [[True, True], [True, False]]
    assert batch["action"].tolist() == [0, 100, 1]
    filled(memory)
    list(memory.batches())
    assert masks[1] is None


def test_should_stop_is_asked_after_each_minibatch_and_ends_only_this_rollout():
    answers = iter([False, True])
    memory = RolloutMemory(4, 1, num_epochs=2, num_minibatches=2, should_stop=lambda: next(answers))
    filled(memory)
    assert len(list(memory.batches())) == 2
    memory.should_stop = lambda: True
    filled(memory)
    assert len(list(memory.batches())) == 1
    memory.should_stop = None
    filled(memory)
    assert len(list(memory.batches())) == 4


def test_dict_observations_keep_their_parts():
    memory = filled(RolloutMemory(2, 2, num_minibatches=2), nested=True)
    for batch in memory.batches():
        assert batch["obs"]["image"].shape == (2, 2, 2) and batch["obs"]["image"].dtype == torch.uint8
        assert torch.equal(batch["obs"]["image"][:, 0, 0].float(), batch["obs"]["a.b"][:, 1])


def test_minibatches_are_not_overwritten_by_the_next_rollout():
    memory = filled(RolloutMemory(3, 2, num_minibatches=2))
    batches = list(memory.batches())
    before = [batch["obs"].clone() for batch in batches]
    for step in range(10, 13):
        memory.add(transition(step, 2))
    assert all(torch.equal(batch["obs"], old) for batch, old in zip(batches, before, strict=True))


@pytest.mark.parametrize("nested", [False, True])
def test_a_half_filled_rollout_is_restored_exactly(nested):
    memory, other = (RolloutMemory(4, 2, num_epochs=2, num_minibatches=3) for _ in range(2))
    filled(memory, 3, nested=nested)
    other.load_state_dict(saved_and_loaded(memory))
    assert len(other) == len(memory) == 6
    for one in (memory, other):
        one.add(transition(3, 2, valid=[False, True], nested=nested))
    pairs = list(zip(memory.batches(), other.batches(), strict=True))
    assert len(pairs) == 6 and all(same(a, b) for a, b in pairs)


def test_an_empty_rollout_is_restored():
    memory = RolloutMemory(2, 1)
    memory.load_state_dict(saved_and_loaded(RolloutMemory(2, 1)))
    assert len(list(filled(memory).batches())) == 1


def test_a_learning_phase_goes_on_after_a_checkpoint_in_its_middle():
    def make(answers):
        return RolloutMemory(4, 2, num_epochs=2, num_minibatches=2, should_stop=lambda: next(answers))

    memory = filled(make(iter([False, False, False])))
    batches = memory.batches()
    next(batches)
    state = saved_and_loaded(memory)
    rest = list(batches)
    other = make(iter([False, True]))
    other.load_state_dict(state)
    again = list(other.batches())
    assert len(rest) == 3 and len(again) == 1 and same(rest[0], again[0])


def test_an_abandoned_learning_phase_is_dropped_by_the_next_step():
    memory = filled(RolloutMemory(2, 1, num_minibatches=2))
    next(memory.batches())
    memory.add(transition(0, 1))
    assert list(memory.batches()) == []
    memory.add(transition(1, 1))
    assert len(list(memory.batches())) == 2


def test_a_rollout_of_another_shape_is_refused():
    state = filled(RolloutMemory(4, 2), 3).state_dict()
    with pytest.raises(ConfigurationError, match="3 steps of 2 envs, this memory holds 4 of 3"):
        RolloutMemory(4, 3).load_state_dict(state)
    with pytest.raises(ConfigurationError, match="same num_envs and num_steps"):
        RolloutMemory(2, 2).load_state_dict(state)


def test_a_full_rollout_takes_no_more():
    with pytest.raises(RuntimeError, match="batches"):
        filled(RolloutMemory(2, 1)).add(transition(2, 1))


@pytest.mark.parametrize("memory", [RolloutMemory(2, 3), ReplayMemory(9, num_envs=3, batch_size=1, learning_starts=0)])
def test_the_number_of_envs_is_checked(memory):
    with pytest.raises(ShapeError, match=r"num_envs=3.*\(1,\)"):
        memory.add(transition(0, 1))  # numpy would quietly write it three times


def test_extras_may_not_be_called_like_a_field():
    step = transition(0, 1)._replace(extras={"reward": np.zeros(1)})
    with pytest.raises(ConfigurationError, match=r"\['reward'\].*Rename"):
        RolloutMemory(2, 1).add(step)


@pytest.mark.parametrize("name", ["num_steps", "num_envs", "num_epochs", "num_minibatches"])
def test_rollout_numbers_must_be_positive(name):
    with pytest.raises(ConfigurationError, match=f"{name}=0.*at least 1"):
        RolloutMemory(**{"num_steps": 2, "num_envs": 2, name: 0})


def test_more_minibatches_than_transitions_are_refused():
    with pytest.raises(ConfigurationError, match="has only 4 transitions"):
        RolloutMemory(2, 2, num_minibatches=5)


# --- replay: what ---


def replay(capacity, num_envs=1, **kwargs):
    defaults = {"batch_size": min(64, capacity), "learning_starts": 0}
    return ReplayMemory(capacity, num_envs=num_envs, **{**defaults, **kwargs})


def test_only_the_last_transitions_are_kept():
    memory = replay(5, num_envs=2, batch_size=4)  # three rows of two
    for step in range(7):
        memory.add(transition(step, 2))
        assert len(memory) == min(2 * (step + 1), 6)
    seen = {action for _ in range(50) for action in memory.sample()["action"].tolist()}
    assert seen == {4, 5, 6, 104, 105, 106}


def test_sampling_is_uniform_over_what_is_valid():
    memory = replay(12, num_envs=2, batch_size=10)
    memory.rng = np.random.default_rng(0)
    for step in range(6):
        memory.add(transition(step, 2, valid=[True, step % 3 > 0]))
    assert len(memory) == 10
    counts = Counter(action for _ in range(2000) for action in memory.sample()["action"].tolist())
    assert counts.keys() == {0, 1, 2, 3, 4, 5, 101, 102, 104, 105}
    assert all(abs(count - 2000) < 200 for count in counts.values())


def test_a_batch_has_every_field_and_is_a_copy():
    memory = replay(4)
    for step in range(4):
        memory.add(transition(step, 1, terminated=step == 1, truncated=step == 2))
    batch = memory.sample()
    assert set(batch) == {"obs", "action", "reward", "next_obs", "terminated", "truncated", "sample"}
    action = batch["action"]
    assert torch.equal(batch["next_obs"], batch["obs"] + torch.tensor([0, 0.5]))
    assert torch.equal(batch["terminated"], action == 1) and torch.equal(batch["truncated"], action == 2)
    torch.testing.assert_close(batch["reward"], 1 + 0.37 * action)
    before = batch["obs"].clone()
    for step in range(4, 8):
        memory.add(transition(step, 1))
    assert torch.equal(batch["obs"], before)


@st.composite
def histories(draw):
    """Steps of B envs with episodes of unequal length; sometimes an env resets itself in a step of its own.

    With share 0.1 other rows are no experience either, for whatever reason.
    """
    num_envs, num_steps = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    share, resets = draw(st.sampled_from([0.0, 0.1, 0.5])), draw(st.booleans())
    terminated, truncated = rng.random((2, num_steps, num_envs)) < share
    valid = rng.random((num_steps, num_envs)) > (0.1 if share == 0.1 else 0)
    if resets:
        for t in range(1, num_steps):
            valid[t] &= ~((terminated | truncated)[t - 1] & valid[t - 1])
        terminated, truncated = terminated & valid, truncated & valid
    return terminated, truncated, valid


def expected_window(history, env, t, n, discount):
    """Walk forward from step t of one env: (discounted sum, steps, last step)."""
    terminated, truncated, valid = history
    total, last = 0.0, t
    for k in range(n):
        total += discount**k * (1 + env + 0.37 * (t + k))
        last = t + k
        after = last + 1
        if terminated[last, env] or truncated[last, env] or after == len(valid) or not valid[after, env]:
            break
    return total, last - t + 1, last


@settings(max_examples=150)
@given(history=histories(), n=st.integers(2, 5), num_rows=st.integers(1, 12), nested=st.booleans())
def test_n_step_windows_against_brute_force(history, n, num_rows, nested):
    """Every sampled transition has the window that walking its env's own history gives, around the ring's end too."""
    terminated, truncated, valid = history
    num_steps, num_envs = valid.shape
    memory = replay(num_rows * num_envs, num_envs=num_envs, batch_size=1, num_steps=n, discount=0.9)
    memory.rng = np.random.default_rng(0)
    memory.batch_size = 50
    for t in range(num_steps):
        ends = {"terminated": terminated[t], "truncated": truncated[t]}
        memory.add(transition(t, num_envs, **ends, valid=valid[t], nested=nested))
    stored = valid[-num_rows:]
    assert len(memory) == stored.sum()
    if not stored.any():
        return
    batch = memory.sample()
    next_obs = batch["next_obs"]["a.b"] if nested else batch["next_obs"]
    for i, action in enumerate(batch["action"].tolist()):
        env, t = divmod(action, 100)
        assert valid[t, env] and t >= num_steps - num_rows
        total, steps, last = expected_window(history, env, t, n, 0.9)
        assert batch["n"][i] == steps
        assert batch["reward"][i].item() == pytest.approx(total, rel=1e-5)
        assert next_obs[i].tolist() == [env, last + 0.5]
        assert batch["terminated"][i] == terminated[last, env] and batch["truncated"][i] == truncated[last, env]


def test_two_steps_by_hand():
    """Rewards 1, 1.37, 1.74; discount 0.5, two steps: 1 + 0.685, 1.37 + 0.87, and 1.74 alone."""
    memory = replay(3, batch_size=3, num_steps=2, discount=0.5)
    for step in range(3):
        memory.add(transition(step, 1))
    batch = memory.sample()
    expected = {0: (1.685, 2, 1.5), 1: (2.24, 2, 2.5), 2: (1.74, 1, 2.5)}
    for i, action in enumerate(batch["action"].tolist()):
        got = (batch["reward"][i].item(), batch["n"][i].item(), batch["next_obs"][i, 1].item())
        assert got == pytest.approx(expected[action])
    assert batch["n"].dtype == torch.int64 and batch["reward"].dtype == torch.float32


@pytest.mark.parametrize("is_terminated", [False, True])
def test_cut_episodes_ends_the_windows_but_not_the_bootstrap(is_terminated):
    memory = replay(4, batch_size=4, num_steps=3)
    memory.add(transition(0, 1))
    memory.add(transition(1, 1, terminated=is_terminated))
    memory.cut_episodes()
    memory.add(transition(2, 1))
    for _ in range(5):
        batch = memory.sample()
        assert [{0: 2, 1: 1, 2: 1}[action] for action in batch["action"].tolist()] == batch["n"].tolist()
        old = batch["action"] < 2
        assert (batch["truncated"] == (old & (not is_terminated))).all()
        assert (batch["terminated"] == (old & is_terminated)).all()


def test_cut_episodes_ends_a_rollout_s_episodes():
    memory = RolloutMemory(3, 2)
    memory.cut_episodes()
    memory.add(transition(0, 2))
    memory.add(transition(1, 2, terminated=[True, False]))
    memory.cut_episodes()
    memory.add(transition(2, 2))
    (batch,) = memory.batches()
    assert batch["truncated"].tolist() == [False, False, False, True, False, False]


# --- replay: when ---


@given(
    num_envs=st.integers(1, 9),
    learning_starts=st.integers(0, 40),
    update_every=st.integers(1, 12),
    updates_per_step=st.sampled_from([1.0, 0.5, 0.25, 0.1, 2, 1.5, 0.3]),
    seed=st.integers(0, 99),
)
def test_the_pace_against_counting_steps_one_by_one(num_envs, learning_starts, update_every, updates_per_step, seed):
    pace = {"update_every": update_every, "updates_per_step": updates_per_step}
    memory = ReplayMemory(64, num_envs=num_envs, batch_size=1, learning_starts=learning_starts, **pace)
    rng = np.random.default_rng(seed)
    steps, owed = 0, Fraction(0)
    for step in range(40):
        valid = rng.random(num_envs) < 0.9
        memory.add(transition(step, num_envs, valid=valid))
        for _ in range(valid.sum()):
            steps += 1
            if steps > learning_starts and (steps - learning_starts) % update_every == 0:
                owed += update_every * Fraction(str(updates_per_step))
        given_now = len(list(memory.batches()))
        assert given_now == int(owed)
        owed -= given_now


def test_half_a_batch_a_step_is_carried_over():
    memory = replay(10, updates_per_step=0.5)
    counts = []
    for step in range(6):
        memory.add(transition(step, 1))
        counts.append(len(list(memory.batches())))
    assert counts == [0, 1, 0, 1, 0, 1]


def test_nothing_is_due_before_learning_starts():
    memory = replay(100, learning_starts=10, update_every=4)
    counts = []
    for step in range(18):
        memory.add(transition(step, 1))
        counts.append(len(list(memory.batches())))
    assert counts == [0] * 13 + [4, 0, 0, 0, 4]


def test_batches_not_taken_stay_due():
    memory = replay(100, update_every=4)
    for step in range(4):
        memory.add(transition(step, 1))
    next(memory.batches())
    assert len(list(memory.batches())) == 3


def test_resets_alone_make_nothing_due():
    memory = replay(4)
    for step in range(6):
        memory.add(transition(step, 1, valid=[False]))
        assert list(memory.batches()) == [] and len(memory) == 0
    with pytest.raises(RuntimeError, match="empty"):
        memory.sample()


# --- replay: checkpoints and errors ---


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("num_steps", [5, 23])
def test_a_replay_memory_is_restored_with_its_sampling_stream(num_steps, nested):
    def make():
        pace = {"update_every": 3, "updates_per_step": 0.3}
        return ReplayMemory(20, num_envs=2, batch_size=8, learning_starts=4, num_steps=3, **pace)

    memory, other = make(), make()
    for step in range(num_steps):
        memory.add(transition(step, 2, truncated=step % 4 == 0, valid=[True, step % 5 > 0], nested=nested))
        list(memory.batches())
    other.load_state_dict(saved_and_loaded(memory))
    assert len(other) == len(memory)
    for step in range(num_steps, num_steps + 20):
        for one in (memory, other):
            one.add(transition(step, 2, nested=nested))
        ours, theirs = list(memory.batches()), list(other.batches())
        assert len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    assert same(memory.sample(), other.sample())


def test_a_state_is_not_changed_by_what_is_added_later():
    memory = replay(4, batch_size=4)
    for step in range(4):
        memory.add(transition(step, 1))
    state = memory.state_dict()
    before = state["table"]["rows"]["obs"].clone()
    memory.add(transition(9, 1))
    assert torch.equal(state["table"]["rows"]["obs"], before)


def test_an_empty_replay_memory_is_restored():
    memory = replay(4)
    memory.load_state_dict(saved_and_loaded(replay(4)))
    memory.add(transition(0, 1))
    assert len(memory) == 1


def test_any_bit_generator_can_be_saved():
    memory = replay(4)
    memory.rng = np.random.Generator(np.random.Philox(3))
    other = replay(4)
    other.rng = np.random.Generator(np.random.Philox(4))
    other.load_state_dict(saved_and_loaded(memory))
    assert other.rng.random() == memory.rng.random()


def test_a_replay_memory_of_another_shape_is_refused():
    state = replay(6, num_envs=2).state_dict()
    with pytest.raises(ConfigurationError, match="3 rows of 2 envs, this one has 6 of 1"):
        replay(6).load_state_dict(state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"num_envs": 0}, "num_envs=0.*at least 1"),
        ({"batch_size": 0}, "batch_size=0.*at least 1"),
        ({"update_every": 0}, "update_every=0.*at least 1"),
        ({"num_steps": 0}, "num_steps=0.*at least 1"),
        ({"learning_starts": -1}, "learning_starts=-1.*at least 0"),
        ({"updates_per_step": 0.0}, r"updates_per_step=0\.0.*above 0"),
        ({"batch_size": 11}, "capacity=10, batch_size=11.*at least 11"),
        ({"num_envs": 11}, "capacity=10, num_envs=11"),
        ({"learning_starts": 11}, "capacity=10, learning_starts=11.*buffer_size"),
        ({"discount": float("nan")}, "discount=nan"),
    ],
)
def test_numbers_that_cannot_work_are_refused(changed, message):
    good = {"capacity": 10, "num_envs": 1, "batch_size": 4, "learning_starts": 5}
    ReplayMemory(**good)
    with pytest.raises(ConfigurationError, match=message):
        ReplayMemory(**{**good, **changed})


def test_a_whole_rollout_comes_as_it_is():
    memory = RolloutMemory(3, 2, whole=True)
    for t in range(3):
        valid = None if t else np.array([True, False])
        obs, never = np.full((2, 1), t, np.float32), np.zeros(2, bool)
        memory.add(Transition(obs, np.zeros(2, int), np.ones(2, np.float32), obs + 1, never, never, {}, valid))
        batches = list(memory.batches())
        assert len(batches) == (t == 2)
    assert batches[0]["obs"].shape == (3, 2, 1) and batches[0]["obs"][:, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert batches[0]["valid"].tolist() == [[True, False], [True, True], [True, True]]
    with pytest.raises(ConfigurationError, match="whole rollout is learned from once"):
        RolloutMemory(3, 2, num_epochs=2, whole=True)
