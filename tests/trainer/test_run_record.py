"""Any run can be recorded, and repeated from its record."""

import importlib
import json
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from rl_lightning import Trainer
from rl_lightning.agents import Agent
from rl_lightning.callbacks import BestAgent, Checkpoint, Evaluation, LinearInterpolation, RunRecord, StepHooks
from rl_lightning.cli import RLCLI
from rl_lightning.envs import EnvRecipe, GymEnvModule
from rl_lightning.experiments import LinearInterpolationHook
from rl_lightning.memory import ReplayMemory
from rl_lightning.module import RLModule
from tests.trainer.helpers import quiet, small_dqn, small_ppo


def recorded(path):
    (record,) = path.rglob("args.txt")
    return json.loads(record.read_text())


def test_a_run_in_python(tmp_path):
    pl.seed_everything(3)
    trainer = Trainer(max_steps=32, default_root_dir=tmp_path, **quiet(RunRecord()))
    trainer.fit(small_ppo(lr=0.25), GymEnvModule("CartPole-v1", num_envs=2))
    arguments = recorded(tmp_path)
    assert arguments["seed"] == 3
    assert arguments["trainer"]["max_steps"] == 32
    assert arguments["agent"]["class"] == "PPO" and arguments["agent"]["init_args"]["lr"] == 0.25
    assert (arguments["env"]["source"], arguments["env"]["num_envs"]) == ("CartPole-v1", 2)
    assert (tmp_path / "packages.txt").exists()


def set_nothing(env, agent, value):
    """A setter."""


def test_what_callbacks_trainer_memory_and_evaluation_were_told(tmp_path):
    hook = LinearInterpolationHook(5, 1.0, 0.0, set_nothing)
    callbacks = [
        RunRecord(),
        Evaluation(num_episodes=1, every_n_steps=16, seed=4),
        StepHooks([hook]),
        LinearInterpolation("epsilon", start_value=1.0, stop_value=0.5, total_steps=9),
        EarlyStopping("eval/mean", mode="max", patience=7),
        Checkpoint(dirpath=tmp_path / "kept", every_n_train_steps=16),
    ]
    memory = ReplayMemory(100, num_envs=2, batch_size=4, learning_starts=8, updates_per_step=0.5)
    trainer = Trainer(max_steps=34, log_every_n_steps=7, default_root_dir=tmp_path, **quiet(*callbacks))
    data = GymEnvModule("CartPole-v1", num_envs=2, num_eval_envs=1)
    trainer.fit(RLModule(small_dqn(), memory), data, step_offset=2)
    arguments = recorded(tmp_path)
    told = {given["class"].rpartition(".")[2]: given["init_args"] for given in arguments["trainer"]["callbacks"]}
    assert told["Evaluation"].items() >= {"num_episodes": 1, "every_n_steps": 16, "seed": 4}.items()
    (of_hook,) = told["StepHooks"]["hooks"]
    assert of_hook["class"] == "rl_lightning.experiments.hooks.LinearInterpolationHook"
    expected = {"total_steps": 5, "start_value": 1.0, "stop_value": 0.0, "setter": f"{__name__}.set_nothing"}
    assert of_hook["init_args"] == expected
    assert told["LinearInterpolation"]["total_steps"] == 9
    assert told["EarlyStopping"]["patience"] == 7
    assert told["Checkpoint"].items() >= {"every_n_train_steps": 16, "dirpath": str(tmp_path / "kept")}.items()
    given = {"log_every_n_steps": 7, "num_sanity_val_steps": 0, "strategy": "auto", "steps_per_epoch": 10_000}
    assert arguments["trainer"].items() >= given.items()
    assert arguments["fit"] == {"ckpt_path": None, "weights_only": None, "step_offset": 2}
    assert arguments["memory"]["class"].endswith("ReplayMemory")
    assert arguments["memory"]["init_args"].items() >= {"capacity": 100, "batch_size": 4, "num_envs": 2}.items()
    assert (arguments["env"]["num_envs"], arguments["eval_env"]["num_envs"]) == (2, 1)


def test_the_checkpoint_that_a_run_went_on_from(tmp_path):
    checkpoint = Checkpoint(dirpath=tmp_path / "kept", save_last=True)
    Trainer(max_steps=16, **quiet(checkpoint)).fit(small_ppo(), "CartPole-v1")
    again = Trainer(max_steps=32, default_root_dir=tmp_path, **quiet(checkpoint, RunRecord()))
    with pytest.warns(UserWarning, match="exists and is not empty"):
        again.fit(small_ppo(), "CartPole-v1", ckpt_path="last")
    assert recorded(tmp_path)["fit"]["ckpt_path"] == str(tmp_path / "kept/last.ckpt")


class Secretive(pl.Callback):
    def __init__(self, api_key, url):
        self._api_key, self.url = api_key, url


class Broken(pl.Callback):
    """Has an attribute that cannot be read."""

    def __init__(self, broken=None): ...

    @property
    def broken(self):
        raise RuntimeError("no")


def test_no_secret_of_a_callback_is_written_down(tmp_path):
    callbacks = quiet(RunRecord(), Secretive("s3cr3t", "https://me:s3cr3t@example.org"), Broken())
    Trainer(max_steps=8, default_root_dir=tmp_path, **callbacks).fit(small_ppo(), "CartPole-v1")
    assert not [path for path in tmp_path.iterdir() if "s3cr3t" in path.read_text()]
    secretive = recorded(tmp_path)["trainer"]["callbacks"][1]
    assert secretive["init_args"] == {"api_key": "***", "url": "https://***@example.org"}


def test_the_state_of_the_git_repository(tmp_path):
    """The current directory is `tmp_path`."""
    identity = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    (tmp_path / "code.py").write_text("a = 1\n")
    for command in (["init"], ["add", "."], [*identity, "commit", "-m", "first"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    (tmp_path / "code.py").write_text("a = 2\n")
    (tmp_path / "untracked.py").write_text("")
    Trainer(max_steps=8, **quiet(RunRecord(tmp_path / "record"))).fit(small_ppo(), "CartPole-v1")
    read = {path.name: path.read_text() for path in (tmp_path / "record").iterdir()}
    assert "?? untracked.py" in read["git-status.txt"]
    assert "-a = 1\n+a = 2" in read["git-diff.txt"]
    assert read["git-head.txt"].strip() in read["git-log.txt"]


# ---- runs, and their repetitions -------------------------------------------------------------------------------------


def weights(agent):
    return torch.nn.utils.parameters_to_vector(agent.parameters())


def test_a_run_by_config(tmp_path, monkeypatch):
    """`config.yaml` runs the same again."""
    monkeypatch.setattr(sys, "argv", ["train.py"])  # LightningCLI warns of two sources
    arguments = [
        "fit",
        "--model.agent=PPO",
        "--model.agent.num_steps=8",
        "--data=GymEnvModule",
        "--data.id=CartPole-v1",
    ]
    arguments += ["--trainer.max_steps=64", "--trainer.callbacks+=RunRecord", f"--trainer.default_root_dir={tmp_path}"]
    first = RLCLI([*arguments, "--trainer.enable_progress_bar=false", "--seed_everything=4"])
    config = recorded(tmp_path)["config"]
    assert config["seed_everything"] == 4
    assert config["data"]["init_args"]["id"] == "CartPole-v1"
    (path,) = tmp_path.rglob("config.yaml")
    again = RLCLI(["fit", f"--config={path}"])
    assert again.trainer.log_dir != first.trainer.log_dir
    assert torch.equal(weights(again.model), weights(first.model))


def made(description):
    """What a record describes."""
    module, _, name = description["class"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**description["init_args"])


def test_a_run_in_python_is_repeated_from_its_arguments(tmp_path):
    pl.seed_everything(5)
    callbacks = quiet(RunRecord(tmp_path), Evaluation(num_episodes=2, every_n_steps=32), BestAgent(dirpath=tmp_path))
    agent = small_ppo(lr=0.01)
    Trainer(max_steps=96, **callbacks).fit(agent, GymEnvModule("CartPole-v1", num_envs=2))
    arguments = recorded(tmp_path)
    pl.seed_everything(arguments["seed"])
    again = Agent.registry[arguments["agent"]["class"]](**arguments["agent"]["init_args"])
    given = {**arguments["trainer"], "callbacks": [made(callback) for callback in arguments["trainer"]["callbacks"]]}
    trainer = Trainer(**given)
    trainer.fit(again, EnvRecipe(**arguments["env"]), **arguments["fit"])
    assert trainer.global_step == 96
    assert torch.equal(weights(again), weights(agent))


def test_a_directory_of_its_own_and_none_for_a_trial(tmp_path):
    record = RunRecord(tmp_path / "record")
    Trainer(max_steps=32, fast_dev_run=True, **quiet(record)).fit(small_ppo(), "CartPole-v1")
    assert not (tmp_path / "record").exists()
    Trainer(max_steps=32, **quiet(record, Evaluation(num_episodes=1))).fit(small_ppo(), "CartPole-v1")
    assert (tmp_path / "record/command.txt").exists()
