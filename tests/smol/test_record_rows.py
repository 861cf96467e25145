"""Rows that the package's readers read back as what they were."""

import json
from pathlib import Path

from hpa_lightning.data import PromptFile, read_records
from hpa_lightning.data.record import message_text
from hpa_lightning.smol.record_rows import prompt_row, question_row, row_of, training_row, write_lines, write_rows
from hpa_lightning.smol.request_forms import RequestForms


def test_training_and_test_rows_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    rows = [training_row("1", "What is it?", "a cat", "a.png"), training_row("2", "Why?", "So.")]
    assert write_rows(tmp_path / "train.json", rows) == 2
    first, second = read_records(str(tmp_path / "train.json"), str(tmp_path))
    assert first.images == (str(tmp_path / "a.png"),) and first.prompt == "What is it?" and second.images == ()
    assert message_text(first.messages[-1]) == "a cat"
    write_rows(tmp_path / "test.json", [question_row("7", "What is it?", "a cat", "a.png")])
    (test,) = read_records(str(tmp_path / "test.json"), str(tmp_path))
    assert test.id == "7" and test.answers == ("a cat",) and len(test.images) == 1


def test_records_of_all_forms_become_rows_of_a_table_of_prompts(tmp_path: Path) -> None:
    forms = RequestForms(["a.png"], tmp_path / "typeset")
    records = [forms.record(form, "1", "How?") for form in forms.names]
    rows = [{**prompt_row(record, lambda path: f"x/{Path(path).name}"), "source": "S"} for record in records]
    assert write_lines(tmp_path / "harm.jsonl", rows) == 3
    read = PromptFile(str(tmp_path / "harm.jsonl"), "prompt", "image", category_columns=["source"]).read()
    assert [len(record.images) for record in read] == [0, 1, 1]
    assert [record.id for record in read] == [record.id for record in records]
    assert all(record.categories == {"source": "S"} for record in read)
    answered = forms.record("picture", "1", "How?", "So.")
    row = row_of(answered, lambda path: f"x/{path}")
    assert row["image"] == "x/a.png" and json.dumps(row).count("<image>") == 1
