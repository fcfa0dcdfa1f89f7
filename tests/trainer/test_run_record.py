"""Any run can be recorded."""

import json
import sys

import pytorch_lightning as pl

from rl_lightning import Trainer
from rl_lightning.callbacks import Evaluation, RunRecord
from rl_lightning.cli import main
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import quiet, small_ppo


def test_a_run_in_python(tmp_path):
    pl.seed_everything(3)
    trainer = Trainer(max_steps=32, default_root_dir=tmp_path, **quiet(RunRecord()))
    trainer.fit(small_ppo(lr=0.25), GymEnvModule("CartPole-v1", num_envs=2))
    arguments = json.loads((tmp_path / "args.txt").read_text())
    assert arguments["seed"] == 3
    assert arguments["trainer"]["max_steps"] == 32
    assert arguments["agent"]["class"] == "PPO" and arguments["agent"]["init_args"]["lr"] == 0.25
    assert (arguments["env"]["source"], arguments["env"]["num_envs"]) == ("CartPole-v1", 2)
    assert (tmp_path / "packages.txt").exists()


def test_a_run_by_config(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])  # LightningCLI warns of two sources
    arguments = ["fit", "--model.agent=PPO", "--data=GymEnvModule", "--data.id=CartPole-v1"]
    arguments += ["--trainer.max_steps=32", "--trainer.callbacks+=RunRecord", f"--trainer.default_root_dir={tmp_path}"]
    main([*arguments, "--trainer.enable_progress_bar=false", "--seed_everything=4"])
    (record,) = tmp_path.rglob("args.txt")
    config = json.loads(record.read_text())["config"]
    assert config["seed_everything"] == 4
    assert config["data"]["init_args"]["id"] == "CartPole-v1"


def test_a_directory_of_its_own_and_none_for_a_trial(tmp_path):
    record = RunRecord(tmp_path / "record")
    Trainer(max_steps=32, fast_dev_run=True, **quiet(record)).fit(small_ppo(), "CartPole-v1")
    assert not (tmp_path / "record").exists()
    Trainer(max_steps=32, **quiet(record, Evaluation(num_episodes=1))).fit(small_ppo(), "CartPole-v1")
    assert (tmp_path / "record/command.txt").exists()
