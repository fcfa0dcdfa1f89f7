"""The command line, its configs, and Lightning's own LightningCLI with our classes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning.cli import LightningCLI

from rl_lightning import PPO, RLModule, Trainer
from rl_lightning.cli import RLCLI, main
from rl_lightning.envs import EnvModule, GymEnvModule

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
EXAMPLES = {path.stem for path in (ROOT / "examples").glob("*.py")}
SMALL = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
MODEL = ["--model.agent=rl_lightning.PPO", "--model.agent.num_steps=8"]
CARTPOLE = ["--data=rl_lightning.envs.GymEnvModule", "--data.id=CartPole-v1"]


@pytest.fixture(autouse=True)
def own_command_line(monkeypatch):
    """LightningCLI warns where it is given arguments, and pytest's own are in the way."""
    monkeypatch.setattr(sys, "argv", ["rl-lightning"])


def config_of(path):
    return yaml.safe_load(path.read_text())


EXTRAS = {"LunarLander": "Box2D", "ALE/": "ale_py"}
EXTRAS |= dict.fromkeys(["InvertedPendulum", "Hopper", "HalfCheetah", "Walker2d"], "mujoco")
SHORTER = {"learning_starts": 200, "buffer_size": 2_000, "num_steps": 64}
"""What an agent's arguments are at most, so that it learns within 600 env steps."""
SHORT_GAMES = {"eval_env_kwargs": '{"max_num_frames_per_episode": 80}', "num_envs": 2}


def shorter(path):
    """Arguments that make a config's run one of 600 env steps, which for Atari's games are 2,400 frames."""
    config = config_of(path)
    given = config["model"]["agent"]["init_args"]
    limits = {name: limit for name, limit in SHORTER.items() if given.get(name, 0) > limit}
    games = SHORT_GAMES if config["data"]["init_args"]["id"].startswith("ALE/") else {}
    if games and "batch_size" in given:
        limits["batch_size"] = 4
    own = [f"--model.agent.{name}={limit}" for name, limit in limits.items()]
    data = [f"--data.{name}={value}" for name, value in games.items()]
    return ["--trainer.max_steps=600", "--trainer.steps_per_epoch=300", *own, *data]


def _by_cost(path):
    """The config as a parameter: what differs from another one by its env alone runs in the slow lane."""
    others = ("rainbow_lunarlander", "iqn_pong")
    is_twin = path.stem.endswith(("_walker2d", "_half_cheetah", "_breakout")) or path.stem in others
    return pytest.param(path, id=path.stem, marks=(pytest.mark.slow, pytest.mark.ci) if is_twin else ())


@pytest.mark.parametrize("path", [_by_cost(path) for path in CONFIGS])
def test_configs_run_as_they_are_only_shorter(path, tmp_path):
    for name, package in EXTRAS.items():
        if name in path.read_text():
            pytest.importorskip(package)
    main(["fit", f"--config={path}", *SMALL, *shorter(path)])
    run = tmp_path / "lightning_logs/version_0"
    scores = (run / "scores.txt").read_text().splitlines()
    assert scores[0].split("\t")[:8] == ["steps", "episodes", "elapsed", "mean", "median", "stdev", "max", "min"]
    assert [int(row.split("\t")[0]) >= 300 for row in scores[1:]] == [True] * (len(scores) - 1)
    assert (run / "checkpoints/best.ckpt").exists()
    assert list(run.glob("events.out.tfevents*"))
    assert config_of(run / "config.yaml")["data"] == config_of(run / "config.yaml")["data"]


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in EXAMPLES], ids=lambda path: path.stem)
def test_examples_are_the_same_runs_in_python(path):
    """Every number of a config stands in the example of the same name."""
    source = (ROOT / "examples" / f"{path.stem}.py").read_text()
    assert f"configs/{path.name}" in source
    agent = config_of(path)["model"]["agent"]
    assert agent["class_path"].rpartition(".")[2] in source
    for name, value in agent["init_args"].items():
        written = tuple(value) if isinstance(value, list) else value
        texts = {repr(written), f"{written:_}" if isinstance(written, int) else "", repr(written).replace("'", '"')}
        texts |= (
            {f"{written:.{digits}e}".replace("e-0", "e-") for digits in (0, 1)} if isinstance(value, float) else set()
        )
        assert any(f"{name}={text}" in source for text in texts if text), (name, value)


def test_print_config(capsys):
    with pytest.raises(SystemExit):
        main(["fit", f"--config={CONFIGS[0]}", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["log_every_n_steps"] is None
    assert printed["model"]["agent"]["class_path"].startswith("rl_lightning.")


def test_help_knows_our_arguments_and_lightnings(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    for argument in (
        "--trainer.steps_per_epoch",
        "--trainer.max_steps",
        "--trainer.precision",
        "--ckpt_path",
        "--data",
    ):
        assert argument in text


def test_overrides_on_the_command_line():
    arguments = ["--seed_everything=3", "--trainer.max_steps=77", "--model.agent.lr=0.5", "--data.num_envs=3"]
    cli = RLCLI([f"--config={ROOT / 'configs/ppo_cartpole.yaml'}", *SMALL, *arguments], run=False)
    assert cli.trainer.max_steps == 77
    assert cli.model.agent.lr == 0.5
    assert cli.datamodule.recipe("train").num_envs == 3


def test_fit_then_validate_test_and_predict_from_the_checkpoint(tmp_path, capsys):
    common = ["--seed_everything=1", *SMALL, *MODEL, *CARTPOLE]
    callbacks = ["--trainer.callbacks+=rl_lightning.callbacks.Evaluation", "--trainer.callbacks.num_episodes=2"]
    best = ["--trainer.callbacks+=rl_lightning.callbacks.BestAgent"]
    main(["fit", *common[1:], common[0], "--trainer.max_steps=100", *callbacks, *best])
    path = tmp_path / "lightning_logs/version_0/checkpoints/best.ckpt"
    for command in ("validate", "test", "predict"):
        main([command, *common, *callbacks, *best, f"--ckpt_path={path}"])
    text = capsys.readouterr().out
    assert "eval/mean" in text
    assert "test/mean" in text


@pytest.mark.parametrize("subclass_mode", [True, False])
def test_lightnings_own_cli_with_our_classes(subclass_mode):
    data = EnvModule if subclass_mode else GymEnvModule
    env = CARTPOLE if subclass_mode else ["--data.id=CartPole-v1"]
    cli = LightningCLI(
        RLModule,
        data,
        subclass_mode_data=subclass_mode,
        trainer_class=Trainer,
        args=["fit", "--seed_everything=0", *SMALL, "--trainer.max_steps=64", *MODEL, *env],
    )
    assert cli.trainer.global_step == 64
    assert isinstance(cli.model.agent, PPO)


def test_linked_seed_gives_the_run_again():
    def weights():
        arguments = ["--seed_everything=5", "--trainer.max_steps=64", *MODEL, *CARTPOLE]
        cli = RLCLI([*arguments, *SMALL, "--trainer.enable_checkpointing=false"], run=False)
        cli.trainer.fit(cli.model, cli.datamodule)
        return torch.cat([parameter.detach().flatten() for parameter in cli.model.parameters()])

    assert torch.equal(weights(), weights())


def test_python_m_is_the_command():
    command = [sys.executable, "-m", "rl_lightning", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, cwd=ROOT)
    assert "fit" in result.stdout
    assert "predict" in result.stdout


VALUES = []


def remember(env, agent, value):
    VALUES.append(round(value, 3))


def test_hooks_and_records_by_config(tmp_path):
    """What scripts can do, configs can."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
        seed_everything: 0
        model: {{agent: {{class_path: PPO, init_args: {{num_steps: 4, num_minibatches: 1}}}}}}
        data: {{class_path: GymEnvModule, init_args: {{id: CartPole-v1}}}}
        trainer:
          max_steps: 5
          default_root_dir: {tmp_path}
          enable_progress_bar: false
          callbacks:
            - class_path: RunRecord
            - class_path: StepHooks
              init_args:
                hooks:
                  - class_path: rl_lightning.experiments.LinearInterpolationHook
                    init_args:
                      {{total_steps: 3, start_value: 1.0, stop_value: 0.0, setter: {__name__}.remember}}
        """
    )
    main(["fit", f"--config={config}"])
    assert sys.modules[__name__].VALUES == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert list(tmp_path.rglob("command.txt"))


def test_compile_is_an_argument_like_others():
    cli = RLCLI([f"--config={ROOT / 'configs/ppo_cartpole.yaml'}", *SMALL, "--trainer.compile=true"], run=False)
    assert cli.trainer.compile is True and cli.trainer.init_args["compile"] is True


def test_check_resume_says_that_nothing_differs(capsys):
    arguments = ["--model.agent.num_steps=32", "--model.agent.hidden_sizes=[8]", "--seed_everything=3"]
    config = str(CONFIGS[0].parent / "ppo_cartpole.yaml")
    with pytest.raises(SystemExit, match="0"):
        main(["check-resume", "--config", config, "--steps", "700", *arguments])
    assert "Nothing differs after 1_400 env steps" in capsys.readouterr().out
