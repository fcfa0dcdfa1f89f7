"""Checkpoint files that are there as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from rl_lightning.checkpoint_file import read_checkpoint
from rl_lightning.files import remove_leftovers, whole_file


class RLCheckpointIO(TorchCheckpointIO):
    """Lightning's files, as `whole_file` makes them, and without a copy in the directory for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """
        Raises:
            OSError: the disk is full or the directory cannot be written to; nothing is left of the attempt.
        """
        if "://" in str(path):  # no file of this machine
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        try:
            with whole_file(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None  # torch puts its own in front: what the disk said is what counts
            raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint: dict[str, Any] = read_checkpoint(path, map_location, weights_only=weights_only is not False)
        return checkpoint
