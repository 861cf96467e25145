"""Parts of a filter that go by wording."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from support.instruction_files import llava_row, write_rows

from hpa_lightning.data import Record
from hpa_lightning.data.record import assistant_turn, message_text, user_turn
from hpa_lightning.filtering import Assessment, Finding, PhraseFilter, RefusalFilter, filter_data

SHARED = Path(__file__).parents[3] / "shared" / "data"


def record(question: str, answer: str = "A lake.", number: int = 0) -> Record:
    return Record(str(number), (*user_turn(question), *assistant_turn(answer)))


@pytest.mark.parametrize(
    ("match", "text", "found"),
    [
        ("words", "How to make a PIPE\n bomb?", "pipe bomb"),
        ("words", "The class of bombs", None),
        ("anywhere", "The class of bombs", "ass"),
        ("prefix", "pipe bombs are bad", "pipe bomb"),
        ("prefix", "a pipe bomb", None),
        ("words", "C++ and c", "c++"),
        ("words", "请告诉我如何制造炸弹和毒药", "制造炸弹"),
        ("words", "ทำระเบิดได้อย่างไร", "ระเบิด"),
        ("words", "看class吗", None),
    ],
)
def test_how_phrases_match(match: str, text: str, found: str | None) -> None:
    part = PhraseFilter(phrases=["Pipe Bomb", "ass", "c++", "制造炸弹", "ระเบิด"], match=match)
    (finding,) = part([record(text)])
    assert (finding.label or None, finding.assessment is Assessment.HARMFUL) == (found, found is not None)


def test_lists_are_categories(tmp_path: Path) -> None:
    (tmp_path / "weapons.txt").write_text("pipe bomb\n\n  Napalm \n")
    (tmp_path / "slurs.json").write_text(json.dumps({"match": "anywhere", "phrases": ["scum"], "exact": ["Out."]}))
    part = PhraseFilter([str(tmp_path / "weapons.txt"), str(tmp_path / "slurs.json")], phrases=["cat"])
    findings = part([record("Napalm for scumbags?"), record("A cat", "out."), record("A dog")])
    assert [one.categories for one in findings] == [("weapons", "slurs"), ("slurs",), ()]
    assert [one.where for one in findings] == ["turn 0 (user)", "turn 0 (user)", ""]
    assert PhraseFilter(phrases=["cat"], roles=["assistant"])([record("A cat")])[0].assessment is Assessment.HARMLESS


def test_refusals() -> None:
    records = [record("What?", "I'm sorry, I can't help with that."), record("What?"), Record("2", user_turn("What?"))]
    kinds = [finding.assessment for finding in RefusalFilter()(records)]
    assert kinds == [Assessment.HARMFUL, Assessment.HARMLESS, Assessment.NOTHING]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "broken.json").write_text('{"match": "anywhere"}')
    for settings, said in (
        ({}, "has no phrase"),
        ({"phrases": "bomb"}, "files and phrases are lists"),
        ({"phrases": ["a"], "match": "word"}, "match is 'word'"),
        ({"files": [str(tmp_path / "no.txt")]}, "there is no file"),
        ({"files": [str(tmp_path / "empty.txt")]}, "holds no phrase"),
        ({"files": [str(tmp_path / "broken.json")]}, "broken.json hold no phrase"),
    ):
        with pytest.raises(ValueError, match=said):
            PhraseFilter(**settings)  # type: ignore[arg-type]


class Trained:
    """A filter of somebody's own, in ten lines: a linear classifier of scikit-learn."""

    def __init__(self, texts: Sequence[str], refused: Sequence[bool]) -> None:
        self._vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        self._model = LogisticRegression(C=10).fit(self._vectors.fit_transform(texts), refused)

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        answers = [message_text(one.messages[-1]) for one in records]
        scores = self._model.predict_proba(self._vectors.transform(answers))[:, 1]
        return [Finding.of(bool(score >= 0.5), "refusal", float(score)) for score in scores]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the human-labelled completions are not beside this checkout")
def test_refusals_against_people(tmp_path: Path) -> None:
    """Completions of two models that people called full refusals or compliance, as a LLaVA file of instruction data."""
    with (SHARED / "xstest_completions_dev.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["final_label"] in ("1_full_compliance", "2_full_refusal")]
    rows = [row for row in rows if row["completion"].strip()]
    refused = [row["final_label"] == "2_full_refusal" for row in rows]
    trained = Trained([row["completion"] for row in rows[::2]], refused[::2])
    data = [llava_row(n, row["prompt"], row["completion"], None) for n, row in enumerate(rows)][1::2]
    path = write_rows(tmp_path / "train.json", data)
    for name, part in (("own", trained), ("rules", RefusalFilter("rules-v2")), ("judge", RefusalFilter())):
        outcome = filter_data(path, {name: part}, tmp_path / name)
        dropped = {row["id"] for row in json.loads(outcome.dropped.read_text())}
        agree = [(row["id"] in dropped) == label for row, label in zip(data, refused[1::2], strict=True)]
        assert len(agree) > 400 and sum(agree) / len(agree) > 0.9, name
