"""MME's folder and the hub's parquet file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table
from support.published_layouts import jpeg, mme_pairs, write_mme

from hpa_lightning.data import MME
from hpa_lightning.data.helpfulness.mme import SUBTASKS
from hpa_lightning.data.record import check_record

EVERY = {subtask: 2 for subtasks in SUBTASKS.values() for subtask in subtasks}


def test_folder_and_parquet_are_the_same(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    pairs = mme_pairs(EVERY)
    records = MME(str(write_mme(tmp_path / "MME", pairs))).read()
    rows = [
        {
            "question_id": f"{subtask}/{name}.png",
            "image": {"bytes": jpeg(int(name)), "path": f"{name}.png"},
            "question": question,
            "answer": answer,
            "category": subtask,
        }
        for subtask, name, question, answer in pairs
    ]
    for number, start in enumerate(range(0, len(rows), 30)):
        write_table(pa.Table.from_pylist(rows[start : start + 30]), tmp_path / f"test-{number}.parquet")
    hub = MME(str(tmp_path / "test-*.parquet")).read()
    assert not recwarn.list
    key = lambda r: (r.categories["subtask"], r.group.removesuffix(".png"), r.prompt, r.answers)  # noqa: E731
    assert sorted(map(key, records)) == sorted(map(key, hub))
    assert len(records) == 2 * 2 * 14
    for record in [*records, *hub]:
        check_record(record, needs_reference=True)
        assert record.choices == ("Yes", "No") and record.prompt.endswith("Please answer yes or no.")


def test_an_instruction_stands_behind_the_question(tmp_path: Path) -> None:
    folder = write_mme(tmp_path / "MME", mme_pairs(EVERY))
    assert MME(str(folder), instruction="One word.").read()[0].prompt.endswith("yes or no.\nOne word.")


def test_what_is_broken_is_told(tmp_path: Path) -> None:
    folder = write_mme(tmp_path / "MME", mme_pairs(EVERY))
    file = folder / "count" / "0001.txt"
    for text, message in [
        ("Is it?\tYes\n", "1 pictures do not have two questions, the first is '0001' of count with 1"),
        ("Is it? Yes\nOr?\tNo\n", "count/0001.txt, line 1: 'Is it\\? Yes'; expected a question, a tab"),
        ("Is it?\tperhaps\nOr?\tNo\n", "count/0001.txt, line 1: the answer is 'perhaps'; expected Yes or No"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            MME(str(folder)).read()
    (folder / "count" / "0001.png").unlink()
    with pytest.raises(ValueError, match=r"count/0001.txt: there is no picture"):
        MME(str(folder)).read()
    with pytest.raises(ValueError, match="none of MME's folders"):
        MME(str(tmp_path)).read()
    with pytest.raises(ValueError, match="no MME folder or file"):
        MME(str(tmp_path / "nothing.parquet")).read()
