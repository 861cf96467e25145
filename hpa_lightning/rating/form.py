"""The rating form of several runs: one HTML page, the same as CSV, and the key: which run gave which answer."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from hpa_lightning.files import path_inside, write_text
from hpa_lightning.parsing import json_object
from hpa_lightning.rating.rubric import SCALES
from hpa_lightning.report.templating import render
from hpa_lightning.results.predictions import FOLDER, read_predictions
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.table import csv_cell
from hpa_lightning.values import names, shown

FORMAT = "hpa-lightning rating form 1"
KINDS = ("safety", "over_refusal", "helpfulness", "task")


@dataclass(frozen=True)
class Item:
    """A question with the answers of all runs.

    Args:
        id: on the form.
        set, kind: of the evaluation set; not on the form.
        sample: id of the record.
        question: what was asked.
        pictures: files.
        answers: of each run, in the order of the runs.
        verdicts: of each run, ``{"judge", "verdict"}`` as stored, empty where no judge scored it.
        order: the run whose answer is at each place of the form.
    """

    id: str
    set: str
    kind: str
    sample: str
    question: str
    pictures: tuple[Path, ...]
    answers: tuple[str, ...]
    verdicts: tuple[Mapping[str, Any], ...]
    order: tuple[int, ...]

    def shown_texts(self) -> list[str]:
        """The texts of the form in their order: question, then answers."""
        return [on_page(self.question), *(on_page(self.answers[run]) for run in self.order)]


def on_page(text: str) -> str:
    """The text as a browser holds it: one kind of line end, no NUL.

    >>> on_page("a\\r\\nb\\rc")
    'a\\nb\\nc'
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\N{REPLACEMENT CHARACTER}")


def shown_hash(texts: Sequence[str]) -> str:
    """FNV-1a over the UTF-16 units of texts, 64 bits in hexadecimal; the page computes the same of what it shows.

    >>> shown_hash(["ab", "c"])
    'ad22872f536e4705'
    """
    value = 0xCBF29CE484222325
    for text in texts:
        data = text.encode("utf-16-le", "surrogatepass") + b"\x00\x00"
        for place in range(0, len(data), 2):
            value = ((value ^ (data[place] | data[place + 1] << 8)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def export_form(
    runs: Sequence[str | Path],
    output: str | Path,
    key: str | Path,
    sets: Sequence[str] | None = None,
    step: int | None = None,
    samples: int = 20,
    seed: int = 0,
    title: str = "Rating form",
) -> dict[str, Path]:
    """Write the form as a page and as CSV, and the key.

    Every rater gets the same form. It names no run and no set; the order of the questions, and of the answers to each,
    is drawn by the seed.

    Args:
        runs: folders with results and stored answers, at least one; all have answered the same records.
        output: folder for ``form.html`` and ``form.csv``.
        key: the file that says which run gave which answer; not inside ``output``, which goes to the raters.
        sets: evaluation sets; all with generated answers when ``None``.
        step: after which the answers were given (-1: the aligned model); each run's last when ``None``.
        samples: questions of each set, drawn by the seed; 0 for all.
        seed: of all draws.
        title: of the page.

    Returns:
        ``"html"``, ``"csv"`` and ``"key"``.

    Raises:
        ValueError: no run or the same twice, a set, a step or answers that a run does not have, records that differ
            between runs, a picture outside a run's folder, a key inside the output's folder or in place of another
            file.
    """
    folders = [Path(run) for run in runs]
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"the runs are {names(folders)}; expected at least one, and each once.")
    output, key = Path(output), Path(key)
    if key.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"the key {key} is in {output}, which goes to the raters; choose another place for it.")
    if samples < 0:
        raise ValueError(f"samples is {samples}; expected at least 1, or 0 for all.")
    items = _items(folders, sets, step, samples, seed)
    form = {"format": FORMAT, "seed": seed, "items": [item.shown_texts() for item in items]}
    digest = hashlib.sha256(json.dumps(form, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if key.exists() and _form_of(key) != digest:
        raise ValueError(
            f"{key} exists and is not the key of this form; without its key a form that is out cannot be read. Choose "
            "another place for the new one, or move that file away."
        )
    table = _csv(items, digest)
    page = render(
        "rating_form.html", {"title": title, "form": digest, "format": FORMAT, "scales": SCALES, "items": items}
    )
    secret = {
        "format": FORMAT,
        "form": digest,
        "shown": shown_hash([text for item in items for text in item.shown_texts()]),
        "seed": seed,
        "runs": [{"path": str(folder), "method": RunResults.from_file(folder).method} for folder in folders],
        "items": [
            {
                "id": item.id,
                "set": item.set,
                "kind": item.kind,
                "sample": item.sample,
                "order": item.order,
                "question": item.question,
                "answers": item.answers,
                "verdicts": item.verdicts,
            }
            for item in items
        ],
    }
    write_text(key, json.dumps(secret, ensure_ascii=False, indent=1) + "\n")
    write_text(output / "form.csv", table)
    write_text(output / "form.html", page)
    return {"html": output / "form.html", "csv": output / "form.csv", "key": key}


def _form_of(path: Path) -> Any:
    """The digest of the form whose key a file is; ``None`` if it is none."""
    try:
        return json_object(path).get("form")
    except (OSError, ValueError):
        return None


def _items(
    folders: Sequence[Path], sets: Sequence[str] | None, step: int | None, samples: int, seed: int
) -> list[Item]:
    found = [_answers(folder, sets, step) for folder in folders]
    kinds, first = found[0]
    shared = [name for name in first if all(name in answers for _, answers in found)]
    for name in sets or ():
        missing = [str(folder) for folder, (_, answers) in zip(folders, found, strict=True) if name not in answers]
        if missing:
            raise ValueError(f"{names(missing)} have no generated answers to {shown(name)}; they have {names(shared)}.")
    if not shared:
        raise ValueError(f"the runs {names(folders)} have no set with generated answers in common.")
    draw = random.Random(seed)
    drawn: list[tuple[str, int]] = []
    for name in shared:
        for folder, (_, answers) in zip(folders[1:], found[1:], strict=True):
            _check_same(name, first[name], answers[name], folders[0], folder)
        places = list(range(len(first[name])))
        draw.shuffle(places)
        drawn += [(name, place) for place in (places[:samples] if samples else places)]
    draw.shuffle(drawn)
    items, unreported = [], list[str]()
    for number, (name, place) in enumerate(drawn, start=1):
        rows = [answers[name][place] for _, answers in found]
        order = list(range(len(folders)))
        draw.shuffle(order)
        pictures = _pictures(name, rows, folders)
        if pictures is None:
            unreported.append(name)
        reported = ("judge", "verdict")
        verdicts: list[dict[str, Any]] = [{key: row[key] for key in reported if key in row} for row in rows]
        items.append(
            Item(
                f"q{number:04d}",
                name,
                kinds[name],
                str(rows[0].get("id", place)),
                str(rows[0].get("question", rows[0]["prompt"])),
                pictures or (),
                tuple(str(row["response"]) for row in rows),
                tuple(verdicts),
                tuple(order),
            )
        )
    if unreported:
        rank_zero_warn(
            f"The stored answers to {names(sorted(set(unreported)))} do not include their pictures (TaskEvaluation "
            "keeps "
            "them, `hpa-lightning test` does not): questions about pictures are on the form without them.",
            category=UserWarning,
        )
    return items


def _pictures(name: str, rows: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> tuple[Path, ...] | None:
    """The pictures of a question, of the first run that kept them; ``None`` where none tells of any."""
    for row, folder in zip(rows, folders, strict=True):
        if "images" in row:
            found = [path_inside(folder / FOLDER, one, f"an answer of {folder}") for one in row["images"]]
            if gone := [picture for picture in found if not picture.is_file()]:
                raise ValueError(f"the picture {gone[0]} of {name} is gone; keep the run's predictions/ whole.")
            return tuple(found)
    return None


def _answers(
    folder: Path, sets: Sequence[str] | None, step: int | None
) -> tuple[dict[str, str], dict[str, tuple[dict[str, Any], ...]]]:
    """Set -> kind, and set -> rows of the generated answers at the step."""
    kinds = {item["name"]: item["kind"] for item in RunResults.from_file(folder).sets}
    by_step: dict[int, dict[str, tuple[dict[str, Any], ...]]] = {}
    for item in read_predictions(folder, set(sets) if sets else None):
        if item.set in kinds and item.rows and not any("choices" in row for row in item.rows):
            by_step.setdefault(item.step, {})[item.set] = item.rows
    if not by_step:
        return kinds, {}
    wanted = max(by_step) if step is None else step
    if wanted not in by_step:
        raise ValueError(f"{folder} has no generated answers of step {wanted}; it has those of {sorted(by_step)}.")
    return kinds, by_step[wanted]


def _check_same(
    name: str, left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]], first: Path, other: Path
) -> None:
    """Check that two runs have answered the same records of a set."""
    asked = [[(row.get("id"), row.get("question", row["prompt"])) for row in rows] for rows in (left, right)]
    if asked[0] != asked[1]:
        places = (place for place, (one, two) in enumerate(zip(*asked, strict=False)) if one != two)
        where = next(places, min(len(left), len(right)))
        raise ValueError(
            f"{first} and {other} have answered other records of {name}: {len(left)} and {len(right)}, and they differ "
            f"from number {where + 1} on; a form compares answers to the same questions."
        )


CSV_COLUMNS = ("form", "rater", "item", "answer", "question", "text", *(scale.name for scale in SCALES))


def _csv(items: Sequence[Item], form: str) -> str:
    """The form as a table: a row for each answer, the ratings to be filled in."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for item in items:
        question, *answers = item.shown_texts()
        for place, answer in enumerate(answers, start=1):
            cells = [csv_cell(text) for text in (question, answer)]
            writer.writerow([form, "", item.id, place, *cells, *("" for _ in SCALES)])
    return output.getvalue()
