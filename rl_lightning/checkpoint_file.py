"""Checkpoints are read here: by default nothing in them is run."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning_fabric.utilities.cloud_io import get_filesystem

from rl_lightning.types import ConfigurationError


def read_checkpoint(source: str | Path | IO[bytes], map_location: Any = None, *, weights_only: bool = True) -> Any:
    """What is in a checkpoint.

    Args:
        source: a path, a URL, or a file of bytes. What is elsewhere is fetched each time: there may be a newer one.
        map_location: as in `torch.load`.
        weights_only: False lets the file run any code.
    Raises:
        FileNotFoundError: there is none.
        ConfigurationError: it is damaged, no checkpoint, or holds more than tensors and plain data.
    """
    local = _local(source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # it is an error at once
        try:
            _check_sums(local)
            return torch.load(local, map_location, weights_only=weights_only)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except Exception as error:  # torch raises whatever the bytes lead it to
            raise ConfigurationError(
                f"{source} cannot be read: it is damaged, no checkpoint, or holds more than tensors and plain data. "
                f"Take another one, or ckpt_path='auto', which takes the newest that is whole. ({error})"
            ) from error


def _check_sums(file: str | Path | IO[bytes]) -> None:
    """Raise ValueError if a part is not as it was written: torch by itself reads nine of ten flipped bits."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is not as it was written")
    if not isinstance(file, str | Path):
        file.seek(0)


def _local(source: str | Path | IO[bytes]) -> str | Path | IO[bytes]:
    if not isinstance(source, str | Path) or "://" not in str(source):
        return source
    with get_filesystem(source).open(str(source), "rb") as file:
        return io.BytesIO(file.read())
