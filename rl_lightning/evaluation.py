"""Evaluation: whole episodes of an agent at its best, without a trace on the training around it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rl_lightning.agents import Agent, ForeignAgent, as_agent
from rl_lightning.agents.acting import make_actor
from rl_lightning.envs.pool import EnvPool, Step
from rl_lightning.envs.recipe import as_recipe
from rl_lightning.envs.spaces import reads_alike
from rl_lightning.types import Array, ConfigurationError, ObsArray, check_counts, tree_map

STATISTICS = ("mean", "median", "stdev", "max", "min", "length_mean")
"""What an evaluation logs, of all that `EvaluationResult.statistics` has."""

Observe: TypeAlias = Callable[[Step, NDArray[np.bool_]], None]


@dataclass(frozen=True)
class EpisodeResult:
    """One episode of an evaluation.

    Attributes:
        index: its place in the order in which the episodes started.
        return_: the sum of its rewards.
        length: in env steps.
        terminated: the env ended it.
        truncated: it was cut off. Neither: the evaluation's last step was reached first.
        obs: [L + 1, *O] what the agent saw, and the last observation. This and the next two only with `record=True`.
        action: [L, *A] as the agent gave them.
        reward: [L] float32.
    """

    index: int
    return_: float
    length: int
    terminated: bool
    truncated: bool
    obs: ObsArray | None = None
    action: Array | None = None
    reward: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        returns: each episode's sum of rewards, added up in float64, in the order in which the episodes started.
        lengths: each episode's env steps.
        seed: from which the envs and the random generators were seeded.
        env_statistics: what the env's own `get_statistics` counted meanwhile, if it has that.
    """

    returns: list[float]
    lengths: list[int]
    seed: int
    env_statistics: dict[str, float] = field(default_factory=dict)

    def statistics(self) -> dict[str, float]:
        """Episodes; mean, median, stdev, max, min of the returns; the same of the lengths, named `length_...`.

        The standard deviation is the sample's (divided by n - 1), and 0 for a single episode.
        """
        lengths = {f"length_{name}": value for name, value in _summary(self.lengths).items()}
        return {"episodes": len(self.returns), **_summary(self.returns), **lengths}

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """What is logged: `eval/mean`, `eval/median`, `eval/stdev`, `eval/max`, `eval/min`, `eval/length_mean`."""
        statistics = self.statistics()
        return {f"{prefix}/{name}": statistics[name] for name in STATISTICS}

    def confidence_interval(
        self, level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
    ) -> tuple[float, float]:
        """Bounds for the mean return: the bootstrap's percentile interval.

        Args:
            level: the share of resampled means that lie inside.
            num_resamples: how often n episodes are drawn from the n, with replacement.
            seed: of the draws, so that the same result always has the same bounds.
        Raises:
            ConfigurationError: `level` does not lie between 0 and 1, or `num_resamples` is below 1.
        Source:
            Efron and Tibshirani, 1993, An Introduction to the Bootstrap, chapter 13.
        """
        check_counts(num_resamples=num_resamples)
        if not 0.0 < level < 1.0:
            raise ConfigurationError(f"level={level}: it must lie between 0 and 1, such as 0.95.")
        rng = np.random.default_rng(seed)
        returns = np.array(self.returns)
        means = [returns[rng.integers(len(returns), size=len(returns))].mean() for _ in range(num_resamples)]
        low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
        return float(low), float(high)


def evaluate(
    agent: Any,
    envs: Any,
    *,
    num_episodes: int | None = None,
    num_steps: int | None = None,
    max_episode_len: int | None = None,
    seed: int | None = None,
    seed_envs: bool = True,
    episode_seeds: Sequence[int] | None = None,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    observe: Observe | None = None,
    record: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> EvaluationResult:
    """Let `agent` act greedily, in evaluation mode, and sum up its episodes.

    Episodes are numbered by when they start, and the earliest started count, not the first to finish: with several
    envs those would be the short ones. Nothing of it is left behind: the agent's training mode and the global random
    generators (torch, numpy, Python) are as before, also after an error.

    Args:
        agent: built for these envs' spaces, on `device`, or a module that holds it, such as an `RLModule`; or one from
            elsewhere (see `ForeignAgent`), which observes what happens too, in its evaluation mode.
        envs: an `EnvPool`, which is reset first, or anything that `as_recipe` takes.
        num_episodes: how many episodes count. Either this or `num_steps`.
        num_steps: the earliest episodes that finish within so many env steps together count. If not even the first one
            does, its return so far is the score.
        max_episode_len: in env steps; an episode that reaches it is cut off.
        seed: of the envs and the random generators; the same seed and number of envs give the same episodes. None: a
            fresh one.
        seed_envs: False leaves the envs their own random state.
        episode_seeds: the seed of each episode's reset, in the order in which the episodes start.
        on_episode: called with each episode that counts, in order, as soon as it and all earlier ones are over.
        observe: called after each step with what happened and which envs [B] bool start anew, for agents that keep
            their own state of an episode; in the last call all do.
        record: keep what was seen, done and rewarded, for `on_episode`.
        device: where the agent is.
        dtype: of floating-point observations.
    Raises:
        ConfigurationError: not exactly one of `num_episodes` and `num_steps`, or what the envs cannot do.
    """
    episode_seeds = None if episode_seeds is None else [int(seed) for seed in episode_seeds]  # gymnasium takes no numpy
    goal = _Goal.of(num_episodes, num_steps, episode_seeds)
    held = getattr(agent, "agent", None)
    agent = held if isinstance(held, Agent) and not isinstance(agent, Agent) else as_agent(agent)
    pool = envs if isinstance(envs, EnvPool) else as_recipe(envs).make()
    device = torch.device(device)
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    try:
        check_evaluation(agent, pool, max_episode_len=max_episode_len, episode_seeds=episode_seeds)
        with _isolated_randomness(seed, device) as env_seed, agent.evaluation_mode(), _asked_to_act(agent):
            if isinstance(agent, ForeignAgent):
                if not agent.built:
                    agent.observation_space, agent.action_space = pool.observation_space, pool.action_space
                observe = agent.observe_evaluation if observe is None else observe
            run = _Run(agent, pool, goal, max_episode_len, episode_seeds, record, device, dtype)
            _call_if_there(pool.env, "clear_statistics")
            returns, lengths = [], []
            for episode in run.episodes(env_seed if seed_envs else None, observe):
                returns.append(episode.return_)
                lengths.append(episode.length)
                if on_episode is not None:
                    on_episode(episode)
            env_statistics = dict(_call_if_there(pool.env, "get_statistics") or {})
    finally:
        if pool is not envs:
            pool.close()
    return EvaluationResult(returns, lengths, seed, env_statistics)


@dataclass
class _Goal:
    """When enough episodes are in: exactly one of the two is set."""

    num_episodes: int | None
    num_steps: int | None
    episodes: int = 0
    steps: int = 0

    @classmethod
    def of(cls, num_episodes: int | None, num_steps: int | None, episode_seeds: Sequence[int] | None) -> _Goal:
        if episode_seeds is not None:
            if num_steps is not None or num_episodes not in (None, len(episode_seeds)):
                raise ConfigurationError(
                    f"{len(episode_seeds)} episode_seeds are so many episodes: leave num_episodes and num_steps out."
                )
            num_episodes = len(episode_seeds)
        if (num_episodes is None) == (num_steps is None):
            raise ConfigurationError(
                f"num_episodes={num_episodes}, num_steps={num_steps}: an evaluation needs exactly one of the two."
            )
        check_counts(num_episodes=num_episodes, num_steps=num_steps)
        return cls(num_episodes, num_steps)

    def counts(self, length: int) -> bool:
        """Whether the next episode, of this length, still counts; if so it is counted."""
        if self.num_steps is not None and self.steps + length > self.num_steps:
            # Whatever starts later would have to fit in the steps that this one has used up.
            self.steps = self.num_steps
            return False
        self.episodes += 1
        self.steps += length
        return True

    def reached(self, running: int) -> bool:
        """Whether nothing more can count; `running` is the length so far of the earliest unfinished episode."""
        if self.num_steps is not None:
            return self.steps + running >= self.num_steps
        return self.episodes == self.num_episodes


class _Run:
    """The loop: act, step, number the episodes by their starts."""

    def __init__(
        self,
        agent: Agent,
        pool: EnvPool,
        goal: _Goal,
        max_episode_len: int | None,
        episode_seeds: Sequence[int] | None,
        record: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._pool, self._goal, self._max_len = pool, goal, max_episode_len
        self._act = make_actor(agent, pool, explore=False, device=device, dtype=dtype)
        self._episode_seeds = episode_seeds
        self._returns = np.zeros(pool.num_envs, np.float64)
        self._lengths = np.zeros(pool.num_envs, np.int64)
        self._numbers = np.arange(pool.num_envs)
        self._next_number = pool.num_envs
        self._earliest, self._earliest_env = 0, 0
        self._finished: dict[int, EpisodeResult] = {}
        self._recorder = _Recorder(pool.num_envs) if record else None

    def episodes(self, seed: int | None, observe: Observe | None) -> Iterator[EpisodeResult]:
        """The episodes that count, in the order of their starts, each as soon as all earlier ones are over."""
        everywhere = np.ones(self._pool.num_envs, np.bool_)
        self._pool.reset(seed if self._episode_seeds is None else self._seeds(everywhere))
        self._let_rest()
        seeds, over = None, False
        while not over:
            obs = self._pool.begin_episodes(seeds)
            action, _ = self._act(obs)
            step = self._pool.step(action)
            if self._recorder is not None:
                self._recorder.add(obs, action, step)
            ended = self._count(step)
            new: list[EpisodeResult] = []
            if np.count_nonzero(ended):
                self._finish(step, ended)
                new = self._next_in_order()
                seeds = self._seeds(ended)
            running = int(self._lengths[self._earliest_env])
            over = self._goal.reached(running)
            if over and not self._goal.episodes:
                new.append(self._result(self._earliest_env, step, ended=False))
            if observe is not None:
                observe(step, everywhere if over else ended)
            yield from new

    def _count(self, step: Step) -> NDArray[np.bool_]:
        """Add one step up; returns which episodes [B] ended."""
        self._returns += step.reward
        self._lengths += 1 if step.valid is None else step.valid
        if self._max_len is not None:
            cut = (self._lengths >= self._max_len) & ~(step.terminated | step.truncated)
            if cut.any():
                step.truncated[cut] = True
                self._pool.end_episodes(cut)
        return step.terminated | step.truncated

    def _finish(self, step: Step, ended: NDArray[np.bool_]) -> None:
        for env in np.flatnonzero(ended).tolist():
            if step.valid is not None and not step.valid[env]:  # it was lost, and its episode begins anew
                if self._recorder is not None:
                    self._recorder.forget(env)
                continue
            self._finished[int(self._numbers[env])] = self._result(env, step, ended=True)
            self._numbers[env] = self._next_number
            self._next_number += 1
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        self._let_rest()

    def _let_rest(self) -> None:
        """Envs whose next episode cannot count any more need not be stepped."""
        num_episodes = self._goal.num_episodes
        if num_episodes is not None and self._next_number > num_episodes:
            self._pool.rest(self._numbers >= num_episodes)

    def _result(self, env: int, step: Step, *, ended: bool) -> EpisodeResult:
        recorded = {} if self._recorder is None else self._recorder.take(env, step.next_obs)
        return EpisodeResult(
            index=int(self._numbers[env]),
            return_=float(self._returns[env]),
            length=int(self._lengths[env]),
            terminated=ended and bool(step.terminated[env]),
            truncated=ended and bool(step.truncated[env]),
            **recorded,
        )

    def _next_in_order(self) -> list[EpisodeResult]:
        """The finished episodes that are next in the order of starts, as far as they count."""
        episodes = []
        while self._earliest in self._finished and not self._goal.reached(0):
            episode = self._finished.pop(self._earliest)
            self._earliest += 1
            if self._goal.counts(episode.length):
                episodes.append(episode)
        if self._earliest not in self._finished:
            self._earliest_env = int(np.flatnonzero(self._numbers == self._earliest)[0])
        return episodes

    def _seeds(self, mask: NDArray[np.bool_]) -> list[int | None] | None:
        """Of the episodes that start where `mask` [B] is True, for each env; None without `episode_seeds`."""
        if self._episode_seeds is None:
            return None
        known = mask & (self._numbers < len(self._episode_seeds))
        pairs = zip(self._numbers.tolist(), known.tolist(), strict=True)
        return [self._episode_seeds[number] if starts else None for number, starts in pairs]


class _Recorder:
    """What was seen, done and rewarded in the episodes that run."""

    def __init__(self, num_envs: int) -> None:
        self._steps: list[list[tuple[Any, Any, Any]]] = [[] for _ in range(num_envs)]

    def add(self, obs: ObsArray, action: Array, step: Step) -> None:
        for env, steps in enumerate(self._steps):
            if step.valid is None or step.valid[env]:
                steps.append((_row(obs, env), action[env], step.reward[env]))

    def forget(self, env: int) -> None:
        self._steps[env] = []

    def take(self, env: int, next_obs: ObsArray) -> dict[str, Any]:
        seen, actions, rewards = zip(*self._steps[env], strict=True)
        self._steps[env] = []
        last = _row(next_obs, env)
        if isinstance(last, dict):
            obs: ObsArray = {path: np.stack([row[path] for row in (*seen, last)]) for path in last}
        else:
            obs = np.stack([*seen, last])
        return {"obs": obs, "action": np.stack(actions), "reward": np.stack(rewards)}


def _row(obs: ObsArray, env: int) -> Any:
    return tree_map(lambda array: array[env], obs)


def check_evaluation(
    agent: Agent,
    pool: EnvPool,
    *,
    max_episode_len: int | None = None,
    episode_seeds: Sequence[int] | None = None,
) -> None:
    """Whether `agent` can be evaluated in these envs, as `evaluate` does with the same arguments.

    Raises:
        ConfigurationError: it cannot, and why.
    """
    if max_episode_len is not None and pool.num_envs > 1 and not pool.can_reset_some:
        raise ConfigurationError(
            f"max_episode_len={max_episode_len}: {pool.env} cannot reset some of its envs. Wrap each env in "
            "gymnasium.wrappers.TimeLimit, or give an id or a factory."
        )
    if episode_seeds is not None and not pool.can_seed_each:
        raise ConfigurationError(f"episode_seeds: {pool.env} takes no seeds for single envs. Give an id or a factory.")
    if isinstance(agent, ForeignAgent):
        agent.actor(pool)
    if agent.built and not (
        reads_alike(agent.observation_space, pool.observation_space) and agent.action_space == pool.action_space
    ):
        raise ConfigurationError(
            f"The agent was built for observation space {agent.observation_space} and action space "
            f"{agent.action_space}; the evaluation env {pool.env} has {pool.observation_space} and {pool.action_space}."
            " Evaluate it in an env like that of its training."
        )


@contextmanager
def _asked_to_act(agent: Agent) -> Iterator[None]:
    """Say the cure where an agent lacks what `build` makes."""
    try:
        yield
    except AttributeError as error:
        if agent.built or error.obj is not agent:
            raise
        raise ConfigurationError(
            f"{type(agent).__name__} was not built, and has no {error.name}. Train it first, load it with "
            "RLModule.load_from_checkpoint, or call RLModule(agent).build(observation_space, action_space)."
        ) from error


@contextmanager
def _isolated_randomness(seed: int, device: torch.device) -> Iterator[int]:
    """Seed every global random generator, and put them back afterwards. Yields a seed for the envs."""
    torch_seed, numpy_seed, python_seed, env_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(4))
    numpy_state, python_state = np.random.get_state(), random.getstate()
    accelerator = None if device.type in ("cpu", "mps") else torch.get_device_module(device)
    devices = [] if accelerator is None else [accelerator.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices, device_type="cuda" if accelerator is None else device.type):
        # Not torch.manual_seed: it would also seed accelerators, now or once they are first used.
        torch.default_generator.manual_seed(torch_seed)
        if accelerator is not None:
            with accelerator.device(devices[0]):
                accelerator.manual_seed(torch_seed)
        np.random.seed(numpy_seed)
        random.seed(python_seed)
        try:
            yield env_seed >> 2  # some envs take signed 32-bit integers, and env i gets seed + i
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _call_if_there(env: Any, name: str) -> Any:
    method = env.get_wrapper_attr(name) if hasattr(env, "has_wrapper_attr") and env.has_wrapper_attr(name) else None
    method = method or getattr(env, name, None)
    return None if method is None else method()


def _summary(values: Sequence[float]) -> dict[str, float]:
    array = np.array(values, np.float64)
    return {
        "mean": float(array.mean()),
        "median": float(np.median(array)),
        "stdev": float(array.std(ddof=1)) if array.size > 1 else 0.0,
        "max": float(array.max()),
        "min": float(array.min()),
    }
