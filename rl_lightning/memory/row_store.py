"""The rows of a replay memory in files beside the checkpoints that need them, each written once."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from rl_lightning.files import remove_leftovers, sync, whole_file
from rl_lightning.memory.row_files import RowReader, RowWriter
from rl_lightning.types import ConfigurationError

if TYPE_CHECKING:
    from rl_lightning.memory.replay import ReplayMemory

FOLDER = "memory"
"""Where the files are, beside the checkpoints."""
SHORTEST, LONGEST = 100, 20
"""A file has at least a hundredth of the rows that the memory holds, or it is written anew with what follows; and at
most a twentieth.
"""
_MOST_HOMES = 4
_GRACE_S = 3600
"""Files of other processes are younger where the checkpoint that names them may be yet to come."""


class Segment(NamedTuple):
    """A file of rows, as checkpoints name it. Its name is made of numbers, so that it leads nowhere else."""

    start: int
    stop: int
    token: int  # none but this file has it: another run's may have the same rows' numbers
    num_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return f"rows-{self.start:d}-{self.stop:d}-{self.token:016x}.npy"


class RowStore:
    """Writes what is new of a memory's rows since the last checkpoint, and knows which files have the others.

    A checkpoint holds the memory's `snapshot` and the list of segments. It takes about as long as the new rows do,
    plus at most a hundredth of all rows; the files of one checkpoint have at most a twentieth of a memory's rows more
    than the memory. Where a checkpoint goes to a directory that has the rows not yet, it gets hard links to files that
    are there already, or copies where there is no such thing.
    """

    def __init__(self, memory: ReplayMemory) -> None:
        self._memory = memory
        self._segments: list[Segment] = []
        self._moment: tuple[int, int] | None = None  # of the memory, when it was last saved
        self._homes: list[Path] = []  # directories with such files, the newest last
        self._needed: dict[Path, tuple[tuple[int, int], set[str]]] = {}  # by checkpoint, and which one it is
        self._written: set[str] = set()  # by this process: names
        self._saved: set[str] = set()  # what the last `save` named

    def save(self, directory: Path) -> dict[str, Any]:
        """Write what `directory` lacks; returns what a checkpoint in it has to hold.

        Raises:
            OSError: the disk is full, or the directory cannot be written to.
        """
        memory, folder = self._memory, directory / FOLDER
        state = memory.snapshot()
        stop, first = memory.moment[0], memory.first_row
        kept = [segment for segment in self._segments if segment.stop > first]
        if not self._are_in(folder, kept):
            kept = []
        has_changed = memory.moment != self._moment
        if has_changed:
            # the row written last may have changed since, and what is short grows
            while kept and (kept[-1].stop - kept[-1].start) * SHORTEST < memory.num_rows:
                kept.pop()
        if has_changed or not kept:
            start = max(kept[-1].stop - 1, first) if kept else first
            while kept and kept[-1].start >= start:
                kept.pop()
            longest = max(memory.num_rows // LONGEST, 1)
            kept += self._write_all(folder, [(k, min(k + longest, stop)) for k in range(start, stop, longest)])
        self._segments, self._moment = kept, memory.moment
        self._saved = {segment.name for segment in kept}
        self._go_home(directory)
        return {**state, "segments": [list(segment) for segment in kept]}

    def load(self, state: dict[str, Any], directory: Path) -> None:
        """Put back into the memory what `save` returned.

        Raises:
            ConfigurationError: files are missing, damaged or of something else; the memory is as it was.
        """
        memory, segments = self._memory, _segments_of(state)
        first = max(state["num_written"] - state["num_rows"], 0)
        memory.restore(state, _readers(segments, directory, first))
        self._segments, self._moment = segments, memory.moment
        self._written |= {segment.name for segment in segments}  # the run is the same
        self._go_home(directory)

    def moved(self, old: Path, new: Path) -> None:
        """A directory has got another name."""
        self._homes = [new if home == old else home for home in self._homes]

    def clean(
        self, directory: Path, memory_in: Callable[[Path], dict[str, Any]], *, written: Path | None = None
    ) -> None:
        """Remove the files that no checkpoint in the directory needs, and what killed processes have left.

        Args:
            directory: of checkpoints.
            memory_in: reads what `save` returned from a checkpoint; {} if there is no such thing in that file.
            written: the checkpoint that was just written there. It has what `save` returned since the last call, or
                nothing of the kind.
        """
        saved, self._saved = self._saved, set()
        folder = directory / FOLDER
        if not folder.is_dir():
            return
        remove_leftovers(folder)
        needed = {segment.name for segment in self._segments}  # their checkpoint may be on its way
        # a link and what it leads to are one
        files = {path.resolve() for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")}
        if written is not None and written.exists():
            self._needed[written.resolve()] = _version(written), saved
        for path in files:
            needed |= self._needed_by(path, memory_in)
        self._needed = {path: self._needed[path] for path in files}
        old = time.time() - _GRACE_S
        for file in folder.glob("rows-*.npy"):
            if file.name not in needed and (file.name in self._written or file.stat().st_mtime < old):
                file.unlink(missing_ok=True)
                self._written.discard(file.name)

    def _needed_by(self, path: Path, memory_in: Callable[[Path], dict[str, Any]]) -> set[str]:
        which = _version(path)
        if path not in self._needed or self._needed[path][0] != which:
            try:
                segments = _segments_of(memory_in(path))
            except ConfigurationError:  # nobody can go on from that
                segments = []
            self._needed[path] = which, {segment.name for segment in segments}
        return self._needed[path][1]

    def _are_in(self, folder: Path, segments: list[Segment]) -> bool:
        """Whether the folder has all of these files, if need be from now on."""
        missing = [segment for segment in segments if not _has(folder, segment)]
        if not missing:
            return True
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for segment in missing:
                home = next(home for home in reversed(self._homes) if _has(home / FOLDER, segment))
                os.link(home / FOLDER / segment.name, folder / segment.name)
            sync(folder)
        except (StopIteration, OSError):  # it is nowhere, or on another file system, or on one without links
            return False
        return True

    def _write_all(self, folder: Path, spans: list[tuple[int, int]]) -> list[Segment]:
        """All of them, or none."""
        written: list[Segment] = []
        try:
            for start, stop in spans:
                written.append(self._write(folder, start, stop))
        except BaseException:
            for segment in written:
                (folder / segment.name).unlink(missing_ok=True)
            raise
        self._written |= {segment.name for segment in written}
        return written

    def _write(self, folder: Path, start: int, stop: int) -> Segment:
        folder.mkdir(parents=True, exist_ok=True)
        segment = Segment(start, stop, secrets.randbits(64), 0, "")
        with whole_file(folder / segment.name) as temporary, temporary.open("wb") as file:
            hashing = _Hashing(file)
            self._memory.write_rows(RowWriter(hashing, start, stop))
        return segment._replace(num_bytes=hashing.num_bytes, sha256=hashing.sha256.hexdigest())

    def _go_home(self, directory: Path) -> None:
        self._homes = [*(home for home in self._homes if home != directory), directory][-_MOST_HOMES:]


def _version(path: Path) -> tuple[int, int]:
    """Which of the files that have had this name it is."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _has(folder: Path, segment: Segment) -> bool:
    try:
        return (folder / segment.name).stat().st_size == segment.num_bytes
    except FileNotFoundError:
        return False


class _Hashing:
    """A file that knows what was written into it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes, self.sha256 = 0, hashlib.sha256()

    def write(self, data: Any) -> None:
        self.num_bytes += memoryview(data).nbytes
        self.sha256.update(data)
        self._file.write(data)


def check_rows(state: dict[str, Any], directory: Path) -> None:
    """Make sure that all files of a saved memory are there, and as they were written.

    Args:
        state: what `RowStore.save` returned; {} if all of the memory is in the checkpoint.
        directory: of the checkpoint.
    Raises:
        ConfigurationError: one is not.
    """
    for segment in _segments_of(state):
        with _opened(segment, directory):
            pass


def _segments_of(state: dict[str, Any]) -> list[Segment]:
    """Those of what `RowStore.save` returned; none of {}.

    Raises:
        ConfigurationError: a list of something else, or with gaps.
    """
    if not state:
        return []
    try:
        segments = [
            Segment(int(start), int(stop), int(token), int(num_bytes), str(sha256))
            for start, stop, token, num_bytes, sha256 in state["segments"]
        ]
        num_written, num_rows = int(state["num_written"]), int(state["num_rows"])
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigurationError(f"the checkpoint names no files that its memory could be in ({error}).") from error
    first = max(num_written - num_rows, 0)
    for segment in segments:
        if not 0 <= segment.start <= first < segment.stop:
            raise ConfigurationError(f"the memory saved has nothing for its row {first}.")
        first = segment.stop
    if first != num_written:
        raise ConfigurationError(f"the memory saved has nothing for its row {first}.")
    return segments


def _readers(segments: list[Segment], directory: Path, first: int) -> Iterator[RowReader]:
    for segment in segments:
        with _opened(segment, directory) as file:
            yield RowReader(file, segment.start, segment.stop, first=first, name=file.name)


def _opened(segment: Segment, directory: Path) -> BinaryIO:
    """The file, once all of it was read and found to be what was written.

    Raises:
        ConfigurationError: it is missing, or it is not.
    """
    path = directory / FOLDER / segment.name
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path} is missing, which has a part of the replay memory. A checkpoint needs the folder {FOLDER!r} "
            "beside it: move or copy both."
        ) from error
    try:
        if hashlib.file_digest(file, "sha256").hexdigest() != segment.sha256:
            raise ConfigurationError(f"{path} is damaged: it is not as it was written.")
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file
