"""SEED-Bench.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.published_layouts import seed_bench, write_seed_bench

from hpa_lightning.data import SEEDBench
from hpa_lightning.data.record import check_record


def test_images_are_asked_and_videos_counted(tmp_path: Path) -> None:
    path = write_seed_bench(tmp_path, questions=8, videos=3)
    with pytest.warns(UserWarning, match="3 questions about videos are left out, 8 about images are asked"):
        records = SEEDBench(str(path)).read()
    assert [record.answers for record in records[:2]] == [("A", "a red cat 0"), ("B", "two dogs 1")]
    assert records[0].prompt.splitlines()[0] == "What does picture 0 show?"
    assert [record.categories["dimension"] for record in records[:2]] == ["Scene Understanding", "Instance Identity"]
    for record in records:
        check_record(record, needs_reference=True)
        assert Path(record.images[0]).is_file()


def test_by_text_as_upstream_ranks(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    record = SEEDBench(str(write_seed_bench(tmp_path, videos=0)), ask="text").read()[1]
    assert record.prompt == "What does picture 1 show?"
    assert record.choices == ("a red cat 1", "two dogs 1", "one green boat 1", "no tree 1")
    assert record.answers == ("two dogs 1",) and not recwarn.list


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_type": "Single Image"}, r"questions\[1\]: the data_type is 'Single Image'"),
        ({"answer": "E"}, r"questions\[1\]: the answer is 'E'"),
        ({"question_type_id": 99}, "question_type_id is 99"),
        ({"data_id": "../../secret.jpg"}, "names '../../secret.jpg'; expected a path within"),
        ({"choice_c": ""}, "'choice_c' is ''"),
    ],
)
def test_broken_questions_are_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_seed_bench(tmp_path, videos=0)
    content = seed_bench(8, 0)
    content["questions"][1] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        SEEDBench(str(path)).read()


def test_a_file_of_videos_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "SEED-Bench-image").mkdir()
    path = tmp_path / "SEED-Bench.json"
    path.write_text(json.dumps(seed_bench(0, 4)))
    with pytest.raises(ValueError, match=r"no question about an image \(4 are about videos\)"):
        SEEDBench(str(path)).read()
