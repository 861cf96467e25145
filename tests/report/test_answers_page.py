"""The page of the answers: what prompts, answers, names and verdicts become in it."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from PIL import Image
from support.html_structure import HOSTILE, Structure

from hpa_lightning.report.answers_page import write_answers

SPACED = "  two\n\n  lines \u2028 and a \ttab "


def answered(folder: Path, text: str) -> str:
    """The page of a run that holds the text wherever a run can hold one, with and without pictures and verdicts."""
    sets = [{"name": "task", "kind": "task"}, {"name": f"o {text}".replace("/", ""), "kind": "over_refusal"}]
    images = folder / "predictions" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "x.jpg")
    events: list[dict] = [{"event": "run", "method": text, "tasks": ["task"], "sets": sets}]
    for step in (-1, 0):
        for item in sets:
            metric = "exact_match" if item["kind"] == "task" else "over_refusal_rate"
            fields = {"set": item["name"], "kind": item["kind"], "metric": metric, "score": 0.5, "n": 2}
            events.append({"event": "score", "step": step, "after": None, **fields})
            verdict = {"score": 1.0} if item["kind"] == "task" else {"verdict": step < 0, "judge": text}
            row = {"id": text, "prompt": text + SPACED, "response": text, "references": [text], **verdict}
            lone = {"id": 1, "prompt": "", "response": "", "cut": True, "images": ["images/x.jpg", f"images/{text}"]}
            file = folder / "predictions" / f"step_{step + 1:02d}_{item['name']}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in (row, lone)))
    (folder / "results.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return write_answers(folder).read_text()


def test_texts_of_answers_change_nothing_but_the_text_of_the_page(tmp_path: Path) -> None:
    plain = Structure(answered(tmp_path / "plain", "harmless"))
    page = answered(tmp_path / "hostile", HOSTILE)
    hostile = Structure(page)
    assert hostile.tags == plain.tags and [tag[0] for tag in hostile.tags].count("script") == 1
    assert HOSTILE not in page and len(hostile.addresses) == 2
    assert all(address.startswith("data:image/jpeg;base64,") for address in hostile.addresses)


def test_answers_keep_their_white_space_and_their_verdicts(tmp_path: Path) -> None:
    page = answered(tmp_path / "run", "Sure.")
    assert [unescape(text) for text in re.findall(r"<p>(Sure\.\s[^<]*)</p>", page)] == ["Sure." + SPACED] * 2
    assert page.count("<p><i>empty</i> <i>(cut)</i></p>") == 4
    assert page.count('<p class="soft">Expected: Sure.</p>') == 1, "references are those of tasks"
    verdicts = re.findall(r'<span class="verdict (\w+)">(\w+)</span>', page)
    assert verdicts == [("good", "right"), ("good", "right"), ("bad", "refused"), ("good", "answered")]
    assert page.count('data-change="answered"') == 1 and '<p class="soft">images/Sure. is gone</p>' in page


def test_silence_is_no_refusal(tmp_path: Path) -> None:
    """An answer without a letter or digit is tagged as what it is, whatever the judge makes of it."""
    (tmp_path / "predictions").mkdir()
    sets = [{"name": "harm", "kind": "safety"}]
    events: list[dict] = [{"event": "run", "method": "m", "tasks": ["t"], "sets": sets}]
    said = {-1: ["Sure.", "!!", "", "No."], 0: [" ", "No.", "!!", "Sure."]}
    for step, answers in said.items():
        fields = {"set": "harm", "kind": "safety", "metric": "attack_success_rate", "score": 0.0, "n": 4}
        events.append({"event": "score", "step": step, "after": None, **fields})
        rows = [{"id": i, "prompt": "p", "response": a, "verdict": a != "Sure."} for i, a in enumerate(answers)]
        file = tmp_path / "predictions" / f"step_{step + 1:02d}_harm.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    page = write_answers(tmp_path, unfinished=True).read_text()
    verdicts = re.findall(r'<span class="verdict (\w+)">(\w+)</span>', page)
    empty, refused, answered = ("bad", "empty"), ("good", "refused"), ("bad", "answered")
    assert verdicts == [answered, empty, empty, refused, empty, empty, refused, answered]
    assert re.findall(r'<article .*data-change="(\w*)"', page) == ["silent", "spoke", "worded", "answered"]
    assert '<option value="silent">said something before, nothing now</option>' in page


def test_a_page_takes_no_other_file_s_place(tmp_path: Path) -> None:
    answered(tmp_path, "harmless")
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"results\.jsonl; expected a file that ends with \.html"):
        write_answers(tmp_path, tmp_path / "results.jsonl")
    with pytest.raises(ValueError, match="limit is -1; expected at least 1"):
        write_answers(tmp_path, limit=-1)
    assert (tmp_path / "results.jsonl").read_bytes() == before
