"""Pong as everybody preprocesses it: 84x84 grey, every 4th frame, the last 4 of these stacked, actions as chosen."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

PONG = "ALE/Pong-v5"
PLAIN = {"frameskip": 1, "repeat_action_probability": 0.0}
"""What the env itself is told; the frames are skipped by the preprocessing."""


def stack(env: gym.Env) -> gym.Env:
    """The last four observations in one."""
    return FrameStackObservation(env, 4)


WRAPPERS = [AtariPreprocessing, stack]


def register() -> None:
    """Let gymnasium know of Pong.

    Raises:
        ImportError: ale-py is not installed, or OpenCV, with which frames are resized.
    """
    import ale_py
    import cv2  # noqa: F401

    gym.register_envs(ale_py)


def make_pong() -> gym.Env[Any, Any]:
    """One env, [4, 84, 84] uint8."""
    register()
    env = gym.make(PONG, disable_env_checker=True, **PLAIN)
    for wrap in WRAPPERS:
        env = wrap(env)
    return env
