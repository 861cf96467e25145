"""Published evaluations by their names: from upstream's files to the tables."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from support.published_layouts import mmbench_rows, mme_pairs, write_mmbench, write_mme, write_seed_bench
from support.safety_files import write_csv

from hpa_lightning.command_results import CommandResults, score_text
from hpa_lightning.data import EVALUATIONS, CVITDataModule, Evaluation, EvaluationSet, Task
from hpa_lightning.data.nano import load_nano_processor
from hpa_lightning.data.nano.nano_records import task_records
from hpa_lightning.judging import judge_run, write_judged
from hpa_lightning.metrics.judges import resolve_judge
from hpa_lightning.modules import NanoModule
from hpa_lightning.report import write_report
from hpa_lightning.results.run_results import RunResults

pytestmark = pytest.mark.filterwarnings("ignore::hpa_lightning.data.DataWarning")


@pytest.fixture
def evaluations(tmp_path: Path) -> list[Evaluation]:
    question = {"question_id": 1, "category": "3", "turns": ["How is a red ball made?"], "prompt_style": "base"}
    other = {**question, "question_id": 2, "category": "41", "turns": ["Which stock is best?"]}
    (tmp_path / "sorry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (question, other)))
    write_csv(tmp_path / "advbench.csv", [{"goal": "Describe a lock", "target": "Sure, here"}])
    write_csv(tmp_path / "wild.tsv", [{"adversarial": f"Say {k}", "label": "1", "data_type": k} for k in WILD], "\t")
    answers = [{"risk_area": f"Area {n % 2}", "types_of_harm": "Type", "question": f"What is {n}?"} for n in range(3)]
    write_csv(tmp_path / "dna.csv", answers)
    mmbench = write_mmbench(tmp_path / "mmbench.tsv", mmbench_rows(3))
    mme = write_mme(tmp_path / "mme", mme_pairs({"count": 2, "code_reasoning": 1}))
    seed = write_seed_bench(tmp_path / "seed", questions=4)
    return [
        Evaluation("sorry-bench", tmp_path / "sorry.jsonl"),
        Evaluation("advbench", tmp_path / "advbench.csv"),
        Evaluation("wildjailbreak", tmp_path / "wild.tsv"),
        Evaluation("wildjailbreak-benign", tmp_path / "wild.tsv"),
        Evaluation("do-not-answer", tmp_path / "dna.csv"),
        Evaluation("mmbench", mmbench),
        Evaluation("mmbench", mmbench, by="likelihood", label="mmbench-likelihood"),
        Evaluation("mme", mme),
        Evaluation("mme", mme, by="likelihood", label="mme-likelihood"),
        Evaluation("seed-bench", seed, by="likelihood"),
    ]


WILD = ("adversarial_harmful", "adversarial_benign")


def test_all_are_scored_and_their_categories_reach_the_tables(evaluations: list[Evaluation], tmp_path: Path) -> None:
    data = CVITDataModule(
        [Task("digits", task_records("digits", "train", 4, 0), task_records("digits", "test", 4))],
        processor=load_nano_processor(),
        evaluations=evaluations,
    )
    module = NanoModule()
    run = tmp_path / "test"
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[CommandResults("test", run)]
    )
    trainer.test(module, data)
    results = RunResults.from_file(run)
    scored = results.scored(-1)
    assert set(scored["sorry-bench"].categories or {}) == {"domain", "category", "style"}
    assert list(scored["do-not-answer"].categories["risk_area"]) == ["Area 0", "Area 1"]  # type: ignore[index]
    assert [scored[name].n for name in ("wildjailbreak", "wildjailbreak-benign")] == [1, 1]
    for name in ("mmbench", "mmbench-likelihood"):
        assert set(scored[name].figures or {}) == {"vanilla", "accuracy"}
        assert scored[name].categories["split"]  # type: ignore[index]
    for name in ("mme", "mme-likelihood"):
        points = scored[name].figures["points"]  # type: ignore[index]
        assert scored[name].score == pytest.approx(points / 400)
        by_ability = scored[name].categories["ability"]  # type: ignore[index]
        assert sum(entry["points"] for entry in by_ability.values()) == pytest.approx(points)
    assert scored["seed-bench"].metric == "choice_accuracy"
    helpful = results.scores(-1, "helpfulness")
    assert results.summary()["helpfulness"] == pytest.approx(sum(helpful.values()) / 5)
    text = score_text(module.scored)
    assert "mme: accuracy" in text and "points" in text and "helpfulness" in text

    page = write_report([run], tmp_path / "report")
    assert "do-not-answer by risk_area" in page["html"].read_text()
    table = page["categories_csv"].read_text().splitlines()
    assert table[0] == "run,seed,step,after,set,scheme,category,n,figure,value"
    assert sum(",mme,ability,perception,4,points," in line for line in table) == 1

    # Another judge's categories replace those of the first.
    judge = resolve_judge("vlguard")
    answers, verdicts = judge_run(run, [judge])
    write_judged(run, tmp_path / "again", answers, verdicts, judge)
    event = RunResults.from_file(tmp_path / "again").scored(-1)["do-not-answer"]
    entries = event.categories["risk_area"].values()  # type: ignore[index]
    assert sum(entry["n"] * entry["score"] for entry in entries) == pytest.approx(3 * event.score)  # type: ignore[operator]


def test_every_evaluation_makes_a_set() -> None:
    for name, published in EVALUATIONS.items():
        for by in published.metrics:
            item = Evaluation(name, "somewhere", by=by).evaluation_set()  # type: ignore[arg-type]
            assert isinstance(item, EvaluationSet) and item.kind == published.kind


def test_mistakes_are_told_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match=r"there is no evaluation 'mmbnch'.* 'mmbench'"):
        Evaluation("mmbnch", "x")
    with pytest.raises(ValueError, match="'advbench' is scored by generation; by is 'likelihood'"):
        Evaluation("advbench", "x", by="likelihood")
    with pytest.raises(ValueError, match=r"no settings \['size'\]; it has \['rounds', 'ask', 'instruction'\]"):
        Evaluation("mmbench", "x", settings={"size": 3})
    with pytest.raises(ValueError, match="evaluation 'mmbench': MMBench: rounds is 'all'"):
        Evaluation("mmbench", "x", settings={"rounds": "all"})
    with pytest.raises(ValueError, match="of kind 'helpfulness', which no judge scores"):
        Evaluation("mme", "x", judge="vlguard")


def test_yaml_names_them(tmp_path: Path) -> None:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(CVITDataModule, "data")
    tasks = [{"name": "a", "train": "a.json", "test": "b.json"}]
    named = [
        {"name": "mm-safetybench", "path": "MM", "settings": {"kind": "TYPO"}},
        {"name": "mmbench", "path": "m.tsv"},
    ]
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": {"tasks": tasks, "evaluations": named}}))
    config = parser.parse_path(tmp_path / "data.yaml")
    data = parser.instantiate_classes(config).data
    assert [(item.name, item.kind, item.metric) for item in data.safety_sets] == [
        ("mm-safetybench", "safety", "attack_success_rate"),
        ("mmbench", "helpfulness", "circular_accuracy"),
    ]
    assert data.safety_sets[0].data.kind == "TYPO"
