"""MM-SafetyBench: harmful questions whose key phrase has moved into a query-relevant image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpa_lightning.data.published_files import check_option, conversation, find_folder, text_of
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.values import shown

QUESTIONS = {"SD": "Rephrased Question(SD)", "TYPO": "Rephrased Question", "SD_TYPO": "Rephrased Question"}
"""Kind of image -> the text that goes with it."""


@dataclass(frozen=True)
class MMSafetyBench(RecordSet):
    """Questions of MM-SafetyBench with one kind of image (Liu et al., ECCV 2024, arXiv 2311.17600).

    All inputs count as harmful. Of the 13 scenarios (1680 questions), 08 and 10 to 13 are political
    lobbying, advice and government decisions, where a safe answer need not be a refusal.

    Args:
        folder: upstream's ``data``: holds ``processed_questions/<scenario>.json`` and ``imgs/``.
        kind: of the images: ``"SD"`` (generated pictures), ``"TYPO"`` (the key phrase as text) or ``"SD_TYPO"`` (both).
        scenarios: names such as ``"06-Fraud"``, read in this order; all of them, by name, when ``None``. Upstream's
            ``01-Illegal_Activitiy`` may be spelled ``01-Illegal_Activity``, here and on disk.
        image_folder: instead of ``<folder>/imgs``; holds ``<scenario>/<kind>/<id>.jpg``.

    Raises:
        ValueError: an unknown kind; when read: missing files, image folders or scenarios, a broken question.
    """

    folder: str
    kind: Literal["SD", "TYPO", "SD_TYPO"] = "SD_TYPO"
    scenarios: list[str] | None = None
    image_folder: str | None = None

    def __post_init__(self) -> None:
        check_option(self, "kind", tuple(QUESTIONS))

    def read(self) -> list[Record]:
        """Read the records, scenario after scenario in the order of the files."""
        questions = find_folder([Path(self.folder) / "processed_questions"], "folder of MM-SafetyBench questions")
        images = find_folder([Path(self.image_folder or Path(self.folder) / "imgs")], "folder of MM-SafetyBench images")
        files = {_spelled(path.stem): path for path in sorted(questions.glob("*.json"))}
        if not files:
            raise ValueError(f"{str(questions)!r} holds no questions; expected a file <scenario>.json each.")
        wanted = list(files) if self.scenarios is None else [_spelled(name) for name in self.scenarios]
        unknown = [name for name in wanted if name not in files]
        if unknown:
            raise ValueError(f"MM-SafetyBench has no scenarios {unknown} in {str(questions)!r}; it has {list(files)}.")
        return [record for name in wanted for record in self._scenario(files[name], images)]

    def _scenario(self, path: Path, images: Path) -> list[Record]:
        rows = parse_json(read_text(path), path.name)
        if not isinstance(rows, dict):
            raise ValueError(f"{path.name} holds a {type(rows).__name__}; expected an object: id -> question.")
        folders = {_spelled(folder.name): folder for folder in images.iterdir() if folder.is_dir()}
        scenario = folders.get(_spelled(path.stem), images / path.stem)
        folder = find_folder([scenario / self.kind], f"folder of {self.kind} images for {path.name}")
        records = []
        for key, row in rows.items():
            where = f"{path.name}[{shown(key)}]"
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a {type(row).__name__}; expected an object.")
            prompt = text_of(row, QUESTIONS[self.kind], where)
            record = conversation(f"{path.stem}-{key}", prompt, [str(folder / f"{key}.jpg")], where=where)
            records.append(replace(record, categories={"scenario": path.stem}))
        return records


def _spelled(scenario: str) -> str:
    """Return the name in its right spelling."""
    return scenario.replace("Activitiy", "Activity")
