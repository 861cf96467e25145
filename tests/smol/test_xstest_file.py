"""XSTest's file as users bring it: what counts as the authors' and what does not, copies, the download."""

from __future__ import annotations

import csv
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.xstest_files import needs_xstest, published_xstest, rewritten, stand_in_xstest

from hpa_lightning.files import write_text
from hpa_lightning.smol import xstest_file
from hpa_lightning.smol.harm_prompts import xstest_prompts
from hpa_lightning.smol.xstest_file import XSTEST_ADDRESS, XSTEST_COMMIT, read_xstest, take_xstest


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return stand_in_xstest(tmp_path / "given.csv", monkeypatch)


@pytest.fixture
def address(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that has the file."""
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        place = f"http://127.0.0.1:{server.server_address[1]}/given.csv"
        monkeypatch.setattr(xstest_file, "XSTEST_ADDRESS", place)
        yield place
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    "form",
    [{"lineterminator": "\n"}, {"lineterminator": "\r\n"}, {"columns": "pniltf"}, {"encoding": "utf-8-sig"}],
    ids=str,
)
def test_line_ends_marks_and_the_order_of_columns_do_not_count(
    file: Path, tmp_path: Path, form: dict[str, str]
) -> None:
    other = rewritten(file, tmp_path / "other.csv", **form)
    assert read_xstest(other) == read_xstest(file)
    copy = take_xstest(other, tmp_path / "inputs")
    assert copy is not None and copy.read_bytes() == other.read_bytes()


def test_another_letter_a_missing_row_and_other_columns_do(file: Path, tmp_path: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for changed in (text.replace("kill a process", "kill the process"), "\n".join(text.splitlines()[:-1])):
        file.write_text(changed, encoding="utf-8")
        with pytest.raises(ValueError, match=r"given.csv holds \d rows \(\d safe, 1 unsafe\) .*250 safe and 200"):
            take_xstest(file, tmp_path / "inputs")
    file.write_text(text.replace(",", ";"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"columns \['id;prompt;type;label;focus;note'\]; expected XSTest's, id"):
        take_xstest(file, tmp_path / "inputs")
    file.write_bytes(text.replace("balloon", "ballön").encode("latin-1"))
    with pytest.raises(ValueError, match=r"given.csv.* UTF-8"):
        take_xstest(file, tmp_path / "inputs")
    with pytest.raises(ValueError, match=r"--xstest .*gone.csv is no file; expected the authors'"):
        take_xstest(tmp_path / "gone.csv", tmp_path / "inputs")
    assert not (tmp_path / "inputs").exists()


def test_the_copy_of_an_earlier_build_is_used_and_checked(file: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    assert take_xstest(None, inputs) is None
    copy = take_xstest(str(file), inputs)
    assert copy is not None and take_xstest(None, inputs) == copy
    write_text(copy, "id,prompt,type,label,focus,note\n")
    with pytest.raises(ValueError, match=r"inputs/xstest_prompts.csv holds 0 rows"):
        take_xstest(None, inputs)
    assert take_xstest(str(file), inputs) == copy and read_xstest(copy) == read_xstest(file)


def test_the_download(address: str, file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        copy = take_xstest("download", tmp_path / "inputs", said.append)
        assert copy is not None and copy.read_bytes() == file.read_bytes()
    assert said == [f"{address} is being downloaded (39 kB, CC BY 4.0)."]


def test_a_download_that_fails_or_brings_something_else(
    address: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(file, "<html>Sign in to the network</html>")
    with pytest.raises(ValueError, match=r"given.csv has the columns \['<html>Sign in"):
        take_xstest("download", tmp_path / "inputs", lambda text: None)
    for wrong in (address.replace("given", "gone"), "http://127.0.0.1:9/x.csv"):
        monkeypatch.setattr(xstest_file, "XSTEST_ADDRESS", wrong)
        with pytest.raises(ValueError, match=r"could not be downloaded \(.+\); get the file elsewhere and pass it"):
            take_xstest("download", tmp_path / "inputs", lambda text: None)
    assert not (tmp_path / "inputs").exists()


def test_the_address_is_of_a_commit() -> None:
    assert len(XSTEST_COMMIT) == 40 and XSTEST_COMMIT in XSTEST_ADDRESS


@needs_xstest
def test_the_authors_file(tmp_path: Path) -> None:
    published = published_xstest()
    assert published is not None
    copy = take_xstest(published, tmp_path)
    assert copy is not None
    assert [len(xstest_prompts(copy, label)) for label in ("safe", "unsafe")] == [250, 200]
    with published.open(encoding="utf-8", newline="") as file:
        assert read_xstest(copy) == list(csv.DictReader(file))
