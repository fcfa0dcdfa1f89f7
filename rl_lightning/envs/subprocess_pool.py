"""Envs in processes of their own, under supervision."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import Space

from rl_lightning.envs.actions import ActionReader
from rl_lightning.envs.checks import as_rewards
from rl_lightning.envs.observations import ObsReader
from rl_lightning.envs.pool import EnvPool, Mask, Seeds, Step
from rl_lightning.envs.subprocess_envs import SubprocessEnvs
from rl_lightning.envs.subprocess_worker import CALL, CAPTURE, RESET, RESTORE, SET, block_of, obs_in, step_envs
from rl_lightning.types import Array, ConfigurationError, EnvError, ObsArray, WorkerError, check_counts, tree_map
from rl_lightning.workers import Supervisor

_POLL_S = 60.0
"""A wait ends as soon as anything happens; so long it may take where nothing does."""


class SubprocessPool(EnvPool):
    """Envs in worker processes, each of which steps its share of them; nothing is pickled for a step.

    A worker that raises, dies or hangs is an error here, or it is replaced: the open episodes of its envs are then cut
    off and the step that was under way is dropped (`truncated`, but not `valid`), and the new envs get new seeds. What
    is wrong with the env itself (`EnvError`, `ConfigurationError`) always is an error. Infos stay in the worker:
    `Step.infos` is empty.

    Attributes:
        num_workers: how many processes there are.
        restart_workers, num_restarts: how many of them may be replaced, and have been.
    """

    env: SubprocessEnvs
    is_vector = True
    is_lent = False
    _of_episodes = (*EnvPool._of_episodes, "_seeds", "_new_seeds", "_cut", "_resting")

    def __init__(
        self,
        make_env: Callable[[], gym.Env[Any, Any]],
        num_envs: int,
        *,
        observation_space: Space[Any],
        action_space: Space[Any],
        max_episode_len: int | None = None,
        num_workers: int | None = None,
        restart_workers: int = 0,
        timeout_s: float | None = None,
        start_method: str | None = None,
    ) -> None:
        """
        Args:
            make_env: makes one env; called in the worker, once for each.
            num_envs: how many.
            observation_space, action_space: of one env.
            max_episode_len: in env steps; an episode that reaches it is cut off (truncated). Nor does it outlive a step
                whose `info["needs_reset"]` is set.
            num_workers: how many processes share the envs. None: one for each.
            restart_workers: how many may be replaced in all before the next failure is an error.
            timeout_s: a worker in which one step or reset of an env takes longer has hung. None: it may take its time.
            start_method: as `Supervisor` takes it.
        Raises:
            ConfigurationError: a space that cannot be served, or what keeps the env from being made.
            WorkerError: an env raised something else while it was made.
        """
        check_counts(num_envs=num_envs, num_workers=num_workers)
        self.num_envs, self.num_workers = num_envs, min(num_workers or num_envs, num_envs)
        self.observation_space, self.action_space = observation_space, action_space
        self.restart_workers, self.num_restarts = restart_workers, 0
        self._reader = ObsReader(observation_space, num_envs)
        self._to_action = ActionReader(action_space, num_envs).batch
        self._block = block_of(self._reader, action_space, num_envs, self.num_workers)
        self._shared_obs = obs_in(self._block, observation_space)
        self._action, self._reward = self._block["action"], self._block["reward"]
        self._terminated, self._truncated = self._block["terminated"], self._block["truncated"]
        self._asked, self._done = self._block["asked"], self._block["done"]
        self._rows = [slice(part[0], part[-1] + 1) for part in np.array_split(range(num_envs), self.num_workers)]
        self._everybody = self._awake = list(range(self.num_workers))
        self._resting: Mask | None = None
        self._seeds: Seeds = [None] * num_envs
        self._new_seeds: dict[int, int] = {}  # of envs that have been replaced
        self._obs: ObsArray = self._reader.empty()
        self._over: Mask | None = np.ones(num_envs, np.bool_)  # those that wait for `begin_episodes`
        self._cut: Mask | None = None  # those that a replacement has cut off, as the next step will tell
        self._replies: dict[int, list[Any]] = {}
        self._last_error: WorkerError | None = None
        self._under_way = False  # a command that was interrupted still is
        self._error: Exception | None = None
        self._supervisor = Supervisor(self.num_workers, start_method=start_method, timeout_s=timeout_s)
        self.env = SubprocessEnvs(self)
        try:
            for number, rows in enumerate(self._rows):
                self._ask(number)
                self._supervisor.start(number, step_envs, make_env, rows, self._block, max_episode_len or 0)
            self._wait()
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int | Seeds | None = None) -> ObsArray:
        self._settle()
        given = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        self._seeds = [None] * self.num_envs if given is None else given
        self._block["resting"][:] = False
        self._resting, self._awake = None, self._everybody
        self._reset_where(np.ones(self.num_envs, np.bool_), given)
        self._cut = None
        return self._obs

    def begin_episodes(self, seeds: Seeds | None = None) -> ObsArray:
        if self._under_way:
            self._settle()
        if self._over is None:
            return self._obs
        return self._reset_where(self._over if self._resting is None else self._over & ~self._resting, seeds)

    def _reset_where(self, mask: Mask, seeds: Seeds | None) -> ObsArray:
        """Start the episodes where `mask` [B] is True, and anew all of a worker that is replaced meanwhile."""
        todo: Mask | None = mask
        while todo is not None:
            for number, rows in enumerate(self._rows):
                envs = (rows.start + np.flatnonzero(todo[rows])).tolist()
                if envs:
                    asked = {env - rows.start: self._seed_of(env, seeds if mask[env] else None) for env in envs}
                    self._ask(number)
                    self._supervisor.send(number, (RESET, asked))
            todo = self._wait()
            if todo is not None:
                self._cut = _either(self._cut, todo & ~mask)
        self._obs = tree_map(np.copy, self._shared_obs)
        self._over = None
        self._check_finite(self._obs)
        return self._obs

    def _seed_of(self, env: int, seeds: Seeds | None) -> int | None:
        new = self._new_seeds.pop(env, None)
        return new if seeds is None or seeds[env] is None else seeds[env]

    def step(self, action: Array) -> Step:
        if self._under_way:
            self._settle()
        self._action[:] = self._to_action(action)
        for number in self._awake:
            self._ask(number)
            self._supervisor.ring(number)
        lost = self._wait()
        self.num_steps += 1
        obs: ObsArray = tree_map(np.copy, self._shared_obs)
        reward, terminated, truncated = self._reward.copy(), self._terminated.copy(), self._truncated.copy()
        valid = None
        if self._resting is not None:
            valid = ~self._resting
            reward[self._resting], terminated[self._resting], truncated[self._resting] = 0.0, False, False
        if lost is not None or self._cut is not None:
            lost = _either(lost, self._cut)
            valid = ~lost if valid is None else valid & ~lost
            reward[lost], terminated[lost], truncated[lost] = 0.0, False, True
            _assign(obs, lost, self._obs)
            self._cut = None
        self._obs = obs
        self._check_finite(obs)
        ended = terminated | truncated
        if np.count_nonzero(ended):
            self._over = ended
        return Step(obs, as_rewards(reward.tolist(), self.num_steps), terminated, truncated, valid, {})

    def _check_finite(self, obs: ObsArray) -> None:
        if not self._reader.all_finite(obs):
            raise self._reader.non_finite(obs, self.num_steps)

    def end_episodes(self, mask: Mask) -> None:
        if mask.any():
            self._over = _either(self._over, mask)

    def rest(self, mask: Mask) -> None:
        self._resting = _either(self._resting, mask)
        self._block["resting"][:] = self._resting
        self._awake = [number for number, rows in enumerate(self._rows) if not self._resting[rows].all()]

    def abandon_episodes(self) -> None:
        self._over = np.ones(self.num_envs, np.bool_)

    def call(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What the method `name` of each env returns; if it is no method, its value.

        Raises:
            WorkerError: it failed, whether or not the worker is then replaced.
        """
        return self._tell_all(CALL, name, [(args, kwargs)] * self.num_envs)

    def set_attribute(self, name: str, values: Sequence[Any]) -> None:
        """Set the attribute `name` of each env to its own value."""
        self._tell_all(SET, name, values)

    def _tell_all(self, what: str, name: str, arguments: Sequence[Any]) -> list[Any]:
        self._settle()
        self._replies.clear()
        for number, rows in enumerate(self._rows):
            self._ask(number)
            self._supervisor.send(number, (what, (name, arguments[rows])))
        lost = self._wait(replies=True)
        if lost is not None:
            self._cut = _either(self._cut, lost)
            self.end_episodes(lost)
            assert self._last_error is not None
            raise self._last_error
        return [reply for number in self._everybody for reply in self._replies[number]]

    def _capture_envs(self) -> Any:
        return self._tell_all(CAPTURE, "", [None] * self.num_envs)

    def _restore_envs(self, saved: Any) -> None:
        self._tell_all(RESTORE, "", saved)

    def load_state_dict(self, state: dict[str, Any]) -> Mask | None:
        lost = super().load_state_dict(state)
        resting, self._resting, self._awake = self._resting, None, self._everybody
        self._block["resting"][:] = False
        if resting is not None:
            self.rest(resting)
        _assign(self._shared_obs, np.ones(self.num_envs, np.bool_), self._obs)
        return lost

    def close(self) -> None:
        """End the workers, which close their envs. May be called twice."""
        if not self._closed:
            self._closed = True
            self._error = self._error or RuntimeError("this pool is closed: make another one")
            self._supervisor.stop()

    # ---- the workers -------------------------------------------------------------------------------------------------

    def _ask(self, number: int) -> None:
        """Count one more command, which the worker is about to get."""
        self._asked[number] += 1
        self._under_way = True

    def _wait(self, *, replies: bool = False) -> Mask | None:
        """Until all that was asked for is done, and with `replies` those of all workers are there.

        Returns:
            Which envs [B] lost their worker, which was replaced. None where none was: then only all replies are there.

        Raises:
            WorkerError: a worker failed, and may not be replaced.
            EnvError, ConfigurationError: an env is not as it has to be.
        """
        if self._error is not None:
            raise self._error
        lost = None
        while (self._asked != self._done).any() or (replies and lost is None and len(self._replies) < self.num_workers):
            try:
                messages = self._supervisor.poll(_POLL_S)
            except WorkerError as error:
                lost = _either(lost, self._replace(error))
            else:
                for number, (asked, reply) in messages:
                    if asked == self._asked[number]:  # or it is that to a call that was interrupted
                        self._replies[number] = reply
        self._under_way = False
        return lost

    def _settle(self) -> None:
        """If a command was interrupted, by Ctrl-C for example: let it end, and all episodes with it."""
        if self._under_way:
            self._wait()
            self.abandon_episodes()

    def _replace(self, error: WorkerError) -> Mask:
        """Start the worker anew that has failed. Returns its envs [B], as far as they do not rest."""
        cause, number = error.__cause__, error.number
        assert number is not None
        if isinstance(cause, EnvError | ConfigurationError):
            error.__cause__ = None  # it is the other way round here
            self._error = cause
            raise cause from error
        if self.num_restarts >= self.restart_workers:
            self._error = error
            raise error
        self.num_restarts += 1
        self._last_error = error
        lost = np.zeros(self.num_envs, np.bool_)
        lost[self._rows[number]] = True
        for env in range(self._rows[number].start, self._rows[number].stop):
            if (seed := self._seeds[env]) is not None:
                self._new_seeds[env] = int(np.random.SeedSequence([seed, self.num_restarts]).generate_state(1)[0])
        self._ask(number)
        self._supervisor.restart(number)
        warnings.warn(
            f"{error}\nIts envs are made anew (restart {self.num_restarts} of {self.restart_workers}): their open "
            "episodes are cut off, and the step that was under way is dropped.",
            RuntimeWarning,
            stacklevel=4,
        )
        return lost if self._resting is None else lost & ~self._resting


def _either(mask: Mask | None, other: Mask | None) -> Mask:
    """Where at least one of the masks is True; at least one is there."""
    if mask is None or other is None:
        there = other if mask is None else mask
        assert there is not None
        return there.copy()
    return mask | other


def _assign(target: ObsArray, rows: Mask, source: ObsArray) -> None:
    if isinstance(target, dict):
        assert isinstance(source, dict)
        for path, array in target.items():
            array[rows] = source[path][rows]
    else:
        assert not isinstance(source, dict)
        target[rows] = source[rows]
