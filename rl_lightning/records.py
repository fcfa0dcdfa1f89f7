"""What a run needs to be repeated from its directory: arguments, command, packages, code, surroundings."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rl_lightning.files import whole_file

HIDDEN = "***"
_SECRET_WORD = re.compile(r"pwd|auth|\w*(password|passwd|passphrase|secret|credential|(api|access|private)key)s?")
_SECRET_ENDS = {("token",), *((kind, key) for kind in ("api", "access", "private") for key in ("key", "keys"))}
_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
_NAME = re.compile(r"""(?<![\w-])([\w-]+)["']?\s*[=:]\s*""")
"""Up to the value in `name=value`, `name: value` and `"name": "value"`, anywhere in a text."""
_VALUE = re.compile(r""""[^"]*"|'[^']*'|["']?[^\s,;&"'()\[\]{}]+""")
_MOST_NUMBERS = 1_000
"""Longer arrays are written as their `repr`, which leaves most of them out."""
_DEEPEST = 100
_MOST_BITS = 2_000
"""Python writes no longer integers in decimal digits, if told so."""
_HARMLESS = re.compile(
    r"(LANG|LC_\w+|TZ|(OMP|MKL|OPENBLAS|NUMEXPR|VECLIB_MAXIMUM)_NUM_THREADS|OMP_\w+|CUDA_VISIBLE_DEVICES"
    r"|CUDA_DEVICE_ORDER|CUBLAS_WORKSPACE_CONFIG|CUDA_LAUNCH_BLOCKING|PYTHONHASHSEED|PYTHONOPTIMIZE|PL_GLOBAL_SEED"
    r"|PYTORCH_\w*ALLOC_CONF|CONDA_DEFAULT_ENV|VIRTUAL_ENV|MUJOCO_GL|PYOPENGL_PLATFORM|SDL_VIDEODRIVER"
    r"|RANK|LOCAL_RANK|NODE_RANK|WORLD_SIZE|SLURM_(JOB_ID|ARRAY_JOB_ID|ARRAY_TASK_ID|NTASKS|NNODES|PROCID|LOCALID))"
)
"""Names of environment variables that may be written down."""
_GIT_TIMEOUT_S = 20
DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--binary", "HEAD")
"""The git command for all changes since the last commit, whatever the user has configured."""


def record_run(
    directory: str | Path,
    arguments: Any,
    *,
    argv: Sequence[str] | None = None,
    everything_of_environ: bool = False,
) -> None:
    """Write down what is needed to repeat a run; what looks like a secret is left out.

    Files: `args.txt` (JSON), `command.txt`, `environ.txt` (JSON), `packages.txt`, `start.txt` (one line a start), and
    of the git repository that the current directory is in, if any, `git-head.txt`, `git-status.txt` with every
    untracked file, `git-log.txt` (the last 20 commits) and `git-diff.txt`, which holds the changes as they are.

    Args:
        directory: made if it is not there.
        arguments: a dict, an `argparse.Namespace`, or anything else; what JSON does not know is written as its `repr`.
        argv: the command. None: that of this process.
        everything_of_environ: write down all environment variables, secrets included, not only those known as harmless.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if everything_of_environ or _HARMLESS.fullmatch(name)}
    texts = {
        "args.txt": json.dumps(plain(arguments), indent=2) + "\n",
        "command.txt": shlex.join(mask_command(sys.argv if argv is None else argv)) + "\n",
        "environ.txt": json.dumps(environ, indent=2, sort_keys=True) + "\n",
        "packages.txt": _packages(),
        **_git_state(),
    }
    for name, text in texts.items():
        if text is None:
            (directory / name).unlink(missing_ok=True)  # what an earlier start found is not true of this one
            continue
        with whole_file(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    with (directory / "start.txt").open("a") as file:
        file.write(datetime.now().isoformat() + "\n")


def plain(value: Any, _outer: tuple[int, ...] = ()) -> Any:
    """`value` as JSON knows it: secrets hidden, what has no counterpart as its `repr`, a circle as "..."."""
    try:
        return _plain(value, _outer)
    except Exception as error:  # a record must not end a run
        return f"<{type(value).__name__} that raised {type(error).__name__}>"


def _plain(value: Any, outer: tuple[int, ...]) -> Any:
    if isinstance(value, str):
        return _mask_text(value)
    if isinstance(value, int):
        return value if value.bit_length() <= _MOST_BITS else hex(value)
    if value is None:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if id(value) in outer or len(outer) == _DEEPEST:
        return "..."
    inner = (*outer, id(value))
    if isinstance(value, argparse.Namespace):
        return plain(vars(value), inner)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        named = {_text(str, key): item for key, item in value.items()}
        return {
            name: HIDDEN if is_secret(name) and item is not None else plain(item, inner) for name, item in named.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, inner) for item in value]
    numbers = _numbers(value)
    if numbers is not None:
        return plain(numbers, inner)
    return _text(str if isinstance(value, os.PathLike) else repr, value)


def described(value: Any, levels: int = 2) -> Any:
    """`value` for `plain`, where objects that say nothing of themselves become their class and constructor's arguments.

    Those are read from attributes of the same names, perhaps with an underscore; an argument that is kept under no such
    name is left out. Functions and classes become their names.

    Args:
        value: as for `plain`.
        levels: how deep objects within objects are described so.
    """
    if isinstance(value, dict):
        return {name: described(item, levels) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item, levels) for item in value]
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    kind = type(value)
    speaks = {name: getattr(kind, name) is not getattr(object, name) for name in ("__repr__", "__str__")}
    if levels == 0 or speaks["__repr__"]:
        return value
    if speaks["__str__"]:  # as gymnasium's envs
        return _text(str, value)
    try:
        arguments = {name: described(item, levels - 1) for name, item in _constructor_arguments(value)}
    except Exception:  # a record must not end a run
        return value
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def _constructor_arguments(value: Any) -> Iterator[tuple[str, Any]]:
    for name in inspect.signature(type(value)).parameters:
        for attribute in (name, f"_{name}"):
            if hasattr(value, attribute):
                yield name, getattr(value, attribute)
                break


def _numbers(value: Any) -> Any:
    """What an array, a tensor or a number of either holds, if that is not too long; None for anything else."""
    try:
        numbers = value.tolist() if math.prod(value.shape) <= _MOST_NUMBERS else None
    except Exception:  # no array, or one without data
        return None
    return numbers if isinstance(numbers, list | bool | int | float | str) else None


def _text(convert: Callable[[Any], str], value: Any) -> str:
    try:
        return _mask_text(convert(value))
    except Exception as error:  # a record must not end a run
        return f"<{type(value).__name__} whose {convert.__name__} raised {type(error).__name__}>"


def _mask_text(text: str) -> str:
    text = _CREDENTIALS_IN_URL.sub(HIDDEN, text)
    masked, end = "", 0
    for name in _NAME.finditer(text):
        if name.start() >= end and is_secret(name[1]) and (value := _VALUE.match(text, name.end())):
            masked += text[end : name.end()] + HIDDEN
            end = value.end()
    return masked + text[end:]


def is_secret(name: str) -> bool:
    """Whether a value of this name should not be written down: `api_key`, `authToken`; but not `max_tokens`."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    ends = {tuple(words[-1:]), tuple(words[-2:])}
    return bool(ends & _SECRET_ENDS) or any(_SECRET_WORD.fullmatch(word) for word in words)


def mask_command(argv: Sequence[str]) -> list[str]:
    """The command without its secrets: values whose names tell, also within an argument, and credentials in URLs."""
    masked: list[str] = []
    hide_next = False
    for argument in map(str, argv):
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("-"):
            masked.append(HIDDEN)
            hide_next = False
            continue
        secret = is_secret(name) and (name.startswith("-") or bool(equals))
        hide_next = secret and not equals
        masked.append(f"{name}={HIDDEN}" if secret and equals else _mask_text(argument))
    return masked


def _packages() -> str:
    versions = {f"{package.name}=={package.version}" for package in metadata.distributions() if package.name}
    where = f"# Python {platform.python_version()}, {platform.platform()}"
    return "\n".join([where, *sorted(versions, key=str.lower)]) + "\n"


def _git_state() -> dict[str, str | None]:
    """The texts of the git files; None where there is no repository, or no commit in it."""
    commands = {
        "git-head.txt": ("rev-parse", "--verify", "HEAD"),
        "git-status.txt": ("status", "--short", "--branch", "--untracked-files=all"),
        "git-log.txt": ("log", "-20"),
        "git-diff.txt": DIFF,
    }
    return {name: git(*command) for name, command in commands.items()}


def git(*command: str) -> str | None:
    """What a git command prints in the current directory; None where it fails, or git or a repository is missing."""
    # Without locks: a commit that somebody makes at the same moment must not fail.
    full = ["git", "--no-optional-locks", "-c", "color.ui=false", *command]
    try:
        done = subprocess.run(full, capture_output=True, timeout=_GIT_TIMEOUT_S, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="backslashreplace")
