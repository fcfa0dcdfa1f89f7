"""Replay memories of each kind, uniform and prioritized; of transitions of 17 float32 of observation, 6 of action."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

NUM_OBS, NUM_ACTIONS, BATCH = 17, 6, 256
RAW_BYTES = 4 * (2 * NUM_OBS + NUM_ACTIONS + 1) + 2
"""Of a transition: observation, action, reward, next observation; terminated and truncated at a byte each."""


class Replay(NamedTuple):
    """A memory, ready to use.

    Attributes:
        add: adds the i-th transition: one env's, as it comes from `step`.
        sample: draws `BATCH` transitions, as tensors where the library makes tensors of them; by priority, it then
            sets their priorities.
        save: writes all of it to a file, as the library does; None where nobody asks.
    """

    add: Callable[[int], object]
    sample: Callable[[], object]
    save: Callable[[Path], object] | None = None


class Source:
    """Some transitions that are different, over and over, so that making them takes no time."""

    def __init__(self, num: int = 1_024) -> None:
        rng = np.random.default_rng(0)
        self.num = num
        self.obs = rng.standard_normal((num + 1, NUM_OBS), np.float32)
        self.action = rng.standard_normal((num, NUM_ACTIONS), np.float32)
        self.reward = rng.standard_normal(num, np.float32)
        self.terminated = rng.random(num) < 0.001
        self.never = np.zeros(num, bool)


def errors(num: int = 64) -> Iterator[torch.Tensor]:
    """What an agent gives back, [BATCH] each: different ones, over and over."""
    return cycle(torch.randn(num, BATCH, generator=torch.Generator().manual_seed(0)))


def ours(capacity: int, *, alpha: float = 0.0) -> Replay:
    from rl_lightning.memory import ReplayMemory
    from rl_lightning.types import Transition

    source, error = Source(), errors()
    memory = ReplayMemory(capacity, num_envs=1, batch_size=BATCH, learning_starts=0, alpha=alpha)

    def one(field: np.ndarray) -> list[np.ndarray]:
        return [field[i : i + 1] for i in range(source.num)]

    fields = source.obs[:-1], source.action, source.reward, source.obs[1:], source.terminated, source.never
    transitions = [Transition(*parts, {}) for parts in zip(*map(one, fields), strict=True)]

    def sample() -> None:
        memory.sample()
        memory.update_priorities(next(error))

    return Replay(lambda i: memory.add(transitions[i % source.num]), sample if alpha else memory.sample)


def tight(capacity: int) -> Replay:
    """One packed array, one gather."""
    source, width = Source(), 2 * NUM_OBS + NUM_ACTIONS + 3
    rows = torch.empty(capacity, width)
    numbers = rows.numpy()
    flags = source.terminated[:, None], source.never[:, None]
    parts = [source.obs[:-1], source.obs[1:], source.action, source.reward[:, None], *flags]
    packed = np.concatenate(parts, axis=1, dtype=np.float32)
    sizes, size = [part.shape[1] for part in parts], 0

    def add(i: int) -> None:
        nonlocal size
        numbers[i % capacity] = packed[i % source.num]
        size = min(i + 1, capacity)

    def sample() -> Any:
        return rows.index_select(0, torch.randint(size, (BATCH,))).split(sizes, dim=1)

    return Replay(add, sample)


def sb3(capacity: int) -> Replay:
    from gymnasium import spaces
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.save_util import save_to_pkl

    source = Source()
    box = [spaces.Box(-np.inf, np.inf, (size,), np.float32) for size in (NUM_OBS, NUM_ACTIONS)]
    memory = ReplayBuffer(capacity, *box, device="cpu")
    infos: list[dict[str, Any]] = [{}]

    def add(i: int) -> None:
        row = slice(i % source.num, i % source.num + 1)
        after = source.obs[i % source.num + 1 : i % source.num + 2]
        memory.add(source.obs[row], after, source.action[row], source.reward[row], source.terminated[row], infos)

    return Replay(add, lambda: memory.sample(BATCH), lambda path: save_to_pkl(path, memory))


def pfrl(capacity: int, *, alpha: float = 0.0) -> Replay:
    """As its agents see a batch: sampled, then laid side by side."""
    from pfrl.replay_buffer import batch_experiences
    from pfrl.replay_buffers import PrioritizedReplayBuffer, ReplayBuffer

    source, error, device = Source(), errors(), torch.device("cpu")
    memory = PrioritizedReplayBuffer(capacity, alpha=alpha) if alpha else ReplayBuffer(capacity)
    obs = source.obs[0].copy()

    def add(i: int) -> None:
        nonlocal obs
        i %= source.num
        before, obs = obs, source.obs[i + 1].copy()  # it keeps the arrays that envs make, each in two transitions
        done = bool(source.terminated[i])
        memory.append(before, source.action[i].copy(), float(source.reward[i]), next_state=obs, is_state_terminal=done)

    def sample() -> None:
        batch_experiences(memory.sample(BATCH), device, lambda state: state, 0.99)
        if alpha:
            memory.update_errors(next(error).abs().tolist())

    return Replay(add, sample, memory.save)


def tianshou(capacity: int, *, alpha: float = 0.0) -> Replay:
    """As its algorithms see a batch: NumPy arrays, which they make tensors of one by one."""
    from tianshou.data import Batch, PrioritizedReplayBuffer, ReplayBuffer

    source, error = Source(), errors()
    memory = PrioritizedReplayBuffer(capacity, alpha, 0.4) if alpha else ReplayBuffer(capacity)

    def add(i: int) -> None:
        i %= source.num
        memory.add(
            Batch(
                obs=source.obs[i],
                act=source.action[i],
                rew=source.reward[i],
                terminated=source.terminated[i],
                truncated=source.never[i],
                obs_next=source.obs[i + 1],
                info={},
            )
        )

    def sample() -> None:
        _, index = memory.sample(BATCH)
        if alpha:
            memory.update_weight(index, next(error))

    return Replay(add, sample)


def cpprb(capacity: int, *, alpha: float = 0.0) -> Replay:
    """NumPy arrays, as tensors."""
    from cpprb import PrioritizedReplayBuffer, ReplayBuffer

    source, error = Source(), errors()
    memory = (partial(PrioritizedReplayBuffer, alpha=alpha) if alpha else ReplayBuffer)(
        capacity,
        {
            "obs": {"shape": NUM_OBS, "dtype": np.float32},
            "act": {"shape": NUM_ACTIONS, "dtype": np.float32},
            "rew": {"dtype": np.float32},
            "next_obs": {"shape": NUM_OBS, "dtype": np.float32},
            "terminated": {"dtype": np.bool_},
            "truncated": {"dtype": np.bool_},
        },
    )

    def add(i: int) -> None:
        i %= source.num
        memory.add(
            obs=source.obs[i],
            act=source.action[i],
            rew=source.reward[i],
            next_obs=source.obs[i + 1],
            terminated=source.terminated[i],
            truncated=source.never[i],
        )

    def sample() -> None:
        batch = memory.sample(BATCH)
        for field in batch.values():
            torch.from_numpy(field)
        if alpha:
            memory.update_priorities(batch["indexes"], next(error).abs().numpy())

    return Replay(add, sample)


MEMORIES = {"ours": ours, "tight loop": tight, "SB3": sb3, "PFRL": pfrl, "Tianshou": tianshou, "cpprb": cpprb}
PRIORITIZED = {
    "ours": partial(ours, alpha=0.6),
    "PFRL": partial(pfrl, alpha=0.6),
    "Tianshou": partial(tianshou, alpha=0.6),
    "cpprb": partial(cpprb, alpha=0.6),
}
"""SB3 has none."""
