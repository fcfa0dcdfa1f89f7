"""Asynchronous training: several processes, one clock, one agent, and nothing left behind."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import A2C, DDPG, PPO, SAC, TD3, TRPO, ConfigurationError, RLModule, Trainer, WorkerError, evaluate
from rl_lightning.callbacks import BestAgent, Checkpoint, Evaluation, LinearInterpolation, RunRecord, StepHooks
from rl_lightning.envs import GymEnvModule
from rl_lightning.nn import UniformWarmUp
from rl_lightning.resume_check import first_difference
from rl_lightning.strategies import AsyncStrategy
from tests.trainer.helpers import quiet, small_dqn

CARTPOLE = GymEnvModule("CartPole-v1")


def small_a2c(**arguments):
    return A2C(**{"num_steps": 5, "hidden_sizes": (16,), **arguments})


def weights(agent):
    return {name: tensor.clone() for name, tensor in agent.state_dict().items() if isinstance(tensor, torch.Tensor)}


def fit(agent, strategy, *callbacks, max_steps=1_500, env=CARTPOLE, **arguments):
    trainer = Trainer(max_steps=max_steps, strategy=strategy, **{**quiet(*callbacks), **arguments})
    trainer.fit(agent, env)
    return trainer


def assert_nothing_is_left():
    deadline = time.monotonic() + 5.0
    while (left := workers_left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def workers_left():
    """Child processes, but for Python's own fork server and resource tracker."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not any(
                name in command for name in ("multiprocessing.forkserver", "resource_tracker")
            ):
                found.append(command)
        except psutil.NoSuchProcess:
            continue
    return found


class WriteNumbers:
    """A step hook that leaves every number it sees, and one of the agent's values, in a file of its process."""

    def __init__(self, directory, value=None):
        self.directory, self.value = directory, value

    def __call__(self, env, agent, step):
        value = float("nan") if self.value is None else getattr(agent, self.value).item()
        with Path(self.directory, str(os.getpid())).open("a") as file:
            file.write(f"{step} {value}\n")

    def rows(self):
        lines = [line.split() for path in Path(self.directory).iterdir() for line in path.read_text().splitlines()]
        return sorted((int(step), float(value)) for step, value in lines)


MODES = {
    "shared": lambda: (small_a2c(), AsyncStrategy(2)),
    "actor_learner": lambda: (small_dqn(), AsyncStrategy(2, mode="actor_learner")),
    "v_trace": lambda: (small_a2c(v_trace=True), AsyncStrategy(2, mode="actor_learner")),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_step_of_every_worker_is_counted_once(mode, tmp_path):
    agent, strategy = MODES[mode]()
    hook = WriteNumbers(tmp_path)
    trainer = fit(agent, strategy, StepHooks([hook]), max_steps=1_500)
    assert 1_500 <= trainer.global_step <= 1_501
    assert sum(strategy.worker_steps) == trainer.global_step
    assert min(strategy.worker_steps) > 0
    assert [step for step, _ in hook.rows()] == list(range(1, trainer.global_step + 1))
    assert len(list(tmp_path.iterdir())) == 2
    assert trainer.num_updates > 100
    assert trainer.num_episodes > 10
    assert len(set(strategy.seeds)) == 2
    assert_nothing_is_left()


@pytest.mark.parametrize("mode", MODES)
def test_steps_that_workers_take_before_the_parent_looks_are_counted(mode, monkeypatch):
    hire = AsyncStrategy._hire

    def hire_slowly(self, function, job):
        crew = hire(self, function, job)
        deadline = time.monotonic() + 60.0
        while job.counter.value < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        return crew

    monkeypatch.setattr(AsyncStrategy, "_hire", hire_slowly)
    agent, strategy = MODES[mode]()
    trainer = fit(agent, strategy, max_steps=600, max_time={"seconds": 30})
    assert trainer.global_step == sum(strategy.worker_steps)
    assert 600 <= trainer.global_step <= 601


@pytest.mark.parametrize("mode", MODES)
def test_training_changes_the_agent_that_was_given(mode):
    agent, strategy = MODES[mode]()
    module = RLModule(agent)
    env = gym.make("CartPole-v1")
    module.build(env.observation_space, env.action_space)
    before = weights(agent.network)
    trainer = fit(module, strategy, max_steps=600)
    assert trainer.lightning_module.agent is agent
    assert all(
        not torch.equal(before[name], tensor) for name, tensor in weights(agent.network).items() if "bias" in name
    )


def test_the_agent_has_the_final_shared_weights():
    agent, strategy = small_a2c(), AsyncStrategy(2)
    fit(agent, strategy)
    shared = strategy._run._shared.modules["agent"]
    for name, tensor in weights(shared).items():
        assert torch.equal(tensor, weights(agent)[name]), name


class KeepWeights(pl.Callback):
    def __init__(self):
        self.at = []

    def on_validation_end(self, trainer, module):
        self.at.append((trainer.global_step, weights(module.agent), weights(module.agent)))


def test_a_learning_rate_that_decays_in_the_parent_is_what_the_workers_use():
    """It is 0 from step 500 on: nothing is learned after that."""
    keep = KeepWeights()
    decay = LinearInterpolation("learning_rate", start_value=1e-2, stop_value=0.0, total_steps=500)
    evaluation = Evaluation(1, every_n_steps=500, max_episode_len=5, eval_at_start=True)
    fit(small_a2c(), AsyncStrategy(2), decay, evaluation, keep, max_steps=3_000)
    (_, early, _), *_, (_, one_before, _), (_, last, _) = keep.at
    assert any(not torch.equal(early[name], last[name]) for name in last)
    assert all(torch.equal(one_before[name], last[name]) for name in last)


def test_an_epsilon_that_decays_in_the_parent_is_what_the_workers_use(tmp_path):
    for mode in ("shared", "actor_learner"):
        hook = WriteNumbers(tmp_path / mode, "epsilon")
        Path(hook.directory).mkdir()
        fit(
            small_dqn(epsilon_steps=1_000, update_every=20),
            AsyncStrategy(2, mode=mode),
            StepHooks([hook]),
            max_steps=4_000,
        )
        values = [value for _, value in hook.rows()]
        assert values[0] > 0.9
        assert values[-1] == pytest.approx(0.05)


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_checkpoints_and_best_agent_live_in_the_parent(mode, tmp_path):
    agent, strategy = MODES[mode]()
    best, keep = BestAgent(dirpath=tmp_path), KeepWeights()
    saves = Checkpoint(tmp_path, every_n_train_steps=500, save_top_k=-1)
    trainer = fit(agent, strategy, Evaluation(2, every_n_steps=400), keep, best, saves, max_steps=1_600)
    scores = [
        row["eval_score"]
        for callback in trainer.callbacks
        if isinstance(callback, Evaluation)
        for row in callback.history
    ]
    assert len(scores) >= 3
    saved = RLModule.load_from_checkpoint(best.best_model_path).agent
    step = torch.load(best.best_model_path, weights_only=True)["global_step"]
    kept = next(kept for at, kept, _ in keep.at if at == step)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(saved).items())
    assert len(list(tmp_path.glob("epoch*.ckpt"))) >= 2


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    saves = [Checkpoint(tmp_path, save_last=True, every_n_epochs=1) for _ in range(2)]
    first = fit(small_a2c(), AsyncStrategy(2), saves[0], max_steps=500)
    trainer = Trainer(max_steps=900, strategy=AsyncStrategy(2), **quiet(saves[1]))
    agent = small_a2c()
    trainer.fit(agent, CARTPOLE, ckpt_path=tmp_path / "last.ckpt")
    assert 900 <= trainer.global_step <= 901
    assert sum(trainer.rl_strategy.worker_steps) == trainer.global_step - first.global_step
    state = trainer.optimizers[0].state_dict()["state"]
    assert all(entry["step"].item() == pytest.approx(trainer.num_updates, rel=0.05) for entry in state.values())


@pytest.mark.parametrize("mode", ["shared", "actor_learner"])
def test_a_checkpoint_saved_while_no_worker_acts_brings_back_all_that_is_in_the_parent(mode, tmp_path):
    def state(trainer):
        return {
            "weights": {k: v for k, v in weights(trainer.lightning_module.agent).items() if k != "epsilon"},
            "optimizers": copy.deepcopy([optimizer.state_dict() for optimizer in trainer.optimizers]),
            "counts": [trainer.global_step, trainer.num_updates],
            "seed": trainer.seed,
            "memory": trainer.memory.state_dict() if mode == "actor_learner" else None,
        }

    class Look(pl.Callback):
        def on_train_start(self, trainer, module):
            self.seen = state(trainer)

    first = fit(small_dqn(buffer_size=1_000), AsyncStrategy(2, mode=mode), max_steps=600)
    saved = state(first)
    first.save_checkpoint(tmp_path / "saved.ckpt")
    look = Look()
    resumed = Trainer(max_steps=800, strategy=AsyncStrategy(2, mode=mode), **quiet(look))
    resumed.fit(small_dqn(buffer_size=1_000), CARTPOLE, ckpt_path=tmp_path / "saved.ckpt")
    if mode == "actor_learner":  # what the workers were in the middle of is cut off
        rows = saved["memory"]["table"]["rows"]
        rows["truncated"][-1] |= ~rows["terminated"][-1]
    assert first_difference(saved, look.seen) is None
    assert resumed.rl_strategy.seeds != first.rl_strategy.seeds


def test_the_policy_lag_is_measured_and_bounded():
    logged = []

    class Read(pl.Callback):
        def on_env_step_end(self, trainer, module, transition):
            logged.append(trainer.callback_metrics.get("train/policy_lag_max", torch.tensor(0.0)).item())

    strategy = AsyncStrategy(2, mode="actor_learner", max_policy_lag=4)
    fit(small_dqn(), strategy, Read(), max_steps=2_000, log_every_n_steps=100)
    assert 0 < max(logged) <= 4
    with pytest.raises(
        ConfigurationError, match=r"max_policy_lag=1\) cannot be kept.* 2 envs .* up to 2 learning steps"
    ):
        fit(small_dqn(), AsyncStrategy(2, mode="actor_learner", max_policy_lag=1))


def test_shared_learning_measures_the_lag_too():
    trainer = fit(small_a2c(), AsyncStrategy(2), log_every_n_steps=100)
    assert 0 <= trainer.callback_metrics["train/policy_lag"].item() < 10


class WriteWeight:
    """A step hook that leaves the sum of a layer's weights in a file of its worker's, over and over."""

    def __init__(self, directory):
        self.directory = directory

    def __call__(self, env, agent, step):
        Path(self.directory, str(os.getpid())).write_text(repr(agent.network.value_layers[0].weight.sum().item()))


def test_workers_that_share_nothing_learn_each_for_itself(tmp_path):
    """The agent is then what worker 0 has made of it."""
    agent, strategy, pids = small_a2c(), AsyncStrategy(2, use_shared_memory=False), {}

    class NotePids(pl.Callback):
        def on_train_start(self, trainer, module):
            pids.update(strategy.worker_pids)

    trainer = fit(agent, strategy, StepHooks([WriteWeight(tmp_path)]), NotePids())
    assert 1_500 <= trainer.global_step <= 1_501
    first, second = (float((tmp_path / str(pids[number])).read_text()) for number in (0, 1))
    assert first != second
    assert agent.network.value_layers[0].weight.sum().item() == pytest.approx(first)


def test_each_worker_can_have_its_own_env_and_agent(tmp_path):
    def make_env(number):
        return gym.wrappers.TimeLimit(gym.make("CartPole-v1"), 10 + number)

    def make_agent(number):
        return small_a2c(entropy_weight=0.01)

    strategy = AsyncStrategy(2, make_env=make_env, make_agent=make_agent)
    trainer = fit(make_agent(0), strategy)
    assert max(trainer.rl_strategy.episodes.recent_lengths) <= 11


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_start_methods(method):
    """The default, forkserver, is in all other tests."""

    def no_lightning(env, agent, step):
        if "pytorch_lightning" in sys.modules:
            raise RuntimeError("this worker imports Lightning")

    hooks = [StepHooks([no_lightning])] if method == "spawn" else []
    trainer = fit(small_a2c(), AsyncStrategy(1, start_method=method), *hooks, max_steps=200)
    assert trainer.global_step == 200
    assert_nothing_is_left()


class Fails(gym.Wrapper):
    """CartPole that does something bad at its n-th step."""

    def __init__(self, deed, at=50):
        super().__init__(gym.make("CartPole-v1"))
        self.deed, self.at, self.count = deed, at, 0

    def step(self, action):
        self.count += 1
        if self.count == self.at:
            self.deed()
        return self.env.step(action)


def unplug():
    raise ValueError("sensor unplugged")


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {
    "exception": (unplug, r"(?s)worker 1 \(pid \d+\) failed at env step [\d_]+.*ValueError: sensor unplugged"),
    "exit": (lambda: os._exit(3), r"worker 1 \(pid \d+\).*exit code 3"),
    "kill": (kill_me, r"worker 1 \(pid \d+\).*SIGKILL"),
}


@pytest.mark.filterwarnings("ignore:Training ended early")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", ["shared", "actor_learner"])
def test_a_worker_that_fails_ends_the_run_with_its_name_and_a_checkpoint(mode, fault, tmp_path):
    deed, message = FAULTS[fault]
    agent, strategy = MODES[mode]()
    strategy.make_env = lambda number: Fails(deed if number == 1 else int, at=50)
    with pytest.raises(WorkerError, match=message):
        fit(agent, strategy, Checkpoint(tmp_path), max_steps=100_000)
    saved = torch.load(tmp_path / "except.ckpt", weights_only=True)
    assert saved["global_step"] == sum(strategy.worker_steps) >= 49
    assert_nothing_is_left()


@pytest.mark.filterwarnings("ignore:Training ended early")
def test_a_worker_that_hangs_is_named_and_killed():
    strategy = AsyncStrategy(2, make_env=lambda number: Fails(lambda: time.sleep(60 * number)), worker_timeout_s=6.0)
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"worker 1 \(pid \d+\).*no sign of life for 6 s"):
        fit(small_a2c(), strategy, max_steps=1_000_000)
    assert time.monotonic() - started < 30
    assert_nothing_is_left()


@pytest.mark.filterwarnings("ignore:.*worker 1.*")
@pytest.mark.parametrize("mode", MODES)
def test_a_dead_worker_is_replaced_where_that_is_asked_for(mode, tmp_path):
    """It dies once: its replacement finds the file."""

    def make_env(number):
        first = number == 1 and not (tmp_path / "died").exists()
        return Fails((lambda: ((tmp_path / "died").touch(), kill_me())) if first else int)

    agent, strategy = MODES[mode]()
    strategy.make_env, strategy.restart_workers = make_env, 1
    trainer = fit(agent, strategy, max_steps=3_000)
    assert strategy.num_restarts == 1
    assert 3_000 <= trainer.global_step <= 3_001
    assert (tmp_path / "died").exists()
    assert_nothing_is_left()


def refused(strategy, agent=None, env=CARTPOLE, *callbacks, **arguments):
    agent = small_a2c() if agent is None else agent
    with pytest.raises(ConfigurationError) as caught:
        fit(agent, strategy, *callbacks, env=env, **arguments)
    assert not workers_left()
    return str(caught.value)


class Watch(pl.Callback):
    def on_env_step(self, trainer, module, transition):
        pass


class OwnStep(RLModule):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


def test_what_cannot_work_is_refused_before_any_worker_starts():
    assert "A2C can with v_trace=True" in refused(AsyncStrategy(mode="actor_learner"))
    normalized = SAC(**REPLAY, normalize_obs=True)
    assert "Leave normalize_obs out" in refused(AsyncStrategy(mode="actor_learner"), normalized, "Pendulum-v1")
    assert "cannot train TRPO" in refused(AsyncStrategy(), TRPO())
    assert "mode='shared'" in refused(AsyncStrategy(mode="actor_learner"), PPO())
    processes = GymEnvModule("CartPole-v1", num_envs=2, vectorization="async")
    assert "in processes already" in refused(AsyncStrategy(), env=processes)
    assert "one live env" in refused(AsyncStrategy(), env=gym.make("CartPole-v1"))
    assert "training_step would run nowhere" in refused(AsyncStrategy(), OwnStep(small_a2c()))
    assert "Watch would see no transition" in refused(AsyncStrategy(), None, CARTPOLE, Watch())
    assert "accumulate_grad_batches=2" in refused(AsyncStrategy(), accumulate_grad_batches=2)
    assert "memory" in refused(AsyncStrategy(), RLModule(small_a2c(), memory=small_dqn().make_memory))
    for arguments in ({"mode": "both"}, {"num_workers": 0}, {"seeds": [1]}, {"max_policy_lag": 3}):
        with pytest.raises(ConfigurationError, match=next(iter(arguments))):
            AsyncStrategy(**arguments)
    with pytest.raises(ConfigurationError, match="make_agent"):
        AsyncStrategy(mode="actor_learner", make_agent=small_a2c)


def test_several_envs_a_worker():
    strategy = AsyncStrategy(2, mode="actor_learner")
    trainer = fit(small_dqn(), strategy, env=GymEnvModule("CartPole-v1", num_envs=3), max_steps=900)
    assert 900 <= trainer.global_step <= 905
    assert sum(strategy.worker_steps) == trainer.global_step
    assert trainer.memory.num_envs == 6


REPLAY = {"learning_starts": 50, "batch_size": 16, "hidden_sizes": (16,)}


def test_workers_that_learn_share_the_statistics_of_their_observations():
    agent, strategy = SAC(**REPLAY, normalize_obs=True), AsyncStrategy(2)
    trainer = fit(agent, strategy, env="Pendulum-v1", max_steps=400)
    moments = agent.normalization.obs_moments[0]
    # without locks: a row of one may be lost where two come at once
    assert 300 < moments.count <= sum(strategy.worker_steps) == trainer.global_step
    assert (moments.mean.abs() <= torch.tensor([1.0, 1.0, 8.0])).all() and (moments.variance > 0).all()  # the bounds


@pytest.mark.parametrize("agent", [SAC(**REPLAY), TD3(**REPLAY, noise="ornstein_uhlenbeck"), DDPG(**REPLAY)])
def test_continuous_control(agent):
    trainer = fit(agent, AsyncStrategy(2, mode="actor_learner"), env="Pendulum-v1", max_steps=300)
    assert 300 <= trainer.global_step <= 301
    assert trainer.num_updates > 100
    (warm_up,) = [module for module in agent.modules() if isinstance(module, UniformWarmUp)]
    assert -2 <= warm_up.steps_left.item() <= 0  # counted by all workers together


def test_observations_in_parts_and_continuous_actions_travel():
    class Parts(gym.Env):
        observation_space = gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (2,), np.float64), "b": gym.spaces.Discrete(3)})
        action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return {"a": np.zeros(2), "b": 1}, {}

        def step(self, action):
            return {"a": np.zeros(2), "b": 2}, float(action.sum()), False, bool(self.np_random.random() < 0.1), {}

    seen = []

    class Look(pl.Callback):
        def on_env_step(self, trainer, module, transition):
            seen.append(transition)

    fit(small_a2c(v_trace=True), AsyncStrategy(2, mode="actor_learner"), Look(), env=Parts, max_steps=100)
    assert {name: leaf.shape for name, leaf in seen[0].obs.items()} == {"a": (2, 2), "b": (2,)}
    assert seen[0].obs["a"].dtype == np.float32
    assert seen[0].action.shape == seen[0].extras["sample"].shape == (2, 2)
    for transition in seen:
        is_there = np.ones(2) if transition.valid is None else transition.valid
        np.testing.assert_allclose(transition.reward, is_there * transition.action.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["auto", "async"])
def test_evaluation_in_the_background_is_of_the_step_it_began_at(strategy, tmp_path):
    best, keep = BestAgent(dirpath=tmp_path), KeepWeights()
    evaluation = Evaluation(5, every_n_steps=500, in_background=True, seed=3)
    trainer = fit(small_a2c(), strategy, evaluation, keep, best, max_steps=20_000, default_root_dir=tmp_path)
    steps = [step for step, _, _ in keep.at]
    assert len(steps) >= 2 and steps == sorted(set(steps)) and steps[-1] == trainer.global_step
    saved = torch.load(best.best_model_path, weights_only=True)
    assert saved["global_step"] in steps
    score = saved["callbacks"][best.state_key]["best_model_score"].item()
    assert score == best.best_model_score.item() == max(row["eval_score"] for row in evaluation.history)
    agent = RLModule.load_from_checkpoint(best.best_model_path).agent
    again = evaluate(agent, "CartPole-v1", num_episodes=5, seed=3)
    assert again.statistics()["mean"] == score
    assert_nothing_is_left()


def test_training_goes_on_while_it_is_evaluated_in_the_background():
    """An evaluation of at least a second; without it, or with it, training takes as long."""

    class Slow(gym.Wrapper):
        def step(self, action):
            time.sleep(0.05)
            return self.env.step(action)

    seen = []

    class Watch(pl.Callback):
        def on_env_step_end(self, trainer, module, transition):
            seen.append(len(evaluation.history))

    evaluation = Evaluation(1, every_n_steps=100, in_background=True, env=lambda: Slow(gym.make("CartPole-v1")))
    fit(small_a2c(), "auto", evaluation, Watch(), max_steps=2_000, enable_progress_bar=False)
    assert seen.count(0) > 150  # many steps were taken between its beginning, at 100, and its end


def test_the_seeds_of_the_workers_are_recorded(tmp_path):
    strategy = AsyncStrategy(2)
    pl.seed_everything(7)
    fit(small_a2c(), strategy, RunRecord(tmp_path), max_steps=50)
    step, seeds = (tmp_path / "seeds.txt").read_text().rstrip("\n").split("\t")
    assert step == "0" and list(map(int, seeds.split())) == strategy.seeds and len(set(strategy.seeds)) == 2
    again = AsyncStrategy(2)
    fit(small_a2c(), again, max_steps=50)
    assert again.seeds == strategy.seeds


# ---- the end of the parent -------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
import gymnasium as gym
import pytorch_lightning as pl
from rl_lightning import A2C, Trainer
from rl_lightning.callbacks import Checkpoint, Evaluation
from rl_lightning.nn import UniformWarmUp
from rl_lightning.resume_check import first_difference
from rl_lightning.strategies import AsyncStrategy

class Slow(gym.Wrapper):
    def step(self, action):
        print("evaluating", flush=True)
        time.sleep(0.05)
        return self.env.step(action)

class Tell(pl.Callback):
    def on_train_start(self, trainer, module):
        print(*trainer.rl_strategy.worker_pids.values(), flush=True)

evaluation = Evaluation(100, every_n_steps=200, env=lambda: Slow(gym.make("CartPole-v1")))
trainer = Trainer(
    max_steps=10**9, strategy=AsyncStrategy(2), callbacks=[Tell(), evaluation, Checkpoint(sys.argv[1])],
    enable_progress_bar=False, logger=False,
)
trainer.fit(A2C(num_steps=5, hidden_sizes=(16,)), "CartPole-v1")
"""


def script_in_evaluation(tmp_path):
    """A process in the middle of an evaluation, and the pids of its workers. It has no `if __name__ == "__main__"`."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(path), str(tmp_path / "saved")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines = iter(process.stdout.readline, "")
    pids = next(list(map(int, line.split())) for line in lines if line.strip().replace(" ", "").isdigit())
    assert next(line for line in lines if "evaluating" in line)
    assert len(pids) == 2 and all(map(psutil.pid_exists, pids))
    return process, pids


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    process, pids = script_in_evaluation(tmp_path)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5.0
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(gone, pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_evaluation_stops_all_and_saves(number, tmp_path):
    process, pids = script_in_evaluation(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (1 if number == signal.SIGINT else 0), errors  # as with Lightning's own Trainer
    assert all(map(gone, pids)), errors
    assert torch.load(tmp_path / "saved" / "except.ckpt", weights_only=True)["global_step"] >= 200, errors


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with a C++ compiler")
def test_learning_steps_compiled_in_the_workers_move_the_shared_weights():
    agent, strategy = small_a2c(), AsyncStrategy(1)
    first = fit(agent, strategy, max_steps=300, compile=True)
    assert first.num_updates == 60
    shared = strategy._run._shared
    for name, tensor in weights(shared.modules["agent"]).items():
        assert torch.equal(tensor, weights(agent)[name]), name
    assert all(state["step"].item() == 60 for state in first.optimizers[0].state.values())
    assert_nothing_is_left()


def test_compiling_in_workers_says_why_it_cannot():
    agent = small_a2c()
    agent.configure_optimizers = lambda: {"actor_critic": torch.optim.SGD(agent.network.parameters(), lr=0.01)}
    with pytest.warns(UserWarning, match="run uncompiled, because the optimizer actor_critic is none of"):
        fit(agent, AsyncStrategy(1), max_steps=100, compile=True)


def test_all_hooks_see_one_step_before_any_sees_the_next(tmp_path):
    path = tmp_path / "calls"

    def note(name):
        def hook(env, agent, step):
            with path.open("a") as file:
                file.write(f"{name}{step} ")

        return hook

    fit(
        small_a2c(),
        AsyncStrategy(1),
        StepHooks([note("a"), note("b")]),
        env=GymEnvModule("CartPole-v1", 2),
        max_steps=8,
    )
    assert path.read_text().split() == [f"{name}{step}" for step in range(1, 9) for name in "ab"]
