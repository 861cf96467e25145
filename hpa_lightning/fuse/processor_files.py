"""Tokenizer, templates and other small files of a checkpoint: which are copied, and the processor that they make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hpa_lightning.data.template import tokenizer_of
from hpa_lightning.fuse.checkpoint import INDEX_FILE, Checkpoint, read_json
from hpa_lightning.fuse.folder import file_inside
from hpa_lightning.modules.load_pretrained import load_processor
from hpa_lightning.modules.timm_processor import PROCESSOR_FILE

MODEL_FILES = frozenset({"config.json", "generation_config.json", INDEX_FILE})
"""Small files that are a model's and no processor's."""

_TEXT = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
_NOT_COPIED = {"config.json", "trainer_state.json", "adapter_config.json"}
_PROCESSOR_FILES = {"tokenizer_config.json", "processor_config.json", "preprocessor_config.json", PROCESSOR_FILE}
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
_PROCESSOR_CONFIG = "processor_config.json"
_PARTS = {"preprocessor_config.json": "image_processor", "video_preprocessor_config.json": "video_processor"}
_IMAGE_FILES = (*_PARTS, _PROCESSOR_CONFIG, PROCESSOR_FILE)
_NAMED_TEMPLATES = "additional_chat_templates"
_TEMPLATES = ("chat_template.jinja", "chat_template.json", _NAMED_TEMPLATES)


def has_processor(checkpoint: Checkpoint) -> bool:
    """Whether a processor is in the checkpoint's folders."""
    return any((folder / name).is_file() for folder in checkpoint.processor_folders for name in _PROCESSOR_FILES)


def copy_small_files(checkpoint: Checkpoint, target: Path, without: Collection[str] = ()) -> None:
    """Copy processor, templates and the like. An adapter's own take the place of its base's: it was tuned with them.

    Raises:
        ValueError: a file that is a link out of its folder.
    """
    base, *adapters = checkpoint.processor_folders
    _copy(base, target, {*without, *(_TEMPLATES if any(map(_has_template, adapters)) else ())})
    for folder in adapters:
        _copy(folder, target, {*without, *MODEL_FILES})


def lacks_tokenizer(checkpoint: Checkpoint) -> bool:
    """Whether an image processor is in the checkpoint's folders and no tokenizer."""
    return has_processor(checkpoint) and not any(
        (folder / name).is_file() for folder in checkpoint.processor_folders for name in _TOKENIZER_FILES
    )


def copy_processor(checkpoint: Checkpoint, other: Checkpoint, target: Path, without: Collection[str] = ()) -> None:
    """Copy the small files of a checkpoint; where it has no processor or no tokenizer, those of ``other`` below them.

    Raises:
        ValueError: a file that is a link out of its folder.
    """
    if not has_processor(checkpoint) or lacks_tokenizer(checkpoint):
        templates = _TEMPLATES if any(map(_has_template, checkpoint.processor_folders)) else ()
        copy_small_files(other, target, {*MODEL_FILES, *without, *templates})
        _leave_out_parts(target / _PROCESSOR_CONFIG, {file.name for file in _image_files(checkpoint)})
    copy_small_files(checkpoint, target, without)


def borrowed_image_files(checkpoint: Checkpoint, other: Checkpoint) -> list[Path]:
    """Return the files of the other model's image processor, where a checkpoint has a tokenizer and no such files.

    Programs that save the tokenizer alone beside the weights leave the image processor to the model that they began
    with.
    """
    if not has_processor(checkpoint) or _image_files(checkpoint):
        return []
    return _image_files(other)


def read_processor(checkpoint: Checkpoint, other: Checkpoint | None = None) -> Any:
    """Load the checkpoint's processor, made of the files that :func:`copy_small_files` copies.

    Args:
        checkpoint: whose processor it is.
        other: a model whose image processor is taken where the checkpoint has a tokenizer alone, and whose tokenizer
            where it has an image processor alone.

    Raises:
        OSError, ValueError: there is none; or an adapter's tokenizer has more tokens than the model has embeddings.
    """
    borrowed = [] if other is None else borrowed_image_files(checkpoint, other)
    lacking = other is not None and lacks_tokenizer(checkpoint)
    if not borrowed and not lacking and not any(map(_has_own, checkpoint.processor_folders[1:])):
        return load_processor(str(checkpoint.folder), None, None)
    with TemporaryDirectory() as folder:
        copy_processor(checkpoint, other or checkpoint, Path(folder))
        for file in (*borrowed, checkpoint.folder / "config.json"):
            shutil.copyfile(file, Path(folder) / file.name)
        return load_processor(folder, None, None)


def check_adapter_tokenizer(checkpoint: Checkpoint) -> None:
    """See that the processor in an adapter's folder, if there is one, loads and fits the model.

    Raises:
        ValueError: it does not, naming the folder.
    """
    for folder in checkpoint.processor_folders[1:]:
        if not _has_own(folder):
            continue
        try:
            tokens = len(tokenizer_of(read_processor(checkpoint)))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds files of a processor that does not load: {error}") from error
        rows = checkpoint.config.get_text_config().vocab_size
        if tokens > rows:
            raise ValueError(
                f"{folder} holds a tokenizer of {tokens} tokens, and {checkpoint.folder} has embeddings for {rows}: "
                "tokens were added for the tuning, and what was learnt of them is not in the adapter. Merge it with "
                "the code that wrote it and pass the merged folder."
            )


def _image_files(checkpoint: Checkpoint) -> list[Path]:
    """The files of the image processor, those of a later folder in the place of an earlier one's."""
    found = {
        name: folder for folder in checkpoint.processor_folders for name in _IMAGE_FILES if (folder / name).is_file()
    }
    return [file_inside(folder, name, "the folder") for name, folder in found.items()]


def _leave_out_parts(processor: Path, files: Collection[str]) -> None:
    """Take out of a processor's file what files beside it say: transformers would read it there and not in them."""
    parts = {part for file, part in _PARTS.items() if file in files}
    if parts and processor.is_file():
        kept = {name: value for name, value in read_json(processor).items() if name not in parts}
        processor.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _has_own(folder: Path) -> bool:
    return _has_template(folder) or any((folder / name).is_file() for name in (*_PROCESSOR_FILES, "tokenizer.json"))


def _has_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    inside = settings.is_file() and read_json(settings).get("chat_template") is not None
    return inside or any((folder / name).exists() for name in _TEMPLATES)


def _copy(folder: Path, target: Path, without: Collection[str]) -> None:
    for file in sorted(folder.iterdir()):
        wanted = file.suffix in _TEXT and file.name not in {*_NOT_COPIED, *without}
        if file.is_file() and wanted and not file.name.startswith("pytorch_model"):
            shutil.copyfile(file_inside(folder, file.name, "the folder"), target / file.name)
    named = folder / _NAMED_TEMPLATES
    if named.is_dir() and _NAMED_TEMPLATES not in without:
        if named.resolve().parent != folder.resolve():
            raise ValueError(f"{named} is a link to {named.resolve()}, outside its folder; put the folder there.")
        (target / _NAMED_TEMPLATES).mkdir(exist_ok=True)
        for file in sorted(named.glob("*.jinja")):
            source = file_inside(named, file.name, "the folder")
            shutil.copyfile(source, target / _NAMED_TEMPLATES / file.name)
