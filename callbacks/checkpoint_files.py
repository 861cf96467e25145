"""Checkpoints that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import lightning as L
import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from hpa_lightning.files import whole_file


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's way to write a checkpoint, safe on local disks.

    Lightning writes to the system's temporary folder and moves the file. Where that is another disk, the move
    overwrites the last checkpoint in place, and a kill or a full disk leaves half of it; where the file may not be
    written, fsspec says nothing and the old one stays. Here it is written beside its place, flushed and renamed.

    Args:
        module: whose weights under adapters a task's end writes. A checkpoint without these, as a module makes it that
            keeps its adapters alone, is warned of once.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        self._module = module

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; remote paths as Lightning does.

        Raises:
            OSError: it could not be written; what was there is unchanged.
        """
        self._warn_of_missing(checkpoint)
        system, local = url_to_fs(os.fspath(path))
        if not isinstance(system, LocalFileSystem) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_file(local) as beside, beside.open("wb") as file:
            watched: Any = _Watched(file)
            try:
                torch.save(checkpoint, watched)
            except RuntimeError as error:  # "unexpected pos 64 vs 0": torch hides what the system said
                raise (watched.error or error) from error

    def _warn_of_missing(self, checkpoint: Mapping[str, Any]) -> None:
        if self._module is None or "state_dict" not in checkpoint:
            return
        named = self._module.named_parameters()
        bases = {name for name, one in named if ".base_layer." in name and one.ndim > 1}
        if missing := sorted(bases - set(checkpoint["state_dict"])):
            self._module = None
            rank_zero_warn(
                f"This fit's checkpoints hold adapters without the {len(missing)} weights under them, such as "
                f"{missing[0]}. A task's end writes into these weights and empties the adapters: what a checkpoint "
                "holds from then on is not the trained model. Let the module's state_dict and on_save_checkpoint "
                "keep them."
            )


class _Watched:
    """A file that remembers the first error of a write.

    Attributes:
        error: it, if there was one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_whole_checkpoints(trainer: L.Trainer, written: nn.Module | None = None) -> None:
    """Replace Lightning's own by :class:`WholeCheckpointIO`; another plugin stays.

    Args:
        trainer: whose strategy has it.
        written: the module whose weights under adapters a task's end writes, if one does.
    """
    if type(trainer.strategy.checkpoint_io) in (TorchCheckpointIO, WholeCheckpointIO):
        trainer.strategy.checkpoint_io = WholeCheckpointIO(written)


def finish_writing(trainer: L.Trainer) -> None:
    """Wait until the checkpoints that another thread writes (``AsyncCheckpointIO``) are on the disk.

    What a task's end writes into the weights must not get into them, and whether one is from before the end is told by
    the file, which has to be there.
    """
    writer = trainer.strategy.checkpoint_io
    if isinstance(writer, AsyncCheckpointIO):
        writer.teardown()  # it begins a thread again with its next checkpoint
