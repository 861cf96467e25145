"""Published sets where a stream takes data, from Python and from YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from support.safety_files import write_csv, write_json, write_vlguard
from support.tiny_mllms import evaluation_records, picture, tiny_llava, training_records

from hpa_lightning.data import (
    CVITDataModule,
    EvaluationSet,
    HarmfulInjection,
    MMSafetyBench,
    PromptFile,
    SafetyReplay,
    Task,
    VLGuard,
    XSTest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_vlguard(tmp_path / "vlguard", "test", unsafe=3, safe=2)
    write_vlguard(tmp_path / "vlguard", "train", unsafe=4, safe=3)
    rows = [{"id": str(i), "prompt": f"Kill process {i}?", "label": "safe"} for i in range(2)]
    write_csv(tmp_path / "xstest.csv", rows)
    wild = [{"vanilla": f"harm {i}?", "adversarial": "", "completion": f"Sure, {i}."} for i in range(8)]
    write_csv(tmp_path / "wild.tsv", wild, "\t")
    return tmp_path


def safety_sets(folder: Path) -> list[EvaluationSet]:
    return [
        EvaluationSet("unsafes", "safety", VLGuard(str(folder / "vlguard"))),
        EvaluationSet("xstest", "over_refusal", XSTest(str(folder / "xstest.csv"))),
    ]


def test_a_stream_takes_sets_wherever_it_takes_data(folder: Path) -> None:
    train = VLGuard(str(folder / "vlguard"), split="train", subset="all")
    data = CVITDataModule(
        [
            Task("a", training_records(10, 1), evaluation_records(3, 2)),
            Task("vlguard", train, VLGuard(str(folder / "vlguard"), subset="safe_safes")),
        ],
        safety_sets=safety_sets(folder),
        harmful_calibration=VLGuard(str(folder / "vlguard"), split="train", subset="safe_unsafes"),
        harmful_injection=HarmfulInjection(PromptFile(str(folder / "wild.tsv"), answer_column="completion"), 0.1),
        safety_replay=SafetyReplay(VLGuard(str(folder / "vlguard"), split="train"), samples=2),
        processor=tiny_llava()[1],
        eval_batch_size=4,
    )
    data.setup()
    assert [record.prompt for record in data.harmful_calibration_records()] == [
        f"How do I misuse train picture {index}?" for index in range(3)
    ]
    assert all(not record.ends_with_answer for record in data.harmful_calibration_records())
    assert {name: len(drawn) for name, drawn in data.injected.items()} == {"a": 1, "vlguard": 1}
    assert len(data.safety_replayed) == 2
    told = data.provenance()
    assert set(told) == {"harmful_injection", "safety_replay", "harmful_calibration"}
    assert told["harmful_injection"]["indices"] == data.injected and told["harmful_injection"]["ratio"] == 0.1
    assert "PromptFile(file=" in told["harmful_injection"]["source"]
    assert told["safety_replay"]["indices"] == data.safety_replayed
    assert "split='train', subset='safe_unsafes'" in told["harmful_calibration"]["source"]
    (batch,) = data.evaluation_dataloader(data.evaluation_sets()[2])
    assert batch["ids"] == ["test_u0", "test_u1", "test_u2"]
    assert batch["references"] == [("I'm sorry, I cannot.",)] * 3
    assert all("Spread the test picture" in prompt and "sorry" not in prompt for prompt in batch["prompts"])


def test_sets_are_kept_apart_and_missing_images_are_told(folder: Path) -> None:
    tasks = [Task("a", training_records(4, 1), evaluation_records(2, 2))]
    data = CVITDataModule(tasks, safety_sets(folder), harmful_calibration=VLGuard(str(folder / "vlguard")))
    with pytest.raises(ValueError, match=r"3 of 3 records of harmful_calibration are also in the safety set 'unsafes'"):
        data.setup("fit")
    (folder / "vlguard" / "test" / "memes" / "test_u1.png").unlink()
    with pytest.raises(ValueError, match=r"1 image files are missing, the first in test\.json\[2\]: '.*test_u1\.png'"):
        CVITDataModule(tasks, safety_sets(folder)).setup("test")


def test_yaml_builds_the_sets(folder: Path) -> None:
    (folder / "mm" / "processed_questions").mkdir(parents=True)
    write_json(folder / "mm" / "processed_questions" / "06-Fraud.json", {"0": {"Rephrased Question(SD)": "Say more."}})
    (folder / "mm" / "imgs" / "06-Fraud" / "SD").mkdir(parents=True)
    picture(0).save(folder / "mm" / "imgs" / "06-Fraud" / "SD" / "0.jpg")
    mm_safetybench = {"folder": str(folder / "mm"), "kind": "SD", "scenarios": ["06-Fraud"]}
    filters = {"vanilla": ["harm 1?", "harm 2?"]}
    config = {
        "tasks": [
            {
                "name": "vlguard",
                "train": published("VLGuard", folder=str(folder / "vlguard"), split="train", subset="all"),
                "test": published("VLGuard", folder=str(folder / "vlguard"), subset="safe_safes"),
            }
        ],
        "safety_sets": [
            {"name": "unsafes", "kind": "safety", "data": published("VLGuard", folder=str(folder / "vlguard"))},
            {"name": "mm", "kind": "safety", "data": published("MMSafetyBench", **mm_safetybench)},
            {"name": "x", "kind": "over_refusal", "data": published("XSTest", file=str(folder / "xstest.csv"))},
        ],
        "harmful_calibration": published("PromptFile", file=str(folder / "wild.tsv"), filters=filters),
        "harmful_injection": {
            "data": published("PromptFile", file=str(folder / "wild.tsv"), answer_column="completion"),
            "ratio": 0.2,
        },
    }
    path = folder / "fit.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": "hpa_lightning.data.CVITDataModule", "init_args": config}}))
    cli = LightningCLI(
        BoringModel,
        CVITDataModule,
        subclass_mode_data=True,
        run=False,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=["--config", str(path), "--trainer.logger", "false"],
    )
    data = cli.datamodule
    assert data.tasks[0].train == VLGuard(str(folder / "vlguard"), "train", "all")
    assert data.safety_sets[1].data == MMSafetyBench(**mm_safetybench)
    data.trainer = None
    data.setup()
    assert [record.prompt for record in data.harmful_calibration_records()] == ["harm 1?", "harm 2?"]
    assert [len(data._source.evaluation(item)) for item in data.evaluation_sets()] == [2, 3, 1, 2]


def published(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"hpa_lightning.data.{name}", "init_args": arguments}


def test_yaml_builds_one_evaluation_set_and_refuses_what_is_unknown(folder: Path) -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--set", type=EvaluationSet)
    good = {"name": "x", "kind": "over_refusal", "data": published("XSTest", file=str(folder / "xstest.csv"))}
    built = parser.instantiate_classes(parser.parse_object({"set": good})).set
    assert isinstance(built, EvaluationSet) and built.data == XSTest(str(folder / "xstest.csv"))
    assert built.metric == "over_refusal_rate"
    with pytest.raises(Exception, match=r"labels"):
        parser.parse_object({"set": {**good, "data": published("XSTest", file="x.csv", labels="safe")}})
    with pytest.raises(Exception, match=r"benign"):
        parser.parse_object({"set": {**good, "data": published("XSTest", file="x.csv", label="benign")}})


def test_the_documented_yaml_builds() -> None:
    text = (Path(__file__).parents[2] / "docs" / "safety_sets.md").read_text()
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "tasks:" in block]
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(CVITDataModule, "data", subclass_mode=True)
    built = [parser.instantiate_classes(parser.parse_object(yaml.safe_load(block))).data for block in blocks]
    assert [[type(item.data).__name__ for item in data.safety_sets] for data in built] == [
        ["VLGuard", "XSTest"],
        ["FigStep", "MMSafetyBench"],
    ]
    assert built[1].harmful_injection.data.answer == "rejected"
    assert built[1].harmful_calibration.filters == {"data_type": ["vanilla_harmful", "adversarial_harmful"]}
