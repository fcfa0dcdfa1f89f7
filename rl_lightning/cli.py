"""The command line: `rl-lightning fit --config configs/ppo_cartpole.yaml`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from pytorch_lightning.cli import ArgsType, LightningCLI

from rl_lightning.env_module import EnvModule
from rl_lightning.module import RLModule
from rl_lightning.resume_check import check_resume
from rl_lightning.trainer import Trainer


class RLCLI(LightningCLI):
    """`LightningCLI` for agents and envs: subcommands fit, validate, test, predict.

    `model.agent` and `data` name a class and its arguments; everything can also be given on the command line.
    """

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        super().__init__(RLModule, EnvModule, subclass_mode_data=True, trainer_class=Trainer, args=args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's methods, and those of their arguments that `model` and `data` stand for."""
        return {name: {"model", "env", "datamodule"} for name in ("fit", "validate", "test", "predict")}


def main(args: ArgsType = None) -> None:
    """Run the command line: the subcommands of `RLCLI`, and `check-resume` (see `rl_lightning.resume_check`)."""
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list) and words[:1] == ["check-resume"]:
        sys.exit(_check_resume(words[1:]))
    RLCLI(args, parser_kwargs={"description": "Train, validate, test or run a reinforcement-learning agent."})


def _check_resume(args: list[str]) -> int:
    """`rl-lightning check-resume`. Returns the exit status: 0 where nothing differs."""
    description = "Run an experiment straight and interrupted, and say what differs: nothing, if it resumes exactly."
    parser = argparse.ArgumentParser("rl-lightning check-resume", description=description)
    parser.add_argument("--config", required=True, help="the experiment")
    parser.add_argument(
        "--steps", type=int, required=True, help="env steps before the interruption, and again after it"
    )
    known, others = parser.parse_known_args(args)
    if known.steps < 1:
        parser.error(f"--steps {known.steps}: it must be at least 1.")

    def make(directory: Path) -> tuple[Trainer, RLModule, EnvModule]:
        quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        where = ["--trainer.default_root_dir", str(directory), "--trainer.max_steps", str(2 * known.steps)]
        cli = RLCLI(["--config", known.config, *others, *quiet, *where], run=False)
        assert isinstance(cli.trainer, Trainer) and isinstance(cli.model, RLModule)
        assert isinstance(cli.datamodule, EnvModule)
        return cli.trainer, cli.model, cli.datamodule

    with tempfile.TemporaryDirectory() as directory:
        found = check_resume(make, Path(directory))
    if found is None:
        print(f"Nothing differs after {2 * known.steps:_} env steps: {known.config} resumes exactly.")
        return 0
    print(f"The straight and the resumed run of {known.config} differ, first in {found}")
    return 1


if __name__ == "__main__":
    main()
