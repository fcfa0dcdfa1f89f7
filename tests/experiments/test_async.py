"""`train_agent_async`: SEMANTICS.md 2.9, 2.10, and what of sections 3 and 4 concerns it."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import pstats
import time
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from rl_lightning import A2C, ConfigurationError, RLModule, WorkerError
from rl_lightning.experiments import EvaluationHook, LinearInterpolationHook, StepHook, train_agent_async

COMMON = {"processes": 2, "eval_interval": 400, "eval_n_episodes": 2, "max_episode_len": 50}


def make_env(process_idx, test):
    return gym.make("CartPole-v1")


def make_agent(process_idx=0):
    torch.manual_seed(0)
    return A2C(num_steps=5, hidden_sizes=(16,))


class Note(StepHook):
    """Leaves what it is given in a file of its process."""

    def __init__(self, directory):
        self.directory = directory

    def __call__(self, env, agent, step):
        with Path(self.directory, f"{os.getpid()}.txt").open("a") as file:
            file.write(f"{step} {type(env.unwrapped).__name__} {type(agent).__name__}\n")

    def lines(self):
        return [line.split() for path in Path(self.directory).glob("*.txt") for line in path.read_text().splitlines()]


class Told(EvaluationHook):
    support_train_agent_async = True

    def __init__(self):
        self.calls = []

    def __call__(self, env, agent, evaluator, step, eval_stats, agent_stats, env_stats):
        self.calls.append((os.getpid(), step, eval_stats["mean"], evaluator.max_score))


def test_parameters_are_the_contract():
    parameters = inspect.signature(train_agent_async).parameters.values()
    given = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert " ".join(given) == (
        "outdir processes make_env profile=False steps=80000000 eval_interval=1000000 eval_n_steps=None "
        "eval_n_episodes=10 eval_success_threshold=0.0 max_episode_len=None step_offset=0 successful_score=None "
        "agent=None make_agent=None global_step_hooks=() evaluation_hooks=() save_best_so_far_agent=True "
        "use_tensorboard=False logger=None random_seeds=None stop_event=None exception_event=None "
        "use_shared_memory=True"
    )


def test_a_whole_run(tmp_path, caplog):
    note, told = Note(tmp_path), Told()
    with caplog.at_level(logging.INFO):
        agent = train_agent_async(
            tmp_path / "out",
            make_env=make_env,
            steps=2_000,
            make_agent=make_agent,
            global_step_hooks=[note],
            evaluation_hooks=[told],
            use_tensorboard=True,
            profile=True,
            **COMMON,
        )
    lines = note.lines()
    last = len(lines)
    assert 2_000 <= last <= 2_001
    assert sorted(int(step) for step, _, _ in lines) == list(range(1, last + 1))
    assert {(env, agent) for _, env, agent in lines} == {("CartPoleEnv", "A2C")}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{last}_finish", "best", "scores.txt", "profile-0.out", "profile-1.out"} <= names
    assert any("tfevents" in name for name in names)
    assert pstats.Stats(str(tmp_path / "out" / "profile-1.out")).total_calls > 1_000
    assert "profile-{process_idx}.out" in caplog.text
    header, *rows = (tmp_path / "out" / "scores.txt").read_text().splitlines()
    assert header.startswith("steps\tepisodes\telapsed\tmean\tmedian\tstdev\tmax\tmin")
    steps = [int(row.split("\t")[0]) for row in rows]
    assert len(steps) >= 3 and all(step >= 400 * (i + 1) for i, step in enumerate(steps))
    assert [step for _, step, _, _ in told.calls] == steps
    assert {pid for pid, _, _, _ in told.calls} == {os.getpid()}
    finished = RLModule.load_from_checkpoint(tmp_path / "out" / f"{last}_finish" / "agent.ckpt").agent
    for name, tensor in finished.network.state_dict().items():
        assert torch.equal(tensor, agent.network.state_dict()[name])


def test_the_offset_shifts_the_whole_of_training(tmp_path):
    note, told = Note(tmp_path), Told()
    arguments = {"make_env": make_env, "agent": make_agent(), "step_offset": 500, "steps": 1_500}
    hooks = {"global_step_hooks": [note], "evaluation_hooks": [told]}
    train_agent_async(tmp_path / "out", **arguments, **hooks, **COMMON)
    numbers = sorted(int(step) for step, _, _ in note.lines())
    assert numbers[0] == 501 and 1_500 <= numbers[-1] <= 1_501 and len(set(numbers)) == len(numbers)
    assert told.calls[0][1] >= 800
    assert (tmp_path / "out" / f"{numbers[-1]}_finish").is_dir()


def test_success_stops_training_and_is_saved(tmp_path):
    train_agent_async(tmp_path, make_env=make_env, steps=1_000_000, agent=make_agent(), successful_score=1.0, **COMMON)
    assert (tmp_path / "successful" / "agent.ckpt").exists()
    (finish,) = tmp_path.glob("*_finish")
    assert int(finish.name.removesuffix("_finish")) < 100_000


def test_a_stop_event_ends_training_cleanly(tmp_path):
    event = multiprocessing.get_context("spawn").Event()

    class SetEvent(Told):
        def __call__(self, **arguments):
            event.set()

    arguments = {"agent": make_agent(), "stop_event": event, "evaluation_hooks": [SetEvent()]}
    train_agent_async(tmp_path, make_env=make_env, steps=10**9, **arguments, **COMMON)
    (finish,) = tmp_path.glob("*_finish")
    assert 0 < int(finish.name.removesuffix("_finish")) < 10**9


def test_an_exception_event_fails_training(tmp_path):
    event = multiprocessing.get_context("spawn").Event()
    event.set()
    with pytest.raises(RuntimeError, match="exception_event"):
        train_agent_async(tmp_path, make_env=make_env, steps=10**9, agent=make_agent(), exception_event=event, **COMMON)
    assert list(tmp_path.glob("*_except"))


class Unplugged(gym.Wrapper):
    def __init__(self, env, at):
        super().__init__(env)
        self.at = at

    def step(self, action):
        self.at -= 1
        if self.at == 0:
            raise ValueError("sensor unplugged")
        return self.env.step(action)


def test_an_exception_in_a_process_is_raised_here_and_leaves_the_agent(tmp_path):
    events = {"stop_event": multiprocessing.get_context("spawn").Event()}
    events["exception_event"] = multiprocessing.get_context("spawn").Event()

    def fails(process_idx, test):
        env = gym.make("CartPole-v1")
        return Unplugged(env, 300) if process_idx == 1 and not test else env

    with pytest.raises(WorkerError, match="(?s)worker 1 .*sensor unplugged"):
        train_agent_async(tmp_path, make_env=fails, steps=10**9, agent=make_agent(), **events, **COMMON)
    (saved,) = tmp_path.glob("*_except")
    assert torch.load(saved / "agent.ckpt", weights_only=True)["global_step"] > 0
    assert events["exception_event"].is_set()


def test_a_hook_sets_a_value_of_the_agent_in_its_process(tmp_path):
    note = NoteEntropy(tmp_path)

    def setter(env, agent, value):
        agent.set_value("entropy_weight", value)

    hooks = [LinearInterpolationHook(500, 1.0, 0.25, setter), note]
    train_agent_async(
        tmp_path / "out", make_env=make_env, steps=1_000, agent=make_agent(), global_step_hooks=hooks, **COMMON
    )
    values = dict(map(float, line.split()) for line in (tmp_path / "entropy").read_text().splitlines())
    assert values[1.0] > 0.9
    assert values[1000.0] == 0.25


class NoteEntropy(StepHook):
    def __init__(self, directory):
        self.path = Path(directory, "entropy")

    def __call__(self, env, agent, step):
        if step in (1, 1000):
            with self.path.open("a") as file:
                file.write(f"{step} {agent.entropy_weight.item()}\n")


def test_what_cannot_work_is_refused_before_anything(tmp_path):
    class Unsupported(EvaluationHook):
        def __call__(self, env, agent, evaluator, step, eval_stats, agent_stats, env_stats):
            raise AssertionError

    with pytest.raises(ValueError, match=r"does not support train_agent_async\(\)."):
        train_agent_async(tmp_path, 2, make_env, agent=make_agent(), evaluation_hooks=[Unsupported()])
    with pytest.raises(ConfigurationError, match="needs `agent`, or `make_agent`"):
        train_agent_async(tmp_path, 2, make_env)
    with pytest.raises(ConfigurationError, match="processes=0"):
        train_agent_async(tmp_path, 0, make_env, agent=make_agent())
    with pytest.raises(ConfigurationError, match="seeds"):
        train_agent_async(tmp_path / "seeds", 2, make_env, agent=make_agent(), random_seeds=[1])
    assert not list(tmp_path.glob("*_finish"))


# ---- agents from elsewhere -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy.ndarrays:UserWarning")
@pytest.mark.parametrize("use_shared_memory", [True, False])
def test_pfrls_a3c_trains_unchanged(use_shared_memory, tmp_path):
    pytest.importorskip("pfrl")
    peer = pytest.importorskip("tests.experiments.peer")
    agent = peer.a3c()
    before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    trained = train_agent_async(
        tmp_path,
        make_env=make_env,
        steps=1_500,
        agent=agent,
        make_agent=peer.a3c,
        use_shared_memory=use_shared_memory,
        **COMMON,
    )
    assert trained is agent
    for name, tensor in agent.model.state_dict().items():  # what it acts with
        assert not torch.equal(tensor, before[name])
        assert torch.equal(tensor, agent.shared_model.state_dict()[name])
    (finish,) = tmp_path.glob("*_finish")
    saved = torch.load(finish / "model.pt", weights_only=True)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in agent.model.state_dict().items())


class Quiet:
    """An agent from elsewhere that shares nothing."""

    def act(self, obs):
        return 0

    def observe(self, obs, reward, done, reset):
        pass

    def save(self, dirname):
        pass


def test_an_agent_that_shares_nothing_is_told_so(tmp_path):
    arguments = {"make_env": make_env, "steps": 100, "agent": Quiet(), "processes": 1, "eval_interval": None}
    for use_shared_memory in (True, False):
        with pytest.raises(ConfigurationError, match="shared_attributes"):
            train_agent_async(tmp_path, **arguments, use_shared_memory=use_shared_memory)


def test_evaluation_sees_a_snapshot_and_not_what_the_workers_go_on_to_do(tmp_path):
    """The agent does not change while it is evaluated, though the workers learn."""
    seen = []

    class Watch(gym.Wrapper):
        def step(self, action):
            time.sleep(0.002)
            seen.append(agent.network.policy_layers[0].weight.sum().item())
            return self.env.step(action)

    agent = make_agent()
    counted = []

    class Count(Told):
        def __call__(self, **arguments):
            counted.append((len(set(seen)), len(seen)))
            seen.clear()

    def make(process_idx, test):
        return Watch(gym.make("CartPole-v1")) if test else gym.make("CartPole-v1")

    train_agent_async(tmp_path, make_env=make, steps=6_000, agent=agent, evaluation_hooks=[Count()], **COMMON)
    assert all(different == 1 and steps > 10 for different, steps in counted) and len(counted) > 1
