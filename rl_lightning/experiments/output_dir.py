"""Where a run goes, and by what name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from zlib import crc32

from rl_lightning.records import DIFF, git, record_run
from rl_lightning.types import ConfigurationError


def generate_exp_id(prefix: str | None = None, argv: Sequence[str] = sys.argv) -> str:
    """A name that is the same for the same code and command, and another for any others.

    Args:
        prefix: what it starts with.
        argv: the command.
    Returns:
        prefix, commit, checksum of the changes since, checksum of the command, joined by "-". Without a git repository,
        or one without commits, it says so in their place. Untracked files do not count.
    """
    commit, changes = git("rev-parse", "--verify", "HEAD"), git(*DIFF)
    if commit is None:
        code = ["nogit" if git("rev-parse") is None else "nocommit"]
    else:
        code = [commit.strip(), "unknown" if changes is None else _checksum(changes)]
    return "-".join([*([] if prefix is None else [prefix]), *code, _checksum("\0".join(map(str, argv)))])


def prepare_output_dir(
    args: Any,
    basedir: str | Path | None = None,
    exp_id: str | None = None,
    argv: Sequence[str] | None = None,
    time_format: str = "%Y%m%dT%H%M%S.%f",
    make_backup: bool = True,
) -> str:
    """Make a directory for a run, with a record of it (see `rl_lightning.records.record_run`).

    Args:
        args: the run's arguments: a dict, an `argparse.Namespace`, or anything else.
        basedir: where. None: the current directory.
        exp_id: its name. None: `generate_exp_id(argv=argv)` in a git repository, the time elsewhere.
        argv: the command. None: that of this process.
        time_format: of the time in names.
        make_backup: copy a directory that is there already to `{name}.{time}.backup`.
    Returns:
        the directory's path.
    Raises:
        ConfigurationError: it cannot be written, or not be copied.
    """
    argv = sys.argv if argv is None else argv
    time = datetime.now().strftime(time_format)
    if exp_id is None:
        exp_id = time if git("rev-parse") is None else generate_exp_id(argv=argv)
    outdir = Path(basedir or ".") / exp_id
    if outdir.exists() and make_backup:
        _copy(outdir, _free_name(outdir.with_name(f"{outdir.name}.{time}.backup")))
    try:
        record_run(outdir, args, argv=argv)
    except OSError as error:
        raise ConfigurationError(
            f"{outdir} cannot be written to ({error}). Choose another basedir, or mend this one."
        ) from error
    return str(outdir)


def _copy(outdir: Path, backup: Path) -> None:
    try:
        shutil.copytree(outdir, backup, symlinks=True)
    except OSError as error:
        raise ConfigurationError(
            f"{outdir} could not all be copied to {backup} ({error}). Move it away, or give make_backup=False."
        ) from error


def _free_name(path: Path) -> Path:
    """`path`, or with a number if there is one already: a `time_format` may be coarse."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _checksum(text: str) -> str:
    return f"{crc32(text.encode(errors='surrogateescape')):08x}"
