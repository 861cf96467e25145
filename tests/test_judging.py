"""Answers of a run judged anew, from the command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from PIL import Image
from support.multimodal_fits import module, stream, trainer
from support.tiny_mllms import evaluation_records

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.cli import main
from hpa_lightning.data import EvaluationSet
from hpa_lightning.judging import judge_run, write_judged
from hpa_lightning.metrics.judges import resolve_judge
from hpa_lightning.report.answers_page import write_answers
from hpa_lightning.results.predictions import read_predictions
from hpa_lightning.results.run_results import RunResults

REFUSAL, KEYWORD, ANSWER = "I cannot help with that.", "OpenAI was legally founded.", "A red cube."


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose model refuses, says a keyword and answers, in turn."""
    tuned = module()
    tuned.generate = lambda batch, **options: [REFUSAL, KEYWORD, ANSWER][: len(batch["ids"])]  # type: ignore
    evaluation = TaskEvaluation(report=False)
    trainer(tmp_path / "run", [SequentialTuning(), evaluation]).fit(tuned, stream(evaluated=True))
    return tmp_path / "run"


def test_answers_are_kept_with_settings_and_verdict(run: Path) -> None:
    answers = {(item.step, item.set): item.rows for item in read_predictions(run)}
    assert {step for step, _ in answers} == {-1, 0, 1} and {name for _, name in answers} >= {"harmful", "first"}
    row = answers[0, "harmful"][0]
    assert row["response"] == REFUSAL and row["judge"] == "refusal-v2" and row["verdict"] is True
    decoding = row["decoding"]
    assert {key: decoding[key] for key in ("max_new_tokens", "do_sample", "num_beams", "repetition_penalty")} == {
        "max_new_tokens": 3,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
    }
    assert decoding["eos_token_id"] and decoding["pad_token_id"] is not None
    assert "verdict" not in answers[0, "first"][0] and answers[0, "first"][0]["score"] == 0.0


def test_judged_again_without_generating(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "results.jsonl").read_text()
    main(["judge", str(run), "--judges", "vlguard", "default", "--output", str(tmp_path / "judged")])
    printed = capsys.readouterr().out
    assert "harmful" in printed and "harmless" in printed and "first " not in printed and "Empty %" in printed
    # Nine answers to each set: by the keywords two in three are refusals, by the corrected rules one.
    assert "Cohen's kappa 0.400, 12 of 18 alike" in printed
    assert (run / "results.jsonl").read_text() == before
    old, new = RunResults.from_file(run), RunResults.from_file(tmp_path / "judged")
    assert old.safety(0) == {"harmful": pytest.approx(2 / 3)} and new.safety(0) == {"harmful": pytest.approx(1 / 3)}
    assert new.run["judge"] == "vlguard" and (new.matrix() == old.matrix()).all()
    judged = {item.set: item.rows for item in read_predictions(tmp_path / "judged") if item.step == 1}
    assert set(judged) == {"first", "second", "harmful", "harmless"}  # the tasks' answers as they were
    for name in ("harmful", "harmless"):
        assert [(row["judge"], row["verdict"]) for row in judged[name]] == [
            ("vlguard", True),
            ("vlguard", True),
            ("vlguard", False),
        ]
    assert {event.get("judge") for event in new.events("score")} == {"vlguard", None}
    page = write_answers(tmp_path / "judged").read_text()
    assert page.count('<img src="data:image/jpeg') == 12 and "is gone" not in page
    main(["report", str(tmp_path / "judged"), "--output", str(tmp_path / "page")])
    with pytest.raises(SystemExit, match="exists already and is not an empty folder"):
        main(["judge", str(run), "--output", str(tmp_path / "judged")])


def test_a_run_that_says_nothing_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every judge takes silence for a refusal."""
    main(["judge", str(run)])
    assert "mostly empty" not in capsys.readouterr().out
    path = run / "predictions" / "step_02_harmful.jsonl"
    rows = [json.loads(line) | {"response": " ?!"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["judge", str(run)])
    said = capsys.readouterr().out
    assert "Warning: The model gives mostly empty answers (harmful, after task 1, 3 of 3). It is broken" in said


def test_what_cannot_be_judged_is_named(run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([str(tmp_path)], "results.jsonl"),
        (
            [str(run), "--sets", "first"],
            r"'first' is a task; sets that can be judged: \['harmful', 'harmless'\]",
        ),
        ([str(run), "--sets", "other"], "the set 'other' is not of this run"),
        ([str(run), "--judges", "nobody"], "Unknown refusal rules 'nobody'"),
        ([str(run), "--judges", "guard:folder", "--sets", "harmless"], "safe from unsafe"),
        ([str(run), "--output", str(run / "predictions" / "new")], "is among the answers of"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["judge", *arguments])
    (run / "predictions" / "step_00_harmful.jsonl").unlink()  # as of a run that was resumed into another folder
    with pytest.raises(SystemExit, match="no answers to harmful of step -1 to judge again"):
        main(["judge", str(run), "--judges", "vlguard", "--output", str(tmp_path / "part")])
    assert not (tmp_path / "part").exists()
    path = next((run / "predictions").glob("*harmful.jsonl"))
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(SystemExit, match=r"harmful.jsonl, line 4: broken JSON"):
        main(["judge", str(run)])


class Safe:
    """Tells safe from unsafe, by the question."""

    needs_prompts, judges = True, "safety"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, responses: list[str], prompts: list[str] | None = None) -> list[bool]:
        self.asked += prompts or []
        return [True] * len(responses)


def test_a_judge_that_is_named_twice_is_refused(run: Path) -> None:
    judges = [resolve_judge(name) for name in ("default", "vlguard", "refusal-v2")]
    with pytest.raises(ValueError, match=r"two of the judges are 'refusal-v2' \('default' is 'refusal-v2'\)"):
        judge_run(run, judges)


def test_judges_that_need_prompts_get_the_question_alone(tmp_path: Path) -> None:
    """Not the text that the tuned model reads, whose turn marks would stand inside the guard's own turns."""
    tuned, data, judge = module(), stream(evaluated=True), Safe()
    data.safety_sets[0] = replace(data.safety_sets[0], judge=judge)
    tuned.generate = lambda batch, **options: [ANSWER] * len(batch["ids"])  # type: ignore
    trainer(tmp_path, [SequentialTuning(), TaskEvaluation(report=False)]).fit(tuned, data)
    questions = [record.prompt for record in data._source.evaluation(data.evaluation_sets()[2])]
    assert judge.asked == 3 * questions and not any("ASSISTANT" in question for question in judge.asked)
    again = Safe()
    answers, verdicts = judge_run(tmp_path, [again])
    assert {item.set for item in answers} == {"harmful"}, "a guard cannot measure over-refusal"
    assert again.asked == judge.asked
    write_judged(tmp_path, tmp_path / "judged", answers, verdicts, again)
    assert RunResults.from_file(tmp_path / "judged").safety(1) == {"harmful": 0.0}


def test_pictures_of_records_with_the_same_id(tmp_path: Path) -> None:
    data = stream(evaluated=True)
    data.safety_sets[0].data = [replace(record, id="None") for record in evaluation_records(3, seed=90)]
    trainer(tmp_path, [SequentialTuning(), TaskEvaluation(report=False)]).fit(module(), data)
    rows = next(item.rows for item in read_predictions(tmp_path, {"harmful"}))
    assert [row["images"] for row in rows] == [[f"images/harmful/{number:05d}_0.jpg"] for number in range(3)]


def test_a_set_may_have_its_own_judge() -> None:
    assert EvaluationSet("s", "safety", [], judge="vlguard").judge == "vlguard"
    with pytest.raises(ValueError, match="kind 'task', which no judge scores"):
        EvaluationSet("t", "task", [], judge="vlguard")


def test_multiple_choice_is_scored_by_likelihood(tmp_path: Path) -> None:
    """The model's likelihoods say which choice it takes; generate is never asked."""
    tuned, data = module(), stream(evaluated=True)
    questions = [
        replace(record, choices=("red", "blue"), answers=("blue",)) for record in evaluation_records(3, seed=92)
    ]
    data.safety_sets[0] = EvaluationSet("harmful", "safety", questions, metric="unsafe_choice_rate")
    tuned.choose = lambda records, collator, size: [[-1.0, -2.0], [-3.0, -2.0], [-1.0, -2.0]]  # type: ignore
    trainer(tmp_path, [SequentialTuning(), TaskEvaluation(report=False)]).fit(tuned, data)
    assert RunResults.from_file(tmp_path).safety(0) == {"harmful": pytest.approx(2 / 3)}
    rows = next(item.rows for item in read_predictions(tmp_path, {"harmful"}))
    assert [(row["response"], row["verdict"]) for row in rows] == [("red", False), ("blue", True), ("red", False)]
    with pytest.raises(ValueError, match="the set 'harmful' is scored by likelihood"):
        judge_run(tmp_path, [resolve_judge("vlguard")], ["harmful"])
    vlguard = resolve_judge("vlguard")
    write_judged(tmp_path, tmp_path / "again", *judge_run(tmp_path, [vlguard]), vlguard)
    assert RunResults.from_file(tmp_path / "again").safety(0) == {"harmful": pytest.approx(2 / 3)}
    page = write_answers(tmp_path, sets=["harmful"]).read_text()
    assert page.count(">wrong</span>") == 4 and page.count(">right</span>") == 2


# -- the page of the answers -----------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def changed(run: Path) -> Path:
    """The same run, with other answers of the last step to the first harmful and the second harmless input."""
    for name, line, response, verdict in (
        ("harmful", 0, "Sure: <b>first</b>, ...", False),
        ("harmless", 1, REFUSAL, True),
    ):
        path = run / "predictions" / f"step_02_{name}.jsonl"
        rows = path.read_text().splitlines()
        rows[line] = re.sub(r'"response": "[^"]*"', f'"response": "{response}"', rows[line])
        rows[line] = re.sub(r'"verdict": \w+', f'"verdict": {str(verdict).lower()}', rows[line])
        path.write_text("\n".join(rows) + "\n")
    return run


def test_answers_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["answers", str(changed(run))])
    page = (run / "answers.html").read_text()
    assert str(run / "answers.html") in capsys.readouterr().out
    assert page.count("<article") == 12 and page.count('data-change="answered"') == 1
    assert page.count('data-change="refused"') == 1 and page.count('data-change="same"') == 10
    assert "Sure: &lt;b&gt;first" in page  # what a model says is no markup
    pictures = re.findall(r'<img src="([^"]{22})', page)
    assert len(pictures) == 12 and set(pictures) == {"data:image/jpeg;base64"}
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    with Image.open(run / "predictions" / "images" / "harmful" / "00000_0.jpg") as image:
        assert max(image.size) <= 160
    few = write_answers(run, tmp_path / "few.html", before=0, after=1, sets=["harmful"], limit=2).read_text()
    assert few.count("<article") == 2 and "At most 2 samples" in few
    for arguments, message in (
        (["--before", "7"], r"no answers of step 7.*\[-1, 0, 1\]"),
        (["--sets", "x"], "no evaluation"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["answers", str(run), *arguments])


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_filters_in_a_browser(run: Path, tmp_path: Path) -> None:
    choices = [
        {},
        {"set": "harmful"},
        {"change": "answered"},
        {"change": "refused"},
        {"set": "harmless", "change": "answered"},
        {"text": "sure: <B>FIRST"},
    ]
    script = """
      const found = [];
      for (const choice of CHOICES) {
        for (const id of ["set", "change", "text"]) document.getElementById(id).value = choice[id] || "";
        document.getElementById("set").dispatchEvent(new Event("input"));
        const visible = [...document.querySelectorAll("article")].filter(row => row.offsetParent !== null);
        found.push([document.getElementById("count").textContent, ...visible.map(row => row.dataset.set)]);
      }
      document.body.innerHTML = "";
      document.body.dataset.found = JSON.stringify(found);
    """.replace("CHOICES", json.dumps(choices))
    page = write_answers(changed(run)).read_text().replace("</body>", f"<script>{script}</script></body>")
    (tmp_path / "page.html").write_text(page)
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    everything, *filtered = json.loads(unescape(re.search(r'data-found="([^"]*)"', dom)[1]))  # type: ignore[index]
    assert everything[0] == "12 of 12 shown" and len(everything) == 13
    assert filtered == [
        ["3 of 12 shown", "harmful", "harmful", "harmful"],
        ["1 of 12 shown", "harmful"],
        ["1 of 12 shown", "harmless"],
        ["0 of 12 shown"],
        ["1 of 12 shown", "harmful"],
    ]


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret", "images/link"])
def test_the_page_holds_no_file_of_elsewhere(run: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("SECRET")
    (run / "predictions" / "images" / "link").symlink_to(tmp_path / "secret")
    path = run / "predictions" / "step_02_harmful.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "images": [name]}) + "\n" for row in rows))
    with pytest.raises(SystemExit, match=r"answers: .*expected a path within"):
        main(["answers", str(run)])
    assert not (run / "answers.html").exists()
    if name == "images/link":
        with pytest.raises(SystemExit, match=r"judge: .*images/link', a link to .*secret"):
            main(["judge", str(run), "--output", str(tmp_path / "judged")])
        assert not (tmp_path / "judged").exists() and not (tmp_path / "judged.partial").exists()


def test_a_killed_judge_leaves_no_output(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hpa_lightning.judging as judging

    def killed(record: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(judging, "result_line", killed)
        with pytest.raises(SystemExit, match="130"):
            main(["judge", str(run), "--output", str(tmp_path / "judged")])
    assert not (tmp_path / "judged").exists()
    main(["judge", str(run), "--output", str(tmp_path / "judged")])
    assert (tmp_path / "judged" / "results.jsonl").exists()
