"""Parts of a folder: made once, whole or not at all, anew when something changed."""

from pathlib import Path

import pytest

from hpa_lightning.smol.built_parts import build_part


class _Filler:
    """Writes a file and counts how often."""

    def __init__(self, stop: bool = False) -> None:
        self.runs, self.stop = 0, stop

    def __call__(self, folder: Path) -> dict[str, int]:
        self.runs += 1
        (folder / "a.json").write_text("[1]")
        (folder / "a.png").write_bytes(b"png")
        if self.stop:
            raise KeyboardInterrupt
        return {"train": 1}


def test_a_part_is_made_once_and_again_when_what_it_is_made_of_changes(tmp_path: Path) -> None:
    fill = _Filler()
    first = build_part(tmp_path / "p", {"version": 1}, fill)
    assert build_part(tmp_path / "p", {"version": 1}, fill) == first and fill.runs == 1
    assert first["counts"] == {"train": 1} and first["pictures"] == 1 and list(first["files"]) == ["a.json"]
    assert build_part(tmp_path / "p", {"version": 2}, fill)["key"] != first["key"] and fill.runs == 2


@pytest.mark.parametrize("name", ["a.json", "a.png"])
def test_a_part_that_lost_or_changed_something_is_made_again(tmp_path: Path, name: str) -> None:
    fill = _Filler()
    build_part(tmp_path / "p", {}, fill)
    (tmp_path / "p" / name).write_text("[2]") if name.endswith("json") else (tmp_path / "p" / name).unlink()
    build_part(tmp_path / "p", {}, fill)
    assert fill.runs == 2 and (tmp_path / "p" / "a.json").read_text() == "[1]"


def test_a_killed_part_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_part(tmp_path / "p", {}, _Filler(stop=True))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no part of this benchmark"):
        build_part(tmp_path / "p", {}, _Filler())
    assert (tmp_path / "p" / "mine.txt").read_text() == "mine"
