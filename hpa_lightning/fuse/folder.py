"""What is in a folder of weights: which files are read, which may be beside them, and no way out of the folder."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".msgpack", ".gguf"}

# What the trainers of transformers, accelerate, DeepSpeed, LLaMA-Factory, ms-swift, axolotl and unsloth leave beside
# the weights to continue from: no part of the model.
_TRAINER_STATE = re.compile(
    r"(optimizer|scheduler|lr_scheduler|scaler|rng_state|sampler|dl_state_dict)([_-]?\d+)*\.(pt|pth|bin)"
    r"|training_args\.bin"
)
# The same weights in files that neither transformers nor peft reads where there are safetensors (published repositories
# hold them side by side).
_COPIES_OF_MODEL = (
    r"pytorch_model(-\d+-of-\d+|_fsdp(_\d+)?)?\.bin|consolidated([.-].*)?\.(safetensors|pth|pt)"
    r"|tf_model(-\d+-of-\d+)?\.h5|flax_model(-\d+-of-\d+)?\.msgpack|.*\.gguf"
)
_COPIES_OF_ADAPTER = r"adapter_model\.bin|pytorch_model_fsdp(_\d+)?\.bin|.*\.gguf"
# Of reward models and critics (trl, LLaMA-Factory, ms-swift): they answer no prompt.
_OTHER_HEADS = r"value_head\.(safetensors|bin)"
_LEFT_OUT_BESIDE = {
    "model": re.compile(f"{_COPIES_OF_MODEL}|{_OTHER_HEADS}"),
    "adapter": re.compile(f"{_COPIES_OF_ADAPTER}|{_OTHER_HEADS}"),
}


def file_inside(folder: Path, name: object, named_by: str) -> Path:
    """Return the path of a file that data name, if it is in the folder itself.

    A link may lead to another file of the folder, and out of a snapshot of the Hugging Face cache to its ``blobs``,
    which is how that cache is built; nowhere else.

    Args:
        folder: where the file has to be.
        name: what the data say.
        named_by: who says so, for the error.

    Raises:
        ValueError: no plain file name, no such file, or a link that leaves the folder.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or re.search(r"[/\\\0:]", name):
        raise ValueError(
            f"{named_by} names the file {str(name)[:200]!r}; expected the plain name of a file in {folder}."
        )
    path = folder / name
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise ValueError(f"{named_by} names {name[:200]}, but there is no such file in {folder}.")
    target, home = path.resolve(), folder.resolve()
    homes = [home]
    homes += [one.parent.parent / "blobs" for one in (home, home.parent) if one.parent.name == "snapshots"]
    if not any(target.is_relative_to(allowed) for allowed in homes):
        raise ValueError(
            f"{path} is a link to {target}, outside its folder; put the file itself there, or pass the folder that "
            "holds it."
        )
    return path


def weights_left_out(folder: Path, read: Collection[str], kind: str) -> list[Path]:
    """Return the weight files of the folder that are not read and need not be: copies in another format, other heads.

    Args:
        folder: of a model or of an adapter.
        read: names of the files that are read.
        kind: ``"model"`` or ``"adapter"``.

    Raises:
        ValueError: a weight file whose content would be lost, by name.
    """
    beside = sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.suffix.lower() in _WEIGHT_SUFFIXES
        and path.name not in read
        and not _TRAINER_STATE.fullmatch(path.name)
    )
    unknown = [path.name for path in beside if not _LEFT_OUT_BESIDE[kind].fullmatch(path.name)]
    if unknown:
        way_out = (
            "Merge all of it into the base with the code that wrote it, save the whole model with save_pretrained, and "
            "pass that folder in the adapter's place; or move the file away if it is no part of the model"
            if kind == "adapter"
            else "Move the file away if it is no part of the model; else load the model with the code that wrote it "
            "and save it with save_pretrained"
        )
        raise ValueError(
            f"{folder} holds {', '.join(unknown)} beside the {kind}'s weights ({', '.join(sorted(read)[:3])}"
            f"{', ...' if len(read) > 3 else ''}); what was tuned there would be left out. {way_out}."
        )
    return beside
