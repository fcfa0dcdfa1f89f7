"""The state of an Atari emulator, with the one part of it that the emulator does not save.

With some probability it repeats its last action instead of the one that it is given, and does not tell which that was.
"""

from __future__ import annotations

from typing import Any

_MOST_FRAMES = 64
"""An action sticks in all of so many frames with a probability of 1e-10 even where each one repeats it with 0.7."""


def save_emulator(ale: Any) -> dict[str, Any]:
    """All that the next frames depend on; the emulator goes on as if nothing had been asked.

    Its screen shows some other frame until it acts again.
    """
    state = ale.cloneState(include_rng=True)
    saved: dict[str, Any] = {"state": state.serialize(), "action": None, "before": None}
    if ale.getFloat("repeat_action_probability") > 0.0 and not ale.game_over():
        try:
            if (repeated := _find_repeated(ale, state)) is not None:
                saved["action"], saved["before"] = repeated
        finally:
            ale.restoreState(state)
    return saved


def load_emulator(ale: Any, saved: dict[str, Any]) -> None:
    """Put back what `save_emulator` gave."""
    from ale_py import ALEState

    if saved["action"] is not None:
        ale.restoreState(ALEState(saved["before"]))
        ale.act(next(action for action in ale.getLegalActionSet() if action.value == saved["action"]))
    ale.restoreState(ALEState(saved["state"]))


def _find_repeated(ale: Any, state: Any) -> tuple[int, bytes] | None:
    """An action that does what the last one would, and a state in whose next frame an action is taken over for sure.

    Whether the next frame repeats is settled by the generator in `state`: if it does, all actions lead to the same
    frame. So the frames are tried out until actions differ; only up to there does the last action matter, and any
    action that gives the same frames can stand for it.

    Returns:
        None where the last action does not matter any more.
    """
    actions = ale.getLegalActionSet()
    noop = actions[0]
    frames: list[bytes] = []
    before = state
    while (after := _frame_of_all(ale, before, (*actions, noop))) is not None:
        frames.append(after)
        before = ale.cloneState(include_rng=True)
        if len(frames) == _MOST_FRAMES:
            return None
    if not frames:
        return None
    for action in actions:
        _frame(ale, before, action)  # from now on, this is the last action
        ale.restoreState(state)
        if all(_next_frame(ale, noop) == frame for frame in frames):
            _frame(ale, before, action)
            return action.value, before.serialize()
    return None  # not one of the legal ones: nothing that an env does, and no reason to end a run


def _frame_of_all(ale: Any, state: Any, actions: tuple[Any, ...]) -> bytes | None:
    """The frame that follows whichever action is taken, the last of them in the end; None where they differ."""
    first = _frame(ale, state, actions[0])
    return first if all(_frame(ale, state, action) == first for action in actions[1:]) else None


def _frame(ale: Any, state: Any, action: Any) -> bytes:
    ale.restoreState(state)
    return _next_frame(ale, action)


def _next_frame(ale: Any, action: Any) -> bytes:
    ale.act(action)
    frame: bytes = ale.cloneState(include_rng=True).serialize()
    return frame
