"""Captioning test sets whose references are in a file of their own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpa_lightning.data.published_files import find_file
from hpa_lightning.data.readers.reader import read_records
from hpa_lightning.data.readers.turns import ImagePlace
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.values import cut, shown


@dataclass(frozen=True)
class CaptionedImages(RecordSet):
    """A LLaVA test file whose references are all captions of its images in COCO's format, to be scored by ``cider``.

    UCIT's test files of VizWiz and Flickr30k hold one caption a record; the five that are scored against are in
    ``val_coco_type_3000.json``. A record gets the captions of the image whose ``file_name`` is its own image's.

    Args:
        questions: the test file, ``{"question_id", "image", "text", "answer"}``.
        captions: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``.
        image_folder: folder that image paths start from; that of ``questions`` when ``None``.
        image_place: of the questions, see :func:`read_records`.

    Raises:
        ValueError: when read: a missing file, a file of another form, two images of one name, an image without
            captions.
    """

    questions: str
    captions: str
    image_folder: str | None = None
    image_place: ImagePlace = "front"

    def read(self) -> list[Record]:
        """Read the records, in the order of the questions."""
        path = find_file([Path(self.captions)], "file of captions")
        captions = _captions(path)
        return [
            _with_captions(record, captions, path)
            for record in read_records(self.questions, self.image_folder, self.image_place)
        ]


def _captions(path: Path) -> dict[str, list[str]]:
    content: Any = parse_json(read_text(path), path.name)
    try:
        names = {image["id"]: Path(str(image["file_name"])).name for image in content["images"]}
        captions: dict[str, list[str]] = defaultdict(list)
        for annotation in content["annotations"]:
            if not isinstance(annotation["caption"], str):
                raise TypeError(f"the caption {shown(annotation['caption'])} is no text")
            captions[names[annotation["image_id"]]].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path.name} is not in COCO's caption format ({type(error).__name__}: {cut(error, 200)}); expected "
            "{'images': [{'id', 'file_name'}], 'annotations': [{'image_id', 'caption'}]}."
        ) from error
    if len(set(names.values())) < len(names):
        raise ValueError(f"{path.name} has images with the same file_name; expected each once.")
    return captions


def _with_captions(record: Record, captions: dict[str, list[str]], path: Path) -> Record:
    image = record.images[0] if len(record.images) == 1 else None
    if not isinstance(image, str):
        raise ValueError(f"{record.where}: {len(record.images)} images; expected the path of one.")
    if Path(image).name not in captions:
        raise ValueError(f"{record.where}: {path.name} has no caption of an image {shown(Path(image).name)}.")
    return replace(record, messages=record.prompt_and_references()[0], answers=tuple(captions[Path(image).name]))
