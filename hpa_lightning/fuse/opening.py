"""Opening the models that a command reads: a folder, or an adapter on one; and what is recorded of them."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from tqdm.auto import tqdm

from hpa_lightning.fuse.adapted import AdaptedCheckpoint, is_adapter
from hpa_lightning.fuse.checkpoint import Checkpoint

_PIECE = 1 << 22


def open_checkpoint(folder: str | Path, base: str | Path | None) -> Checkpoint:
    """Open the folder of a model, or that of a peft adapter on ``base``.

    Raises:
        ValueError: an adapter without a base, or what the checkpoint itself refuses.
    """
    if not is_adapter(folder):
        return Checkpoint(folder)
    if base is None:
        raise ValueError(f"{folder} holds a peft adapter; expected the model that it belongs to beside it (--base).")
    return AdaptedCheckpoint(base, folder)


def warn_of_left_out(checkpoints: Iterable[Checkpoint], writes: bool = True) -> None:
    """Warn once of the weight files beside those that are read.

    Args:
        checkpoints: opened.
        writes: whether an output is made of them, which lacks those files.
    """
    left_out = dict.fromkeys(path for checkpoint in checkpoints for path in checkpoint.left_out)
    if left_out:
        warnings.warn(
            f"not read{' and not in the output' if writes else ''}, as transformers and peft do not read them either: "
            f"{', '.join(map(str, left_out))}.",
            stacklevel=3,
        )


def warn_of_unbuilt(checkpoint: Checkpoint, done: str = "fused") -> None:
    """Warn once of the stored matrices that the configuration builds no layer for.

    Args:
        checkpoint: bound.
        done: what is not done with them: ``"fused"``, or ``"compared"``.
    """
    unbuilt = [key for key in checkpoint.unbuilt if len(checkpoint.tensors.stored[key].shape) == 2]
    if unbuilt:
        warnings.warn(
            f"{checkpoint.folder}: {len(unbuilt)} stored matrices belong to no layer of the model that config.json "
            f"describes ({', '.join(unbuilt[:3])}{', ...' if unbuilt[3:] else ''}): they are "
            f"{'copied as they are, and ' if done == 'fused' else ''}not {done}. Where they are decoder blocks, look "
            "at the number of layers in config.json.",
            stacklevel=3,
        )


def stamps(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of every file, by which an interrupted run tells that its inputs are the same."""
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def file_digests(files: Iterable[Path], progress: bool = False) -> dict[str, str]:
    """SHA-256 of every file, as the hub shows it beside large files."""
    found, files = {}, list(files)
    total = sum(file.stat().st_size for file in files)
    with tqdm(total=total, desc="Digests", unit="B", unit_scale=True, disable=not progress) as bar:
        for file in files:
            digest = hashlib.sha256()
            with file.open("rb") as opened:
                while piece := opened.read(_PIECE):
                    digest.update(piece)
                    bar.update(len(piece))
            found[str(file)] = digest.hexdigest()
    return found


def versions() -> Mapping[str, str]:
    """What the weights are made with."""
    programs = {name: version(name) for name in ("hpa-lightning", "torch", "transformers")}
    return programs | {"python": platform.python_version()}
