"""The command line: `rl-lightning fit --config configs/ppo_cartpole.yaml`."""

from __future__ import annotations

import sys
from typing import Any

from pytorch_lightning.cli import ArgsType, LightningCLI

from rl_lightning import resume_check
from rl_lightning.env_module import EnvModule
from rl_lightning.module import RLModule
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
        sys.exit(resume_check.main(words[1:]))
    RLCLI(args, parser_kwargs={"description": "Train, validate, test or run a reinforcement-learning agent."})


if __name__ == "__main__":
    main()
