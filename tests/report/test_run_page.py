"""The page of a run: its text, and the page in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image

from hpa_lightning.report import write_report
from hpa_lightning.report.run_tables import matrix_table
from hpa_lightning.results.result_file import ResultWriter
from hpa_lightning.results.run_results import RunResults

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")


def browse(page: Path, profile: Path, *arguments: str) -> str:
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
    command += [f"--user-data-dir={profile}", *arguments, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


def test_page_is_self_contained_and_accessible(write_run, tmp_path: Path) -> None:
    page = write_report([write_run("one")], tmp_path / "report")["html"].read_text()
    addresses = re.findall(r'(?:src|href)\s*=\s*"([^"]{0,40})', page)
    assert len(addresses) == 4 and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in re.findall(r"<img[^>]*>", page))
    assert "prefers-color-scheme: dark" in page and 'lang="en"' in page
    for text in ("hpa-lightning fit --config hpa.yaml", "0123456789abcdef0123456789abcdef01234567", "9 refused"):
        assert text in page


def test_page_tells_what_the_gate_did_and_where_data_come_from(write_run, tmp_path: Path) -> None:
    writer = ResultWriter(write_run("one") / "results.jsonl")
    injected = {"source": "harm.json", "ratio": 0.001, "indices": {"driving": [4, 7], "digits": [1]}}
    data = {"harmful_injection": injected, "harmful_calibration": {"source": "VLGuard(folder='v')"}}
    writer.write({**RunResults.from_file(writer.path).run, "data": data})
    rates = {"budget": 0.1, "attack_success_rate": 0.4, "kept_attack_success_rate": 0.0875}
    writer.write(
        {"event": "gate", "step": 0, "task": "driving", "action": "raise_retention", "raised_by": 0.625, **rates}
    )
    writer.write({"event": "gate", "step": 1, "task": "digits", "action": "rollback", **rates})
    page = write_report([tmp_path / "one"], tmp_path / "report")["html"].read_text()
    assert "0.1 % from harm.json: driving 2, digits 1" in page
    assert "8 used; from VLGuard(folder=&#39;v&#39;)" in page
    section = page[page.index("Safety gate") :]
    cells = re.findall(r"<t[hd](?: [^>]*)?>([^<]*)", section[: section.index("</table>")])
    assert cells[5:10] == ["driving", "10.00", "40.00", "raise retention, 62.5 % of the way to all columns", "8.75"]
    assert cells[10:] == ["digits", "10.00", "40.00", "rollback", "8.75"]
    assert "Safety gate" not in write_report([write_run("two")], tmp_path / "other")["html"].read_text()


def test_summary_warns_of_a_model_that_says_nothing(write_run, tmp_path: Path) -> None:
    """Its attack success is 0, since judges take silence for a refusal."""
    pages = []
    for name, empty in (("mute", 251), ("terse", 250)):
        writer = ResultWriter(write_run(name) / "results.jsonl")
        lines = [json.loads(line) for line in writer.path.read_text().splitlines()]
        for line in lines:
            if line["event"] == "score" and line["set"] == "figstep":
                line |= {"score": 0.0, "empty": empty if line["step"] == 5 else 0, "cut": 0}
        writer.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        pages.append(write_report([tmp_path / name], tmp_path / f"report-{name}")["html"].read_text())
    told = "gives mostly empty answers (after TextVQA: figstep 251 of 500). It is broken rather than safe"
    assert told in pages[0][pages[0].index("Summary</h2>") : pages[0].index("<table")]
    assert "mostly empty" not in pages[1]


@needs_browser
def test_page_in_a_browser_on_wide_and_narrow_screens(write_run, tmp_path: Path) -> None:
    runs = [write_run("h0", "HPA"), write_run("s0", "SeqFT", forgetting=0.06, harm=0.09)]
    page = write_report(runs, tmp_path / "report")["html"]
    dom = browse(page, tmp_path / "profile", "--dump-dom")
    for path in runs:
        for row in matrix_table(RunResults.from_file(path)).rows:
            for cell in row[1:]:
                assert f"<td>{cell:.2f}</td>" in dom

    # A window cannot be made as narrow as a phone, a frame can; `srcdoc` frames may be measured from outside.
    content = escape(page.read_text().replace("<details>", "<details open>"))
    frames = "".join(
        f'<iframe style="border:0;width:{width}px;height:1500px" srcdoc="{content}"></iframe>' for width in (1200, 400)
    )
    measure = """<script>addEventListener("load", () => {
      document.body.dataset.widths = [...document.querySelectorAll("iframe")].map(frame => {
        const root = frame.contentDocument.documentElement;
        const cells = [...frame.contentDocument.querySelectorAll("td")].filter(cell => cell.offsetWidth > 0);
        return [root.scrollWidth, root.clientWidth, cells.length].join(" ");
      }).join(";");
    });</script>"""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f'<!DOCTYPE html><meta charset="utf-8">{measure}<body style="margin:0">{frames}</body>')
    measured = re.search(r'data-widths="([^"]+)"', browse(wrapper, tmp_path / "profile", "--dump-dom"))
    assert measured is not None
    wide, narrow = ([int(number) for number in item.split()] for item in measured[1].split(";"))
    assert wide[0] <= wide[1] <= 1200 and narrow[0] <= narrow[1] <= 400
    assert wide[2] == narrow[2] == dom.count("<td>")

    shot = tmp_path / "shot.png"
    browse(wrapper, tmp_path / "profile", f"--screenshot={shot}", "--window-size=1620,1500")
    with Image.open(shot) as image:
        assert image.size == (1620, 1500)
        for box in ((0, 0, 1200, 1500), (1204, 0, 1600, 1500)):
            assert len(image.crop(box).convert("RGB").getcolors(maxcolors=10**6)) > 50
