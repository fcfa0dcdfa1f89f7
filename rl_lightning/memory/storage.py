"""How transitions lie in memory: rows of one structured array, so that a minibatch is gathered by one take.

Fields of a row: obs, action, reward, next_obs, terminated, truncated, and the agent's extras by their own names. An
observation of a Dict or Tuple space is a structure inside the row, one field a path.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rl_lightning.types import (
    Array,
    Batch,
    ConfigurationError,
    ObsArray,
    ShapeError,
    Transition,
    plain_state,
    tree_map,
)

Rows: TypeAlias = NDArray[np.void]


def fields_of(transition: Transition) -> dict[str, ObsArray]:
    """The fields of B rows, each [B, ...]."""
    return {
        "obs": transition.obs,
        "action": transition.action,
        "reward": transition.reward,
        "next_obs": transition.next_obs,
        "terminated": transition.terminated,
        "truncated": transition.truncated,
        **transition.extras,
    }


def allocate(shape: tuple[int, ...], transition: Transition) -> Rows:
    """Room for rows like those of `transition`, not yet written: the system hands out pages only as they fill.

    Raises:
        ConfigurationError: one of the extras has the name of a field.
    """
    check_names(transition)
    return np.empty(shape, row_dtype(fields_of(transition)))


def check_names(transition: Transition) -> None:
    """Raise ConfigurationError if one of the extras has the name of a field."""
    taken = {*Transition._fields} & {*transition.extras}
    if taken:
        raise ConfigurationError(f"extras {sorted(taken)} have the name of a transition's field. Rename them.")


def row_dtype(fields: dict[str, ObsArray]) -> np.dtype[np.void]:
    """The type of one row; `fields` are [B, ...] each. Aligned, for torch reads no number across its own size."""

    def leaf(name: str, value: ObsArray) -> tuple[Any, ...]:
        if isinstance(value, dict):
            return name, row_dtype(dict(value))
        value = np.asarray(value)
        return name, value.dtype, value.shape[1:]

    return np.dtype([leaf(name, value) for name, value in fields.items()], align=True)


def described(dtype: np.dtype[np.void]) -> dict[str, Any]:
    """The type of a row as plain data: of each field, the type and shape of its numbers, or of a part, a dict of those.

    `row_dtype` of what `like_described` makes of it is the type again.
    """

    def leaf(field: np.dtype[Any]) -> Any:
        return described(field) if field.names else [field.base.str, list(field.shape)]

    return {name: leaf(dtype[name]) for name in dtype.names or ()}


def like_described(description: dict[str, Any]) -> dict[str, ObsArray]:
    """Empty fields [0, ...] like those that were described.

    Raises:
        ConfigurationError: that is none of a memory's: something else than numbers, or impossible shapes.
    """
    try:
        fields: dict[str, ObsArray] = tree_map(_no_rows, description)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"no row of a memory has the fields {str(description)[:500]} ({error}).") from error
    return fields


def _no_rows(field: Any) -> Array:
    kind, shape = field
    dtype = np.dtype(str(kind))
    if dtype.kind not in "biufc":
        raise ValueError(f"{kind} are no numbers")
    array: Array = np.empty((0, *map(int, shape)), dtype)
    return array


def columns(rows: Rows) -> dict[str, Any]:
    """A view of each field of rows [*S], [*S, ...]; of an observation in parts, a dict of those."""
    return {name: columns(rows[name]) if rows[name].dtype.names else rows[name] for name in rows.dtype.names or ()}


def write(into: dict[str, Any], index: Any, fields: dict[str, Any]) -> None:
    """Copy fields [...] to the place `index` of `columns`."""
    for name, value in fields.items():
        if isinstance(value, dict):
            write(into[name], index, value)
        else:
            into[name][index] = value


def as_tensors(rows: Rows) -> Batch:
    """Views of rows [*S] as tensors [*S, ...], one a field; nothing is copied."""
    batch: Batch = {}
    for name in rows.dtype.names or ():
        field = rows[name]
        batch[name] = torch.from_numpy(field) if field.dtype.names is None else as_tensors(field)
    return batch


def gather(rows: Rows, index: NDArray[np.int64]) -> Any:
    """Copies of some rows [N] of one field, [N, ...] or a dict of them."""
    taken = rows[index]
    return torch.from_numpy(taken) if taken.dtype.names is None else as_tensors(taken)


def save(rows: Rows | None) -> Batch | None:
    """A copy of the rows as plain tensors, one a field, for a checkpoint."""
    return None if rows is None else tree_map(torch.clone, as_tensors(rows))


def restore(saved: Batch, shape: tuple[int, ...]) -> Rows:
    """Room for rows [*shape] of which the first are those that `save` copied, [t, *shape[1:]]."""
    fields = tree_map(lambda tensor: tensor.numpy(), saved)
    # row_dtype takes the first axis alone for the rows.
    dtype = row_dtype(tree_map(lambda array: array.reshape(-1, *array.shape[len(shape) :]), fields))
    rows = np.empty(shape, dtype)
    write(columns(rows), slice(len(fields["reward"])), fields)
    return rows


def check_num_envs(transition: Transition, num_envs: int) -> None:
    """Raise ShapeError unless the transition is of `num_envs` envs."""
    if transition.reward.shape != (num_envs,):
        raise ShapeError(
            f"the memory was made for num_envs={num_envs}, but the transition's reward has shape "
            f"{transition.reward.shape}. Make the memory for the number of envs that act together."
        )


def check_at_least(owner: str, least: float, **numbers: float) -> None:
    """Raise ConfigurationError unless each number is at least `least`."""
    for name, number in numbers.items():
        if not number >= least:
            raise ConfigurationError(f"{owner}({name}={number}): {name} must be at least {least}.")


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The generator's state as plain numbers and strings (some bit generators keep arrays)."""
    state: dict[str, Any] = plain_state(rng.bit_generator.state)
    return state
