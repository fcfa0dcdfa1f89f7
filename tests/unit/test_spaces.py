"""Spaces laid flat, and spaces as plain data."""

from __future__ import annotations

import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from hypothesis import given
from hypothesis import strategies as st

from rl_lightning.envs.spaces import flatten_obs, leaf_spaces, space_from_dict, space_to_dict
from rl_lightning.types import ConfigurationError

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
NESTED = spaces.Dict(OrderedDict(z=BOX, a=spaces.Tuple([spaces.Discrete(3), spaces.Dict(y=BOX)])))

DTYPES = st.sampled_from(["float32", "float64", "float16", "int64", "int8", "uint8"])
SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@st.composite
def boxes(draw):
    shape, dtype = draw(SHAPES), np.dtype(draw(DTYPES))
    size = int(np.prod(shape))
    low = np.array(draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)), dtype).reshape(shape)
    if draw(st.booleans()) and dtype.kind == "f":
        low = low - np.array(np.inf, dtype)
    high = draw(st.sampled_from([low, low + np.array(7, dtype)]))
    return spaces.Box(low, high, shape, dtype)


LEAVES = st.one_of(
    boxes(),
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-4, 4)),
    st.builds(
        lambda pairs, dtype: spaces.MultiDiscrete([n for n, _ in pairs], dtype, start=[start for _, start in pairs]),
        st.lists(st.tuples(st.integers(1, 5), st.integers(-3, 3)), min_size=1, max_size=3),
        st.sampled_from([np.int64, np.int32]),
    ),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=2))),
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, min_size=1, max_size=3).map(
            lambda parts: spaces.Dict(OrderedDict(parts))
        ),
    ),
    max_leaves=5,
)


def test_a_plain_space_is_its_own_leaf():
    assert leaf_spaces(BOX) == {"": BOX}


def test_leaves_are_named_by_their_path_in_the_spaces_own_order():
    assert list(leaf_spaces(NESTED).items()) == [("z", BOX), ("a.0", spaces.Discrete(3)), ("a.1.y", BOX)]


def test_two_leaves_of_one_path_are_refused():
    clash = spaces.Dict({"a.b": BOX, "a": spaces.Dict({"b": BOX})})
    with pytest.raises(ConfigurationError, match="share the path 'a.b'"):
        leaf_spaces(clash)


def test_observations_are_laid_flat_without_a_copy():
    batch = {"z": np.ones((4, 2)), "a": (np.zeros(4), {"y": np.ones((4, 2))})}
    flat = flatten_obs(NESTED, batch)
    assert list(flat) == ["z", "a.0", "a.1.y"]
    assert flat["z"] is batch["z"] and flat["a.0"] is batch["a"][0] and flat["a.1.y"] is batch["a"][1]["y"]


def test_observations_of_a_plain_space_stay_as_they_are():
    batch = np.ones((4, 2))
    assert flatten_obs(BOX, batch) is batch


@given(SPACES)
def test_flat_observations_have_the_leaves_paths_and_shapes(space):
    flat = flatten_obs(space, batch_space(space, 3).sample())
    leaves = leaf_spaces(space)
    arrays = flat if isinstance(flat, dict) else {"": flat}
    assert {path: array.shape for path, array in arrays.items()} == {p: (3, *s.shape) for p, s in leaves.items()}


@given(SPACES)
def test_a_space_comes_back_equal_from_plain_data(space):
    again = space_from_dict(space_to_dict(space))
    assert again == space
    pairs = zip(leaf_spaces(space).items(), leaf_spaces(again).items(), strict=True)
    for (path, leaf), (path_again, leaf_again) in pairs:
        assert path == path_again and leaf.dtype == leaf_again.dtype
        if isinstance(leaf, spaces.Box):
            assert (leaf.bounded_below == leaf_again.bounded_below).all()
            assert (leaf.bounded_above == leaf_again.bounded_above).all()


@given(SPACES)
def test_plain_data_loads_where_no_class_may_be_named(space):
    file = io.BytesIO()
    torch.save(space_to_dict(space), file)
    file.seek(0)
    assert space_from_dict(torch.load(file, weights_only=True)) == space


def test_uniform_bounds_are_stored_as_one_number():
    data = space_to_dict(spaces.Box(0, 255, (84, 84, 3), np.uint8))
    assert (data["low"], data["high"], data["dtype"]) == (0, 255, "uint8")


def test_bounds_that_differ_are_stored_one_by_one():
    data = space_to_dict(spaces.Box(np.array([-np.inf, 0], np.float32), np.array([1, np.inf], np.float32)))
    assert (data["low"], data["high"]) == ([-np.inf, 0.0], [1.0, np.inf])


def test_an_unbounded_integer_box_stays_unbounded():
    again = space_from_dict(space_to_dict(spaces.Box(-np.inf, np.inf, (2,), np.int64)))
    assert not again.is_bounded("below") and not again.is_bounded("above")


def test_a_space_that_cannot_be_stored_is_named():
    with pytest.raises(ConfigurationError, match="Text.*not supported"):
        space_to_dict(spaces.Dict(name=spaces.Text(5)))


def test_data_of_an_unknown_type_is_refused():
    with pytest.raises(ConfigurationError, match="unknown space type 'os.system'"):
        space_from_dict({"type": "os.system"})
