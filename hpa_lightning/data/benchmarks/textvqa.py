"""TextVQA with the answers of all ten people asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpa_lightning.data.published_files import conversation, find_file, text_of
from hpa_lightning.data.readers.reader import read_records
from hpa_lightning.data.readers.table_files import Row
from hpa_lightning.data.readers.turns import ImagePlace
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.values import shown


@dataclass(frozen=True)
class TextVQA(RecordSet):
    """Questions about text in images (Singh et al., CVPR 2019, arXiv 1904.08920), to be scored by ``vqa_accuracy``.

    Args:
        annotations: ``TextVQA_0.5.1_val.json`` or ``..._train.json``: ``{"data": [{"question_id", "question",
            "image_id", "answers": [ten texts], ...}]}``.
        questions: a LLaVA test file whose prompts are used (with OCR tokens, say) and whose images; its records are
            found in the annotations by ``question_id``, or by the image's name and the question, as LLaVA's own file
            wants it. ``None``: every annotated question, followed by ``instruction``, with the image
            ``<image_folder>/<image_id>.jpg``.
        image_folder: that image paths start from; without it, the folder of ``questions``, or ``train_images`` beside
            the annotations, which holds the images of the validation split too.
        instruction: the prompt's last line where there are no ``questions``.
        image_place: of the ``questions``, see :func:`read_records`.

    Raises:
        ValueError: when read: a missing file, a broken row, a question without an annotation.
    """

    annotations: str
    questions: str | None = None
    image_folder: str | None = None
    instruction: str = "Answer the question using a single word or phrase."
    image_place: ImagePlace = "front"

    def read(self) -> list[Record]:
        """Read the records, in the order of the questions."""
        path = find_file([Path(self.annotations)], "file of TextVQA annotations")
        content = parse_json(read_text(path), path.name)
        rows = content.get("data") if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{path.name} has no list under 'data'; expected TextVQA's own annotations.")
        if self.questions is None:
            folder = Path(self.image_folder) if self.image_folder is not None else path.parent / "train_images"
            return [self._own(row, folder, f"{path.name}: data[{index}]") for index, row in enumerate(rows)]
        answers: dict[Any, tuple[str, ...]] = {}
        for index, row in enumerate(rows):
            where = f"{path.name}: data[{index}]"
            found = _answers(row, where)
            answers[str(row.get("question_id"))] = found
            answers[text_of(row, "image_id", where), _folded(text_of(row, "question", where))] = found
        return [
            _with_answers(record, answers, path)
            for record in read_records(self.questions, self.image_folder, self.image_place)
        ]

    def _own(self, row: Row, folder: Path, where: str) -> Record:
        answers = _answers(row, where)
        prompt = f"{text_of(row, 'question', where)}\n{self.instruction}"
        image = str(folder / f"{text_of(row, 'image_id', where)}.jpg")
        return replace(conversation(row.get("question_id", where), prompt, [image], where=where), answers=answers)


def _answers(row: Row, where: str) -> tuple[str, ...]:
    answers = row.get("answers") if isinstance(row, dict) else None
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{where}: the answers are {shown(answers)}; expected a list of texts. Test splits have none.")
    return tuple(answers)


def _with_answers(record: Record, answers: dict[Any, tuple[str, ...]], path: Path) -> Record:
    lines = [line for line in record.prompt.split("\n") if not line.startswith("Reference OCR token:")]
    image = Path(record.images[0]).stem if record.images and isinstance(record.images[0], str) else ""
    found = answers.get(record.id) or answers.get((image, _folded(lines[0])))
    if found is None:
        raise ValueError(
            f"{record.where}: {path.name} has neither question_id {shown(record.id)} nor the question "
            f"{shown(lines[0])} for image {shown(image)}; expected the annotations of the same split."
        )
    return replace(record, messages=record.prompt_and_references()[0], answers=found)


def _folded(question: str) -> str:
    return " ".join(question.casefold().split())
