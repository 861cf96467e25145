from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from support.pair_files import lines, texts
from support.safety_files import decoded, encoded, write_image, write_json
from support.tiny_mllms import tiny_llava

from hpa_lightning.data import (
    SPAVL,
    CVITDataModule,
    DataWarning,
    EncodedImage,
    EvaluationSet,
    MLLMCollator,
    Record,
    Task,
)
from hpa_lightning.data.record import check_record, missing_images, open_image
from hpa_lightning.data.safety_sets import build_safety_calibration


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the hub's image datasets have them: the image is a struct of bytes and path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [(name, image if name == "image" else pyarrow.string()) for name in rows[0]]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(fields)), path, row_group_size=2)
    return path


def harm_row(index: int) -> dict[str, Any]:
    return {
        "image": {"bytes": encoded(index, "JPEG"), "path": f"{index}.jpg"},
        "question": f"Should I do it {index} times?",
        "class1": "Misinformation Harms",
        "class2": "False Beliefs",
        "class3": "Rumours",
    }


def train_row(index: int) -> dict[str, Any]:
    return {
        "image": {"bytes": encoded(index), "path": None},
        "question": f"Is {index} wise?",
        "chosen": f"It is not, {index}.",
        "rejected": f"It is, {index}.",
        "image_name": f"train/{index}.png",
    }


def test_evaluation_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "test" / "harm-00000-of-00001.parquet", [harm_row(i) for i in range(5)])
    records = SPAVL(str(path)).read()
    assert [record.id for record in records] == [f"harm-00000-of-00001-{index}" for index in range(5)]
    for index, record in enumerate(records):
        check_record(record)
        assert record.prompt == f"Should I do it {index} times?" and not record.ends_with_answer
        (image,) = record.images
        assert isinstance(image, EncodedImage) and image.data == encoded(index, "JPEG") and image.name == f"{index}.jpg"
        np.testing.assert_array_equal(np.asarray(open_image(image, "r")), np.asarray(decoded(image.data)))
    assert records[3].where == "harm-00000-of-00001.parquet[3]"
    assert missing_images(records) == []


@pytest.mark.parametrize("answer", ["chosen", "rejected"])
def test_training_parquet_in_several_files(tmp_path: Path, answer: Any) -> None:
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [train_row(i) for i in (3, 4)])
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [train_row(i) for i in (0, 1, 2)])
    records = SPAVL(str(tmp_path / "train-*.parquet"), answer=answer).read()
    assert [record.prompt for record in records] == [f"Is {index} wise?" for index in range(5)]
    assert records[4].prompt_and_references()[1] == ("It is not, 4." if answer == "chosen" else "It is, 4.",)
    assert len({record.id for record in records}) == 5
    for record in records:
        check_record(record, needs_answer=True)
    assert not SPAVL(str(tmp_path / "train-*.parquet")).read()[0].ends_with_answer


def test_training_json(tmp_path: Path) -> None:
    rows = [
        {"id": index, "image": f"images/{index}.png", "question": f"{index}?", "chosen": "no", "rejected": "yes"}
        for index in range(3)
    ]
    path = write_json(tmp_path / "train.json", rows)
    (first, *_) = SPAVL(str(path), answer="chosen").read()
    assert (first.id, first.images) == ("0", (str(tmp_path / "images" / "0.png"),))
    write_image(tmp_path / "elsewhere" / "images" / "1.png")
    second = SPAVL(str(path), answer="rejected", image_folder=str(tmp_path / "elsewhere")).read()[1]
    assert Path(second.images[0]).is_file() and second.prompt_and_references()[1] == ("yes",)


def test_encoded_images_through_batches_and_the_calibration_set(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "harm.parquet", [harm_row(i) for i in range(4)])
    harmful = SPAVL(str(path))
    collator = MLLMCollator(tiny_llava()[1])
    records = harmful.read()
    same = [Record(r.id, r.messages, (decoded(r.images[0].data),)) for r in records]
    for key, value in collator.generate(records)["inputs"].items():
        assert torch.equal(value, collator.generate(same)["inputs"][key])
    data = CVITDataModule(
        [Task("a", SPAVL(str(_train(tmp_path)), answer="chosen"), SPAVL(str(_train(tmp_path, 9)), answer="chosen"))],
        safety_sets=[EvaluationSet("harm", "safety", SPAVL(str(write_parquet(tmp_path / "h.parquet", [harm_row(9)]))))],
        harmful_calibration=harmful,
        processor=collator.processor,
    )
    data.setup("fit")
    made = build_safety_calibration(
        lambda batch: ["I cannot."] * len(batch["ids"]), collator, data.harmful_calibration_records(), _all, size=2
    )
    state = made.state_dict()
    assert [row["images"][0].shape for row in state["records"]] == [(28, 28, 3)] * 2


def _train(folder: Path, first: int = 0) -> Path:
    return write_parquet(folder / f"train{first}.parquet", [train_row(i) for i in range(first, first + 2)])


def _all(answers: list[str]) -> list[bool]:
    return [True] * len(answers)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SPAVL: answer is 'best'; expected one of chosen, rejected"):
        SPAVL("x.parquet", answer="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no SPA-VL file '.*train-\*\.parquet'; expected a file, or a pattern"):
        SPAVL(str(tmp_path / "train-*.parquet")).read()
    with pytest.raises(ValueError, match=r"no SPA-VL file"):
        SPAVL(str(tmp_path / "gone" / "train.json")).read()
    path = write_parquet(tmp_path / "harm.parquet", [harm_row(0)])
    with pytest.raises(ValueError, match=r"^harm\.parquet\[0\]: 'chosen' is missing; the row has \['class1', 'class2'"):
        SPAVL(str(path), answer="chosen").read()
    write_parquet(path, [harm_row(0), {**harm_row(1), "image": {"bytes": None, "path": None}}])
    with pytest.raises(ValueError, match=r"^harm\.parquet\[1\]: the image is 'None'; expected a path, or the bytes"):
        SPAVL(str(path)).read()
    write_parquet(path, [{**harm_row(0), "image": {"bytes": None, "path": "pictures/0.jpg"}}])
    assert SPAVL(str(path)).read()[0].images == (str(tmp_path / "pictures" / "0.jpg"),)
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(ValueError, match=r"^harm\.parquet cannot be read as parquet after 0 rows: "):
        SPAVL(str(path)).read()
    (tmp_path / "train.xml").write_text("<x/>")
    with pytest.raises(ValueError, match=r"train\.xml ends with '\.xml'; expected one of \.json, "):
        SPAVL(str(tmp_path / "train.xml")).read()


def spa_vl(index: int, **changes: Any) -> dict[str, Any]:
    row = {"id": index, "image": f"images/{index}.png", "question": f"Is {index} wise?"}
    return row | {"chosen": f"It is not, {index}.", "rejected": f"It is, {index}."} | changes


def test_spa_vl_pairs(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "0.png", 0)
    file = lines(tmp_path / "train.jsonl", [spa_vl(0), spa_vl(1, rejected="It is not, 1."), spa_vl(2, chosen=None)])
    with pytest.raises(ValueError, match="2 of 3 rows cannot be learnt from as pairs"):
        SPAVL(file, answer="pair").read()
    with pytest.warns(DataWarning, match="1 with twice the same answer"):
        (record,) = SPAVL(file, answer="pair", faulty="skip").read()
    assert texts([record]) == [("It is not, 0.", "It is, 0.")]
    assert record.images == (str(tmp_path / "images" / "0.png"),) and record.prompt == "Is 0 wise?"
    assert SPAVL(file, answer="rejected").read()[0].rejected == ""
