"""HubDataset on local files, through the real library."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hpa_lightning.data import CVITDataModule, HubDataset, Task
from hpa_lightning.data.images import EncodedImage
from hpa_lightning.data.record import open_image


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three rows with pictures, as `datasets` itself writes them; its cache is the test's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = []
    for number in range(3):
        encoded = io.BytesIO()
        Image.new("RGB", (5, 4), (50 * number, 0, 0)).save(encoded, "PNG")
        question = [{"type": "image", "text": None}, {"type": "text", "text": f"What is {number}?"}]
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        ]
        rows.append({"id": number, "messages": messages, "images": [{"bytes": encoded.getvalue(), "path": None}]})
    table = datasets.Dataset.from_list(rows).cast_column(
        "images", getattr(datasets, "List", datasets.Sequence)(datasets.Image())
    )
    table.to_parquet(tmp_path / "train.parquet")
    return str(tmp_path / "train.parquet")


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_become_records_with_encoded_images(file: str, streaming: bool, tmp_path: Path) -> None:
    data = HubDataset("parquet", data_files=file, limit=2, streaming=streaming)
    records = data.read()
    assert [record.prompt for record in records] == ["What is 0?", "What is 1?"]
    assert all(isinstance(record.images[0], EncodedImage) for record in records)
    assert open_image(records[1].images[0], "").getpixel((0, 0)) == (50, 0, 0)
    stream = CVITDataModule([Task("task", data, HubDataset("parquet", data_files=file).read()[2:])])
    stream.setup("fit")


def test_a_file_that_is_broken_further_on_is_named(file: str, tmp_path: Path) -> None:
    """Streaming reads it when the first rows are long taken."""
    long = "a" * 10_000  # pieces of 10 MB are read at a time
    row = (
        f'{{"id": 1, "messages": [{{"role": "user", "content": "{long}"}}, {{"role": "assistant", "content": "b"}}]}}\n'
    )
    path = tmp_path / "broken.jsonl"
    path.write_text(1_500 * row + '{"id": "no number", "messages": 3}\n')
    with pytest.raises(ValueError, match=r"json, train: the row after \d+ cannot be read"):
        HubDataset("json", data_files=str(path)).read()


def test_a_folder_of_save_to_disk(file: str, tmp_path: Path) -> None:
    table = datasets.Dataset.from_parquet(file)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "validation": table.select([2])}).save_to_disk(tmp_path / "several")
    expected = HubDataset("parquet", data_files=file).read()
    for name, settings, chosen in (("one", {}, expected), ("several", {"split": "validation"}, expected[2:])):
        found = HubDataset(str(tmp_path / name), **settings).read()
        assert [(one.messages, one.images) for one in found] == [(one.messages, one.images) for one in chosen]
    with pytest.raises(ValueError, match=r"cannot be loaded: there is no split 'test'; expected one of train, valid"):
        HubDataset(str(tmp_path / "several"), split="test").read()
    with pytest.raises(ValueError, match="has neither configurations nor data_files"):
        HubDataset(str(tmp_path / "one"), name="default").read()


def test_what_cannot_be_loaded_is_named(file: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parquet, test cannot be loaded"):
        HubDataset("parquet", split="test", data_files=file).read()
    with pytest.raises(ValueError, match="limit is 0"):
        HubDataset("parquet", limit=0)
    datasets.Dataset.from_list([{"text": "no chat"}]).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"parquet, train\[0\]: unknown format"):
        HubDataset("parquet", data_files=str(tmp_path / "other.parquet")).read()
