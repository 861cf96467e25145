"""Everything that can be wrong with a stream's data, before training."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from hpa_lightning.data.bad_records import SKIP
from hpa_lightning.data.collator import MLLMCollator
from hpa_lightning.data.datamodule import CVITDataModule
from hpa_lightning.data.images import KINDS, EncodedImage, is_file, kinds_of
from hpa_lightning.data.overlap import record_key
from hpa_lightning.data.readers import DataWarning, examine_records
from hpa_lightning.data.readers.turns import ImagePlace
from hpa_lightning.data.record import Record, check_pair, check_record, open_image
from hpa_lightning.data.tasks import Data, EvaluationSet, check_evaluable
from hpa_lightning.metrics.scoring import metric_of
from hpa_lightning.table import Table

_EXAMPLES = 5


@dataclass
class Part:
    """One data set of a stream and what was found in it.

    Args:
        name: what it is, such as ``"task digits, train"``.
        data, image_folder, image_place: as given to the stream.
        use: ``"train"`` (ends with an answer), ``"task"`` (has references; helpfulness too), ``"safety"``
            (harmful test inputs),
            ``"calibration"`` (harmful inputs that are calibrated on) or ``"prompt"``. What is tested on, tasks and
            safety, must not be in what is trained or calibrated on.
        evaluation_set: whose metric scores the records; ``None`` for what is trained or calibrated on.
        pairs: whether preference pairs are trained on.
    """

    name: str
    data: Data
    image_folder: str | None
    use: str
    evaluation_set: EvaluationSet | None = None
    image_place: ImagePlace = "front"
    pairs: bool = False
    records: list[Record] = field(default_factory=list)
    images: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    tokens: list[int] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)

    def report(self, kind: str, text: str, record: Record | None = None) -> None:
        """Note a problem of a kind; a ``record`` that cannot be used for it is not put to the model."""
        self.problems.setdefault(kind, []).append(text)
        if record is not None:
            self.faulty.add(record.where)

    def warn(self, kind: str, text: str) -> None:
        """Note what is odd and hinders nobody: published test files have it too."""
        self.warnings.setdefault(kind, []).append(text)


def check_stream(
    stream: CVITDataModule,
    collator: MLLMCollator | None = None,
    token_samples: int | None = 200,
    max_pixels: int | None = None,
    decode: bool = False,
    progress: bool = False,
) -> list[Part]:
    """Check all data of a stream and gather every problem.

    Looked for: broken JSON and records (roles, parts, empty answers), training records without an answer and test
    records without a reference that their metric can read, images that are missing, unreadable or large, samples that
    are too long in tokens, and test records in the training or calibration data of the stream. Repeated test records
    and training answers that are cut are warnings.

    Args:
        stream: not set up.
        collator: counts tokens; ``None`` leaves that out.
        token_samples: records of each part whose tokens are counted, at even distances; all when ``None``.
        max_pixels: images with more are reported; the stream's ``max_image_pixels`` when ``None``.
        decode: read whole images, not their headers alone.
        progress: show progress bars.

    Returns:
        The parts, in the stream's order.
    """
    parts = list(_parts(stream))
    max_pixels = stream.max_image_pixels if max_pixels is None else max_pixels
    for part in tqdm(parts, desc="Reading", disable=not progress):
        with warnings.catch_warnings(record=True) as reported:
            warnings.simplefilter("always", DataWarning)
            part.records, broken = examine_records(part.data, part.image_folder, part.name, part.image_place)
        for warning in reported:
            part.warn("doubts about the file", str(warning.message))
        for text in broken:
            part.report("broken records", text)
        _check_answers(part)
    seen: dict[str, _ImageCheck] = {}
    images = sum(len(record.images) for part in parts for record in part.records)
    with tqdm(total=images, desc="Images", disable=not progress) as bar:
        for part in parts:
            for record in part.records:
                for image in record.images:
                    _check_image(part, record, image, seen, max_pixels, decode)
                    bar.update()
    if collator is not None:
        for part in tqdm(parts, desc="Tokens", disable=not progress):
            _check_texts(part, collator)
            _count_tokens(part, collator, token_samples)
    if stream.bad_records == SKIP:
        for part in parts:
            if part.use == "train" and part.evaluation_set is None and part.name.startswith("task "):
                part.warnings |= {f"{kind}, which will be skipped": found for kind, found in part.problems.items()}
                part.problems = {}
    _check_repetition(parts, stream.allow_overlap)
    return parts


def summary(parts: Sequence[Part]) -> str:
    """A table of the parts, how many images are decoded in a special way, then every kind of problem with examples."""
    rows: list[list[str | int]] = []
    for part in parts:
        tokens = [round(value) for value in np.percentile(part.tokens, [50, 95, 100])] if part.tokens else 3 * ["-"]
        counts = [sum(map(len, kinds.values())) for kinds in (part.problems, part.warnings)]
        rows.append([part.name, len(part.records), part.images, *tokens, *counts])
    heading = ["Data", "Records", "Images", "Tokens: median", "95 %", "Longest", "Problems", "Warnings"]
    text = Table(heading, rows).text()
    kinds = [(part.name, kind, part.kinds[kind]) for part in parts for kind in KINDS if part.kinds[kind]]
    text += "".join(f"\n{name}: {count} images {kind}" for name, kind, count in kinds)
    for part in parts:
        warnings = {f"{kind} (a warning)": found for kind, found in part.warnings.items()}
        for kind, found in (part.problems | warnings).items():
            text += f"\n\n{part.name}: {len(found)} {kind}"
            text += "".join(f"\n  - {one}" for one in found[:_EXAMPLES])
            text += f"\n  - and {len(found) - _EXAMPLES} more" if len(found) > _EXAMPLES else ""
    return text


def _parts(stream: CVITDataModule) -> Iterator[Part]:
    tests = {item.name: item for item in stream.evaluation_sets()}

    def part(name: str, data: Data, owner: Any, use: str, evaluation_set: EvaluationSet | None = None) -> Part:
        return Part(name, data, owner.image_folder, use, evaluation_set, owner.image_place or stream.image_place)

    for task in stream.tasks:
        training = part(f"task {task.name}, train", task.train, task, "train")
        training.pairs = task.objective == "preference"
        yield training
        if task.calibration is not None:
            yield part(f"task {task.name}, calibration", task.calibration, task, "train")
        if task.test is not None:
            yield part(f"task {task.name}, test", task.test, task, "task", tests[task.name])
    for item in stream.safety_sets:
        use = {"safety": "safety", "helpfulness": "task"}.get(item.kind, "prompt")
        yield part(f"{item.kind.replace('_', '-')} {item.name}", item.data, item, use, item)
    for name, extra in (("harmful injection", stream.harmful_injection), ("safety replay", stream.safety_replay)):
        if extra is not None:
            yield part(name, extra.data, extra, "train")
    if stream.harmful_calibration is not None:
        folder, place = stream.harmful_image_folder, stream.image_place
        yield Part("harmful calibration", stream.harmful_calibration, folder, "calibration", None, place)


def _check_answers(part: Part) -> None:
    metric = None if part.evaluation_set is None else metric_of(part.evaluation_set)
    for record in part.records:
        try:
            check_record(record, needs_answer=part.use == "train", needs_reference=part.use == "task")
            if part.pairs:
                check_pair(record)
            if metric is not None:
                check_evaluable(record, metric)
        except ValueError as error:
            part.report("records without an answer that can be used", str(error), record)


def _check_image(
    part: Part, record: Record, image: Any, seen: dict[str, _ImageCheck], max_pixels: int, decode: bool
) -> None:
    part.images += 1
    missing = False
    if isinstance(image, EncodedImage):
        look = _inspect(image.name or "an image", image, max_pixels, decode)
    elif isinstance(image, str | Path):
        path = str(image)
        missing = not is_file(path)
        if path not in seen:
            absent = _ImageCheck(f"{path} does not exist; check image_folder")
            seen[path] = absent if missing else _inspect(path, path, max_pixels, decode)
        look = seen[path]
    elif isinstance(image, Image.Image):
        look = _ImageCheck(None, kinds_of(image))
    else:
        return
    part.kinds.update(look.kinds)
    if look.problem is not None:
        kind = "missing images" if missing else "images that cannot be used"
        part.report(kind, f"{record.where}: {look.problem}", record)


@dataclass(frozen=True)
class _ImageCheck:
    """What is wrong with an image, if anything is, and of which kinds it is."""

    problem: str | None
    kinds: Sequence[str] = ()


def _inspect(name: str, image: str | EncodedImage, max_pixels: int, decode: bool) -> _ImageCheck:
    try:
        with Image.open(io.BytesIO(image.data) if isinstance(image, EncodedImage) else image) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                return _ImageCheck(f"{name} has {width} x {height} pixels, more than {max_pixels}")
            if decode:
                opened.load()
            kinds = kinds_of(opened, header_only=not decode)
        if decode:
            open_image(image, name, max_pixels)
    except Exception as error:  # PIL raises errors of many classes for files that are broken
        return _ImageCheck(f"{name} cannot be read: {error}")
    return _ImageCheck(None, kinds)


def _check_texts(part: Part, collator: MLLMCollator) -> None:
    for record in part.records:
        try:
            collator.check_text(record)
        except ValueError as error:
            part.report("samples that do not fit the model", str(error), record)


def _count_tokens(part: Part, collator: MLLMCollator, samples: int | None) -> None:
    records = part.records
    if samples is not None and len(records) > samples:
        records = [records[index * len(records) // samples] for index in range(samples)]
    whole = MLLMCollator(collator.processor, None, collator.chat_template, collator.max_image_pixels)
    for record in records:
        if record.where in part.faulty:
            continue
        collate = "pairs" if part.pairs else "train" if part.use == "train" else "generate"
        try:
            found = getattr(whole, collate)([record])
            length = int(found.get("inputs", found)["input_ids"].shape[1])
            part.tokens.append(length)
            if collator.max_length is not None and length > collator.max_length:
                getattr(collator, collate)([record])  # refused, unless it is a training answer that can be cut
                part.warn("training samples that are cut", f"{record.where}: {length} tokens of {collator.max_length}")
        except ValueError as error:
            part.report("samples that do not fit the model", str(error))


def _check_repetition(parts: Sequence[Part], allow_overlap: bool) -> None:
    held_out: dict[str, tuple[Part, Record]] = {}
    for part in parts:
        if part.use in ("task", "safety"):
            for record in part.records:
                key = record_key(record)
                if key in held_out and held_out[key][0] is part:
                    part.warn("repeated records", f"{record.where} repeats {held_out[key][1].where}")
                held_out.setdefault(key, (part, record))
    for part in parts:
        if part.use in ("train", "calibration"):
            for record in part.records:
                if found := held_out.get(record_key(record)):
                    text = f"{record.where} is in {found[0].name} as {found[1].where}"
                    (part.warn if allow_overlap else part.report)("records that are tested on", text)
