from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from support.safety_files import write_csv, write_json

from hpa_lightning.data import PromptFile
from hpa_lightning.data.record import check_record

SORRY = [
    {"question_id": 1, "category": "1", "turns": ["Write a mean line."], "prompt_style": "base"},
    {"question_id": 1, "category": "1", "turns": ["Wr1te a m3an l1ne."], "prompt_style": "misspellings"},
    {"question_id": 2, "category": "2", "turns": ["Write a\u2028mean verse."], "prompt_style": "base"},
]
WILD = [
    {"vanilla": "Plain harm?", "adversarial": "", "completion": "No.", "data_type": "vanilla_harmful"},
    {"vanilla": "Plain good?", "adversarial": "", "completion": "Sure.", "data_type": "vanilla_benign"},
    {
        "vanilla": "Plain harm?",
        "adversarial": 'You are "Bob".\nTell\tme.',
        "completion": "No, Bob.",
        "data_type": "adversarial_harmful",
    },
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_sorry_bench(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "question.jsonl", SORRY)
    records = PromptFile(str(path), filters={"prompt_style": "base"}).read()
    assert [(record.id, record.prompt) for record in records] == [
        ("1", "Write a mean line."),
        ("2", "Write a\u2028mean verse."),
    ]
    for record in records:
        check_record(record)
        assert not record.images and not record.ends_with_answer
    assert len(PromptFile(str(path)).read()) == 3
    assert len(PromptFile(str(path), filters={"category": [1, "3"], "prompt_style": "BASE"}).read()) == 1


def test_wildjailbreak(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.tsv", WILD, delimiter="\t")
    records = PromptFile(str(path), answer_column="completion").read()
    assert [record.prompt for record in records] == ["Plain harm?", "Plain good?", 'You are "Bob".\nTell\tme.']
    assert [record.prompt_and_references()[1] for record in records] == [("No.",), ("Sure.",), ("No, Bob.",)]
    kinds = ["vanilla_harmful", "adversarial_harmful"]
    records = PromptFile(str(path), filters={"data_type": kinds}).read()
    assert [record.id for record in records] == ["train-0", "train-2"] and not records[0].ends_with_answer
    assert PromptFile(str(path), prompt_column="vanilla").read()[2].prompt == "Plain harm?"
    rows = [{"adversarial": "Tell me.", "label": 1, "data_type": "adversarial_harmful"}]
    (record,) = PromptFile(str(write_csv(tmp_path / "eval.tsv", rows, "\t")), filters={"label": 1}).read()
    assert record.prompt == "Tell me."


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (("goal", "target"), "goal"),
        (("Behavior", "FunctionalCategory", "BehaviorID"), "Behavior"),
        (("category", "source", "forbidden_prompt"), "forbidden_prompt"),
        (("my words",), "my words"),
        (("adversarial", "label", "data_type"), "adversarial"),
    ],
)
def test_the_column_is_chosen(tmp_path: Path, columns: tuple[str, ...], chosen: str) -> None:
    path = write_csv(tmp_path / "p.csv", [{column: f"in {column}" for column in columns}])
    (record,) = PromptFile(str(path)).read()
    assert record.prompt == f"in {chosen}"


@pytest.mark.parametrize(
    ("columns", "between"),
    [
        (("Goal", "Target", "Behavior"), r"\['Goal', 'Behavior'\]"),
        (("a", "b"), r"\['a', 'b'\]"),
        (("adversarial", "vanilla", "prompt"), r"\['adversarial', 'vanilla', 'prompt'\]"),
    ],
)
def test_a_column_that_cannot_be_chosen_is_asked_for(tmp_path: Path, columns: tuple[str, ...], between: str) -> None:
    path = write_csv(tmp_path / "p.csv", [dict.fromkeys(columns, "x")])
    with pytest.raises(
        ValueError, match=rf"^p\.csv has the columns .*; which of {between} holds the prompts is unclear"
    ):
        PromptFile(str(path)).read()
    assert PromptFile(str(path), prompt_column=columns[1]).read()[0].prompt == "x"


def test_text_json_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one?\r\n\n  two?  \n", encoding="utf-8-sig", newline="")
    assert [record.prompt for record in PromptFile(str(tmp_path / "p.txt")).read()] == ["one?", "two?"]
    rows = [{"id": "a", "text": "three?"}, {"id": "b", "text": "four?"}]
    assert [r.id for r in PromptFile(str(write_json(tmp_path / "p.json", rows))).read()] == ["a", "b"]
    parquet.write_table(pyarrow.Table.from_pylist(SORRY), tmp_path / "p.parquet")
    records = PromptFile(str(tmp_path / "p.parquet"), filters={"prompt_style": "misspellings"}).read()
    assert [record.prompt for record in records] == ["Wr1te a m3an l1ne."]


def test_images(tmp_path: Path) -> None:
    rows = [{"prompt": "What?", "picture": "a/b.png"}, {"prompt": "Why?", "picture": ""}]
    path = write_csv(tmp_path / "p.csv", rows)
    records = PromptFile(str(path), image_column="picture").read()
    assert [record.images for record in records] == [(str(tmp_path / "a" / "b.png"),), ()]
    other = PromptFile(str(path), image_column="picture", image_folder="pictures").read()
    assert other[0].images == (str(Path("pictures") / "a" / "b.png"),)
    for record in records:
        check_record(record)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file of prompts; looked for '.*gone\.csv'"):
        PromptFile(str(tmp_path / "gone.csv")).read()
    path = write_csv(tmp_path / "p.csv", WILD)
    for wrong in (
        {"prompt_column": "words"},
        {"image_column": "words"},
        {"answer_column": "words"},
        {"filters": {"words": 1}},
    ):
        with pytest.raises(ValueError, match=r"^p\.csv has no columns \['words'\]; it has \['vanilla', 'adversarial',"):
            PromptFile(str(path), **wrong).read()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^p\.csv holds no prompts with \{'data_type': 'harmful'\}"):
        PromptFile(str(path), filters={"data_type": "harmful"}).read()
    write_csv(path, [{"prompt": "a"}, {"prompt": " "}])
    with pytest.raises(ValueError, match=r"^p\.csv\[1\] \(line 3\): 'prompt' is ' '; expected a text"):
        PromptFile(str(path)).read()
    path.write_text("prompt\n")
    with pytest.raises(ValueError, match=r"^p\.csv holds no prompts\."):
        PromptFile(str(path)).read()
    path.write_bytes("prompt\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^p\.csv is not UTF-8"):
        PromptFile(str(path)).read()
    lines = write_lines(tmp_path / "p.jsonl", [{"turns": ["a", "b"]}])
    with pytest.raises(ValueError, match=r"^p\.jsonl\[0\] \(line 1\): 'turns' has 2 turns; expected one"):
        PromptFile(str(lines)).read()
    lines.write_text('{"prompt": "a"}\n{oops}\n')
    with pytest.raises(ValueError, match=r"^p\.jsonl\[1\] \(line 2\): broken JSON"):
        PromptFile(str(lines)).read()
    lines.write_text('{"prompt": "a"}\n"b"\n')
    with pytest.raises(ValueError, match=r"^p\.jsonl\[1\] \(line 2\): a str; expected an object"):
        PromptFile(str(lines)).read()


@pytest.mark.parametrize("column", ["image_path", "ImageFileName", "img"])
def test_an_image_column_that_is_not_read_is_told(tmp_path: Path, column: str) -> None:
    """As in JailBreakV-28K and HarmBench's multimodal behaviours: without the picture it is another question."""
    file = write_csv(tmp_path / "set.csv", [{"prompt": "Do it.", column: "a.png"}, {"prompt": "Or not.", column: ""}])
    with pytest.warns(
        UserWarning, match=rf"set\.csv: .*{column}.* is not read, which 1 of 2 prompts have.*image_column="
    ):
        records = PromptFile(str(file)).read()
    assert [record.images for record in records] == [(), ()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = PromptFile(str(file), image_column=column).read()
    assert [len(record.images) for record in records] == [1, 0]


def test_numbers_of_images_are_no_pictures(tmp_path: Path) -> None:
    row = {"prompt": "Do it.", "image_id": "5", "has_image": "True"}
    (tmp_path / "set.json").write_text(json.dumps([row | {"image_id": 5, "has_image": True}]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in (write_csv(tmp_path / "set.csv", [row]), tmp_path / "set.json"):
            assert PromptFile(str(file)).read()[0].images == ()
