"""The output folder while it is being made: nothing in it looks complete before everything is there."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from hpa_lightning.files import flush, name_folder, naming_path, whole_file, write_text
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.processor_files import (
    borrowed_image_files,
    check_adapter_tokenizer,
    copy_processor,
    lacks_tokenizer,
)
from hpa_lightning.fuse.tensor_files import StoredTensor, require_finite

AUDIT_FILE = "audit.json"
MERGE_FILE = "merge.json"
_OWN_FILES = {AUDIT_FILE, MERGE_FILE}

_GOES_ON = "the output is unfinished; the same command continues with it"

_LOCK_FILE = "lock"


class PartialOutput:
    """The folder ``OUTPUT.partial``, which becomes ``OUTPUT`` in one step at the end.

    It holds the new weights under construction: the files of one of the models, copied, in which the new tensors are
    written over the old ones where they are (a tensor keeps shape and dtype, so every other byte stays), and
    ``progress/``, whose files tell what is finished. Each file there is written under another name first. One process
    at a time works on it.

    Args:
        output: the folder to be made.
        run: what the run is made of (settings, inputs), to tell whether an interrupted one is the same.

    Raises:
        ValueError: the output exists, or an interrupted run of another kind does, or another process is at work.
    """

    def __init__(self, output: str | Path, run: Mapping[str, Any]) -> None:
        self.output = Path(output)
        self.folder = self.output.with_name(self.output.name + ".partial")
        self.progress = self.folder / "progress"
        if os.path.lexists(self.output):  # a link that leads nowhere, too: no folder could take its name at the end
            raise ValueError(f"{self.output} exists already; choose another output, or remove it.")
        record = self.progress / "run.json"
        if not record.is_file() and self.folder.exists() and not self._is_empty():
            raise ValueError(
                f"{self.folder} exists and is not an interrupted run; choose another output, or remove it."
            )
        self.progress.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.progress / _LOCK_FILE, timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(f"{self.folder} is being worked on by another process; wait for it.") from error
        try:
            check_or_begin(record, run, self.folder)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _is_empty(self) -> bool:
        """Whether a run was killed before it had written anything."""
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}
        name = self.progress.name
        return found <= {name, f"{name}/{_LOCK_FILE}", f"{name}/run.json.unfinished"}

    # -- weights -----------------------------------------------------------------------------------------------------

    def copy_weights(self, others: Iterable[Checkpoint], kept: Checkpoint, merged: Iterable[str]) -> None:
        """Copy the weight files of ``kept``; write into them the tensors named ``merged``, which it computes.

        All weights of all models are looked through first: what follows would run for hours on what is not finite.

        Raises:
            ValueError: too little space on the disk, or a weight that is not finite.
        """
        missing = [file for file in kept.tensors.files if not (self.folder / file).is_file()]
        needed = sum((kept.folder / file).stat().st_size for file in missing)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(f"{self.folder} needs {needed / 1e6:.0f} MB; the disk has {free / 1e6:.0f} MB left.")
        places = {name: kept.stored(name) for name in merged}
        if len(missing) == len(kept.tensors.files):
            for checkpoint in (*others, kept):
                checkpoint.check_finite()
        for file in missing:
            with whole_file(self.folder / file) as unfinished:
                shutil.copyfile(kept.folder / file, unfinished)
                for name, place in places.items():
                    if place.file == file:
                        tensor = kept.tensor(name).to(place.dtype)
                        require_finite(name, tensor, self.folder)
                        _overwrite(unfinished, place, tensor)

    def has_part(self, part: int) -> bool:
        """Whether the new tensors of that part are written."""
        return self._part(part).is_file()

    def write_part(
        self, part: int, tensors: Iterable[tuple[StoredTensor, Tensor]], audit: list[dict[str, Any]]
    ) -> None:
        """Write the new tensors of a part of the model, then the mark that it is finished, with its audit."""
        files = set()
        with naming_path(self.folder, _GOES_ON):
            for place, tensor in tensors:
                _overwrite(self.folder / place.file, place, tensor)
                files.add(place.file)
            for file in files:
                flush(self.folder / file)
        _write_json(self._part(part), audit)

    def audit(self, parts: int) -> list[dict[str, Any]]:
        """The audit of all parts, in order."""
        return [entry for part in range(parts) for entry in json.loads(self._part(part).read_text("utf-8"))]

    def _part(self, part: int) -> Path:
        return self.progress / f"written-{part:04d}.json"

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, kept: Checkpoint, audit: Mapping[str, Any], name: str = AUDIT_FILE) -> None:
        """Add configuration and audit, and give the folder its name."""
        _write_json(self.folder / name, audit)
        shutil.copyfile(kept.folder / "config.json", self.folder / "config.json")
        with naming_path(self.folder, _GOES_ON):
            name_folder(self.folder, self.output)
        shutil.rmtree(self.output / self.progress.name)

    # -- small files -------------------------------------------------------------------------------------------------

    def copy_small(self, other: Checkpoint, kept: Checkpoint) -> None:
        """Copy processor, templates and the like of ``kept``; where it has no processor, that of ``other`` too.

        Of a processor without its image processor, or without its tokenizer, that part is taken from ``other``, with a
        warning.

        Raises:
            ValueError: a file that is a link out of its folder, or an adapter's tokenizer that does not fit its base.
        """
        for checkpoint in (other, kept):
            check_adapter_tokenizer(checkpoint)
        copy_processor(kept, other, self.folder, _OWN_FILES)
        if lacks_tokenizer(kept):
            warnings.warn(
                f"{kept.folder} holds an image processor and no tokenizer; tokenizer and template are taken from "
                f"{other.folder}. If the tuning used others, put their files into the folder.",
                stacklevel=3,
            )
        if borrowed := borrowed_image_files(kept, other):
            for file in borrowed:
                shutil.copyfile(file, self.folder / file.name)
            warnings.warn(
                f"{kept.folder} holds a tokenizer and no image processor; {', '.join(file.name for file in borrowed)} "
                f"is taken from {borrowed[0].parent}. If the images were prepared in another way in the tuning, put "
                "the file that says so into the folder.",
                stacklevel=3,
            )


def check_or_begin(record: Path, run: Mapping[str, Any], folder: Path) -> None:
    """Note what a run is made of, or check that it is what an interrupted one was made of.

    Raises:
        ValueError: it is not, naming what differs.
    """
    run = json.loads(json.dumps(run))
    if not record.is_file():
        _write_json(record, run)
        return
    before = json.loads(record.read_text(encoding="utf-8"))
    changed = sorted(key for key in {*before, *run} if before.get(key) != run.get(key))
    if changed:
        raise ValueError(
            f"{folder} was started with other {', '.join(changed)}. Repeat its command to finish it, choose another "
            "output, or remove the folder to start again."
        )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that exists whole or not at all."""
    with whole_file(path) as unfinished:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, unfinished, metadata)


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def _overwrite(path: Path, place: StoredTensor, tensor: Tensor) -> None:
    if tensor.dtype != place.dtype or tuple(tensor.shape) != place.shape:
        raise AssertionError(f"a tensor {tuple(tensor.shape)} {tensor.dtype} does not fit {place}")
    with path.open("r+b") as file:
        file.seek(place.start)
        file.write(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def refuse_inside(output: str | Path, files: Mapping[str, str | Path | None]) -> None:
    """Check that no file is to be written into a folder that is only made, in one step, when all is done.

    Args:
        output: the folder.
        files: name of the argument -> file to be written, if there is one.

    Raises:
        ValueError: named by the argument: it is in the output.
    """
    output = Path(output)
    for name, file in files.items():
        for folder in (output, output.with_name(f"{output.name}.partial")):
            if file is not None and Path(file).resolve().is_relative_to(folder.resolve()):
                raise ValueError(
                    f"{name} is {str(file)!r}, inside the output, which is a folder only when all is done; write the "
                    f"file beside it, such as {output.name}-{Path(file).name}."
                )
