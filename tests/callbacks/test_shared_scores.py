"""Fits of a study share the scores of the model that they start from, and only of that one."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.multimodal_fits import module, stream, trainer
from support.tiny_mllms import evaluation_records

import hpa_lightning.callbacks.task_evaluation as evaluating
from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.callbacks.facts_digest import UntoldError
from hpa_lightning.callbacks.shared_scores import SharedScores, _plugin, _settings
from hpa_lightning.data import CVITDataModule
from hpa_lightning.evaluation import ScoredSet
from hpa_lightning.modules import EmulatedBF16Mixed, MLLMModule
from hpa_lightning.results.events import ScoreEvent
from hpa_lightning.results.predictions import prediction_file
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.run_folder import INITIAL_SCORES


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sets that were answered, one after the other; the folder is ``tmp_path / "shared"``."""
    monkeypatch.setenv(INITIAL_SCORES, str(tmp_path / "shared"))
    answered: list[str] = []
    score_set = evaluating.score_set

    def count(*arguments: object) -> object:
        answered.append(arguments[2].name)  # type: ignore[attr-defined]
        return score_set(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluating, "score_set", count)
    return answered


def fit(folder: Path, tuned: MLLMModule, data: CVITDataModule | None = None, **options: object) -> RunResults:
    callbacks = [SequentialTuning(), TaskEvaluation(method="m", report=False)]
    trainer(folder, callbacks, **options).fit(tuned, data or stream(evaluated=True))
    return RunResults.from_file(folder)


def scores(run: RunResults, step: int) -> list[ScoreEvent]:
    return [event for event in run.events(ScoreEvent) if event.step == step]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "shared").glob("*.json"))


def test_the_second_fit_reads_what_the_first_has_measured(tmp_path: Path, counted: list[str]) -> None:
    first = fit(tmp_path / "first", module())
    assert len(counted) == 3 * 4
    other = module()
    with torch.no_grad():  # adapters that change nothing yet: A is drawn, and differs between seeds
        for name, parameter in other.named_parameters():
            if "lora_A" in name:
                parameter.normal_()
    second = fit(tmp_path / "second", other)
    assert len(counted) == 3 * 4 + 2 * 4, "the aligned model was scored again"
    assert scores(second, -1) == scores(first, -1) and len(scores(second, -1)) == 4
    phases = [(event["step"], event["phase"]) for event in second.events("time")]
    assert (-1, "shared") in phases and (-1, "evaluate") not in phases and (0, "evaluate") in phases
    for name in ("first", "harmful"):
        kept = [prediction_file(tmp_path / run, -1, name).read_text() for run in ("first", "second")]
        assert kept[0] == kept[1] != ""


def test_without_a_study_nothing_is_shared(tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INITIAL_SCORES)
    fit(tmp_path / "first", module())
    fit(tmp_path / "second", module())
    assert len(counted) == 2 * 3 * 4 and files(tmp_path) == []


@pytest.mark.parametrize("change", ["weight", "buffer", "adapter", "precision", "records", "openings", "tokens"])
def test_whatever_decides_a_score_decides_the_file(change: str, tmp_path: Path, counted: list[str]) -> None:
    fit(tmp_path / "first", module())
    tuned, data, options = module(), stream(evaluated=True), {}
    model = tuned.model
    with torch.no_grad():
        if change == "weight":
            next(p for n, p in model.named_parameters() if "norm" in n)[0] += 1e-3
        elif change == "buffer":
            next(b for n, b in model.named_buffers() if b.is_floating_point())[0] += 1e-3
        elif change == "adapter":
            next(p for n, p in model.named_parameters() if "lora_B" in n)[0, 0] = 1e-3
    if change == "precision":
        options = {"precision": "bf16-mixed"}
    elif change == "records":
        data.safety_sets[0] = replace(data.safety_sets[0], data=evaluation_records(3, seed=92))
    elif change == "openings":
        data.safety_sets[0].openings = None
    elif change == "tokens":
        data.safety_sets[1].max_new_tokens = 2
    fit(tmp_path / "second", tuned, data, **options)
    assert len(counted) == 2 * 3 * 4 and len(files(tmp_path)) == 2


def test_records_count_with_their_ids_and_categories(tmp_path: Path, counted: list[str]) -> None:
    """A score by category and the rows of predictions are shared too."""
    for kind in ("a", "b"):
        data = stream(evaluated=True)
        records = [replace(one, categories={"kind": kind}) for one in evaluation_records(3, seed=90)]
        data.safety_sets[0] = replace(data.safety_sets[0], data=records)
        run = fit(tmp_path / kind, module(), data)
        assert [list(e.categories["kind"]) for e in scores(run, -1) if e.set == "harmful"] == [[kind]]
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("broken", ["unreadable", "unwritable"])
def test_a_fit_has_its_scores_where_none_can_be_shared(
    broken: str, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path / "first", module())
    if broken == "unreadable":
        (tmp_path / "shared" / files(tmp_path)[0]).write_text('{"sets": [')
    else:
        monkeypatch.setenv(INITIAL_SCORES, str(tmp_path / "first" / "results.jsonl"))  # a folder cannot be there
    with pytest.warns(UserWarning, match=r"aligned model are (measured again|not shared)"):
        run = fit(tmp_path / "second", module())
    assert len(counted) == 2 * 3 * 4 and len(scores(run, -1)) == 4


def test_many_write_one_file_at_once(tmp_path: Path) -> None:
    shared = SharedScores(tmp_path / "x.json", ["a"])
    one = ScoredSet({"set": "a", "score": 0.5}, [{"response": "x" * 1000}] * 300)

    def work(_: int) -> bool:
        shared.write([one])
        return shared.read() == [one]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_sampled_answers_are_not_shared(tmp_path: Path, counted: list[str]) -> None:
    for name in ("first", "second"):
        fit(tmp_path / name, module(generation={"do_sample": True}))
    assert len(counted) == 2 * 3 * 4 and files(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sets": [{"fields": {"set": "b"}, "rows": []}]}'])
def test_a_foreign_file_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json"):
        SharedScores(tmp_path / "x.json", ["a"]).read()


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    shared = SharedScores(tmp_path / "x.json", ["a"])
    assert shared.read() is None
    one = ScoredSet({"set": "a", "score": 1 / 3}, [{"id": "1", "response": "ja\n\u2603", "openings": [-0.1]}])
    shared.write([one])
    assert shared.read() == [one]
    shared.write([ScoredSet({"set": "a", "score": 0.5}, [{"picture": Path("a.png"), "openings": [-math.inf]}])])
    assert shared.read() == [ScoredSet({"set": "a", "score": 0.5}, [{"picture": "a.png", "openings": [-math.inf]}])]
    shared.write([one])
    assert json.loads((tmp_path / "x.json").read_text())["sets"][0]["fields"]["score"] == 1 / 3


def test_data_without_a_collator_or_with_one_that_cannot_be_told_end_no_fit() -> None:
    assert _settings(None) == {}
    with pytest.raises(UntoldError, match="a tuple has no attributes"):  # which shared_scores turns into a sentence
        _settings((1, 2))


def test_what_emulates_a_precision_is_not_taken_for_it() -> None:
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    own = L.Trainer(precision="bf16-mixed", **quiet)
    emulated = L.Trainer(plugins=[EmulatedBF16Mixed()], **quiet)
    assert own.precision == emulated.precision and _plugin(own) != _plugin(emulated)
