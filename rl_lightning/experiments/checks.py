"""What cannot work, found before any step; and the directories, made ready."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from rl_lightning.agents import ForeignAgent, as_agent
from rl_lightning.experiments.directories import put_back
from rl_lightning.experiments.evaluator import Evaluator
from rl_lightning.types import ConfigurationError


def check_hooks(hooks: Sequence[Any], flag: str, function: str) -> None:
    """Whether the evaluation hooks work in a function.

    Raises:
        ConfigurationError: one does not.
    """
    for hook in hooks:
        if not getattr(hook, flag, False):
            raise ConfigurationError(f"{hook} does not support {function}().")


def prepare_run(agent: Any, steps: int, step_offset: int, outdir: Path, evaluator: Any) -> None:
    """Check the arguments that go together, and make the directories ready.

    Args: those of `train_agent`.
    Raises:
        ConfigurationError: arguments that cannot work, or a directory that cannot be written or holds another run.
    """
    _check_agent(agent, outdir, evaluator)
    _check_steps(steps, step_offset, evaluator)
    _make_ready(outdir)
    if isinstance(evaluator, Evaluator):
        _make_ready(evaluator.outdir)
        _check_is_fresh(evaluator.outdir, step_offset)


def _check_agent(agent: Any, outdir: Path, evaluator: Any) -> None:
    name = type(agent).__name__
    if isinstance(as_agent(agent), ForeignAgent) and not callable(getattr(agent, "save", None)):
        raise ConfigurationError(
            f"{name} has no save(dirname), and {outdir} gets at least the agent that training ends with. Add it, or "
            "train without directories: Trainer(max_steps=..., enable_checkpointing=False).fit(agent, env)."
        )
    if isinstance(evaluator, Evaluator) and evaluator.agent is not agent:
        raise ConfigurationError(
            f"The Evaluator was made for another agent, a {type(evaluator.agent).__name__}, than this {name}, which it "
            "would evaluate. Make both with the same object."
        )


def _check_steps(steps: int, step_offset: int, evaluator: Any) -> None:
    if not (isinstance(steps, Integral) and isinstance(step_offset, Integral) and 0 <= step_offset < steps):
        raise ConfigurationError(
            f"steps={steps!r}, step_offset={step_offset!r}: `steps` counts all env steps, and must be more than those "
            "that were taken before, which are at least 0; both are whole numbers."
        )
    if isinstance(evaluator, Evaluator) and evaluator.step_offset != step_offset:
        raise ConfigurationError(f"step_offset={step_offset}, and the Evaluator's is {evaluator.step_offset}.")


def _make_ready(outdir: Path) -> None:
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=outdir):
            pass
        put_back(outdir)
    except OSError as error:
        raise ConfigurationError(
            f"outdir={str(outdir)!r} cannot be written to ({error}). Choose another directory, or mend this one."
        ) from error


def _check_is_fresh(outdir: Path, step_offset: int) -> None:
    """Refuse to begin where another run has left its scores or its best agent."""
    there = [name for name in ("scores.txt", "best") if (outdir / name).exists()]
    if step_offset == 0 and there:
        raise ConfigurationError(
            f"{outdir} holds the {' and '.join(there)} of another run. Choose another directory, such as "
            "prepare_output_dir(args, exp_id=...) with a fresh name (without exp_id, the same code and command share "
            "one), or go on with that run: give step_offset= the env steps it has taken, and its agent."
        )
