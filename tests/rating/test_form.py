"""The rating form: blind, the same for all, harmless, and working in a browser from a file."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from support.html_structure import HOSTILE, Structure
from support.rated_runs import REFUSAL, write_rated_run

from hpa_lightning.cli import main
from hpa_lightning.rating import export_form, rate_outcome
from hpa_lightning.results.result_file import read_results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    odd = ("=1+1", "", f"{HOSTILE}\r\nline\rend\0 \U0001f600")
    shared = {"first": ["red"] * 3, "mild": ["Use kill.", REFUSAL, "Yes."]}
    return [
        write_rated_run(tmp_path / "secret-one", "HPA", {**shared, "harmful": [REFUSAL, REFUSAL, "Sure."]}),
        write_rated_run(tmp_path / "secret-two", "SeqFT", {**shared, "harmful": list(odd)}),
    ]


def test_the_form_is_blind_and_shuffled_and_the_key_is_apart(runs: list[Path], tmp_path: Path) -> None:
    written = export_form(runs, tmp_path / "form", tmp_path / "form.key.json", seed=3)
    page, table = written["html"].read_text(), written["csv"].read_text()
    for secret in ("secret-one", "secret-two", "HPA", "SeqFT", "refusal-v2", "harmful-0"):
        assert secret not in page and secret not in table
    key = json.loads(written["key"].read_text())
    assert [run["method"] for run in key["runs"]] == ["HPA", "SeqFT"] and len(key["items"]) == 9
    assert {tuple(item["order"]) for item in key["items"]} == {(0, 1), (1, 0)}
    assert [item["sample"] for item in key["items"]] != sorted(item["sample"] for item in key["items"])
    rows = list(csv.DictReader(table.splitlines(keepends=True)))
    assert len(rows) == 18 and {row["form"] for row in rows} == {key["form"]}
    assert "'=1+1" in {row["text"] for row in rows}  # no spreadsheet takes an answer for a formula
    # The same seed gives the same form; the key does not lie with it.
    again = export_form(runs, tmp_path / "again", tmp_path / "again.key.json", seed=3)
    assert again["html"].read_text() == page and sorted(p.name for p in (tmp_path / "form").iterdir()) == [
        "form.csv",
        "form.html",
    ]
    other = export_form(runs, tmp_path / "other", tmp_path / "other.key.json", seed=4)
    assert json.loads(other["key"].read_text())["form"] != key["form"]


def test_hostile_texts_are_no_markup(runs: list[Path], tmp_path: Path) -> None:
    page = export_form(runs, tmp_path / "form", tmp_path / "key.json")["html"].read_text()
    structure = Structure(page)
    assert [tag for tag in structure.tags if tag[0] == "script"] == [("script",)]
    assert not any(name.startswith("on") for tag in structure.tags for name in tag[1:])
    assert all(address.startswith("data:image/jpeg;base64,") for address in structure.addresses)


def test_few_questions_of_some_sets(runs: list[Path], tmp_path: Path) -> None:
    written = export_form(runs, tmp_path / "form", tmp_path / "key.json", sets=["harmful"], samples=2, step=-1)
    key = json.loads(written["key"].read_text())
    assert [item["set"] for item in key["items"]] == ["harmful"] * 2


def test_what_cannot_be_compared_is_told(runs: list[Path], tmp_path: Path) -> None:
    other = write_rated_run(tmp_path / "other", "X", {"first": ["a"], "harmful": ["b"] * 4, "mild": ["c"] * 3})
    outside = tmp_path / "outside"
    shutil.copytree(runs[0], outside)
    path = outside / "predictions" / "step_01_harmful.jsonl"
    path.write_text(path.read_text().replace("images/harmful/00000_0.jpg", "../../secret.jpg"))
    for folders, options, message in (
        ([], {}, "expected at least one"),
        ([runs[0], runs[0]], {}, "each once"),
        ([runs[0], other], {}, "have answered other records of first: 3 and 1, and they differ from number 2 on"),
        (runs, {"sets": ["nothing"]}, "no generated answers to 'nothing'"),
        (runs, {"step": 7}, r"no generated answers of step 7; it has those of \[-1, 0\]"),
        ([outside], {}, "expected a path within"),
        (runs, {"samples": -1}, "samples is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            export_form(folders, tmp_path / "form", tmp_path / "key.json", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="which goes to the raters"):
        export_form(runs, tmp_path / "form", tmp_path / "form" / "key.json")
    assert not (tmp_path / "form").exists()


def test_a_key_is_not_lost(runs: list[Path], tmp_path: Path) -> None:
    written = export_form(runs, tmp_path / "form", tmp_path / "key.json")
    before = written["key"].read_bytes()
    assert export_form(runs, tmp_path / "form", tmp_path / "key.json")["key"].read_bytes() == before
    results = runs[0] / "results.jsonl"
    for key, options in ((written["key"], {"seed": 1}), (results, {})):
        with pytest.raises(ValueError, match="exists and is not the key of this form"):
            export_form(runs, tmp_path / "form", key, **options)
    with pytest.raises(SystemExit, match="which is read; choose another file"):
        main(["rate", "import", str(results), "--key", str(written["key"]), "--output", str(written["key"])])
    assert written["key"].read_bytes() == before and read_results(results)


def test_pictures_are_those_of_the_run_that_kept_them(runs: list[Path], tmp_path: Path) -> None:
    """`hpa-lightning test` keeps none."""
    for path in (runs[0] / "predictions").glob("*.jsonl"):
        path.write_text(re.sub(r'"images": \[[^]]*\], ', "", path.read_text()))
    page = export_form(runs, tmp_path / "form", tmp_path / "key.json")["html"].read_text()
    assert page.count("<img ") == 9
    with pytest.warns(UserWarning, match=r"answers to \['first', 'harmful', 'mild'\] do not include their pictures"):
        page = export_form(runs[:1], tmp_path / "bare", tmp_path / "bare.json")["html"].read_text()
    assert "<img " not in page


def browse(page: Path, profile: Path) -> str:
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
    command += [f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=180).stdout


def exported(dom: str) -> str:
    return unescape(re.search(r'<pre id="text">(.*?)</pre>', dom, re.DOTALL)[1])  # type: ignore[index]


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_rated_reloaded_exported_and_imported(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["rate", "export", *map(str, runs), "--output", str(tmp_path / "form"), "--key", str(tmp_path / "key.json")])
    page, profile = tmp_path / "form" / "form.html", tmp_path / "profile"
    untouched = page.read_text()
    rating = """<script>
      HTMLAnchorElement.prototype.click = function () { document.body.dataset.saved = this.download; };
      rater.value = "Ada Lovelace/1";
      for (const field of document.querySelectorAll("fieldset")) field.querySelectorAll("input")[1].click();
      document.getElementById("export").click();
    </script></body>"""
    page.write_text(untouched.replace("</body>", rating))
    first = browse(page, profile)
    assert "18 of 18 answers are rated on all scales." in first and 'data-saved="ratings-Ada_Lovelace_1.json"' in first
    page.write_text(untouched)
    again = browse(page, profile)  # a new browser process, the page as it was exported
    assert exported(again) == exported(first) and '<p id="warning" role="alert" hidden' in again
    (tmp_path / "ada.json").write_text(exported(again))
    capsys.readouterr()
    main(["rate", "import", str(tmp_path / "ada.json"), "--key", str(tmp_path / "key.json")])
    said = capsys.readouterr().out
    assert "1 raters (Ada Lovelace/1), 9 questions." in said and "tied" in said
    # An edited page tells so itself.
    page.write_text(untouched.replace("mild question 0?", "mild question zero?"))
    (tmp_path / "edited.json").write_text(exported(browse(page, profile)))
    with pytest.raises(ValueError, match=r"edited.json is of a form whose texts were changed"):
        rate_outcome([tmp_path / "edited.json"], tmp_path / "key.json")


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_that_keeps_nothing_is_told(runs: list[Path], tmp_path: Path) -> None:
    page = export_form(runs, tmp_path / "form", tmp_path / "key.json")["html"]
    broken = (
        "<script>Object.defineProperty(window, 'localStorage', {get() { throw new Error('off'); }});</script></head>"
    )
    page.write_text(page.read_text().replace("</head>", broken))
    dom = browse(page, tmp_path / "profile")
    assert '<p id="warning" role="alert">' in dom and "0 of 18 answers" in dom
