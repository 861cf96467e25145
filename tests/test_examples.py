"""Every example runs: the YAML files through the command line, the script as a user would start it."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import lightning as L
import pyarrow
import pytest
import torch
from pyarrow import parquet
from support.benchmark_folders import write_hpa
from support.safety_files import encoded, write_figstep, write_scenario, write_vlguard, write_xstest
from support.smol_folders import write_smol
from support.tiny_mllms import tiny_llava, training_records

from hpa_lightning.cli import main
from hpa_lightning.data import DataWarning, MLLMCollator, Record
from hpa_lightning.data.record import assistant_turn
from hpa_lightning.modules import MLLMModule
from hpa_lightning.modules.save_pretrained import export_model
from hpa_lightning.results.run_results import RunResults

EXAMPLES = Path(__file__).parent.parent / "examples"
NANO = sorted(path.name for path in EXAMPLES.glob("nano_*.yaml"))
SMOL = sorted(path.name for path in EXAMPLES.glob("smol_*.yaml"))
MAIN = ["nano_sequential.yaml", "nano_hpa.yaml", "nano_hpa_in_training.yaml"]
ADAPTATION = [name for name in NANO if "projector" in name or "visual" in name]
OTHERS = [name for name in NANO if name not in (*MAIN, *ADAPTATION)]
REFUSAL = "I cannot help with that."


def test_there_is_a_test_for_every_example() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == {
        "llava_7b_hpa.yaml",
        "llava_7b_dpo.yaml",
        "own_trainer.py",
        *NANO,
        *SMOL,
    }
    assert len(OTHERS) >= 14


def run_small(name: str, tmp_path: Path, tasks: list[str]) -> RunResults:
    small = {
        "data.init_args.steps": 2,
        "data.init_args.test_size": 2,
        "data.init_args.train_size": 16,
        "data.init_args.calibration_size": 8,
        "data.init_args.harmful_calibration_size": 24,
        "data.init_args.task_order": f"[{', '.join(tasks)}]",
        "trainer.logger.init_args.save_dir": str(tmp_path / "run"),
        "trainer.enable_progress_bar": "false",
        "trainer.enable_checkpointing": "false",
    }
    steps = list(tasks)
    if "safety_task:" in (EXAMPLES / name).read_text():
        steps.append("safety")
        small |= {
            f"data.init_args.safety_task_{key}": value for key, value in (("size", 9), ("helpful", 4), ("steps", 2))
        }
    # Most of the time would go into the calibrations.
    config = re.sub(r"(safety|task)_samples: \d+", r"\1_samples: 8", (EXAMPLES / name).read_text())
    (tmp_path / name).write_text(config)
    main(["fit", "--config", str(tmp_path / name), *(f"--{key}={value}" for key, value in small.items())])
    results = RunResults.from_file(tmp_path / "run")
    assert results.tasks == steps and results.tested == tasks
    assert results.steps == [-1, *range(len(steps))] and results.seed == 100
    assert results.summary(-1)["MASR"] <= 0.2, "the aligned model refuses"
    return results


@pytest.mark.parametrize("name", MAIN)
def test_nano_configurations(name: str, tmp_path: Path) -> None:
    """A second task for one of them; the streams of the others are tested on smaller models."""
    run_small(name, tmp_path, ["charts", "digits"] if name == "nano_hpa.yaml" else ["digits"])
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    assert (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.parametrize("name", OTHERS)
def test_nano_configurations_of_other_methods(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task, and no report: what these methods do in a stream is tested on smaller models."""
    monkeypatch.setattr("hpa_lightning.report.write_report", lambda folders, output, **options: {"html": output})
    results = run_small(name, tmp_path, ["digits"])
    assert results.method != "Sequential tuning"


def test_the_stages_of_the_adaptation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Projector pretraining, then every way of visual instruction tuning from its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpa_lightning.report.write_report", lambda folders, output, **options: {"html": output})
    small = {"steps": 2, "test_size": 2, "calibration_size": 8, "harmful_calibration_size": 8}
    for name in sorted(ADAPTATION, key=lambda name: "projector" not in name):
        overrides = [f"--data.init_args.{key}={value}" for key, value in small.items()]
        config = (EXAMPLES / name).read_text().replace("samples: 50}", "samples: 2}")  # of the safety curve
        (tmp_path / name).write_text(config)
        main(["fit", "--config", str(tmp_path / name), "--trainer.enable_progress_bar=false", *overrides])
        results = RunResults.from_file(tmp_path / "runs" / name.removesuffix(".yaml"))
        assert results.tasks == ["adaptation"] and results.steps == [-1, 0]
        assert bool(results.events("curve")) == ("visual" in name)
    assert len(ADAPTATION) == 4


@pytest.mark.parametrize("name", SMOL)
def test_smol_configurations_on_a_folder_of_the_same_layout(name: str, tmp_path: Path) -> None:
    """A tiny model in place of the real one, which `tests/smol` builds where its packages are at hand."""
    write_smol(tmp_path / "smol")
    model, processor = tiny_llava()
    export_model(model, processor, tmp_path / "smol" / "model")
    small = {
        "data.init_args.steps": 2,
        "data.init_args.train_size": 16,
        "data.init_args.test_size": 4,
        "data.init_args.harm_size": 5,
        "data.init_args.task_order": "[digits, words]",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_checkpointing": "false",
    }
    # A model that was never aligned refuses nothing.
    small["data.init_args.harmful_calibration_answers"] = "given"
    main(["fit", "--config", str(EXAMPLES / name), *(f"--{key}={value}" for key, value in small.items())])
    results = RunResults.from_file(tmp_path / "runs" / name.removesuffix(".yaml"))
    assert results.tested == ["digits", "words"] and len(results.steps) == 3


@pytest.mark.parametrize("mode", ["post-training", "in-training"])
def test_own_trainer(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["own_trainer.py", "--mode", mode])
    runpy.run_path(str(EXAMPLES / "own_trainer.py"), run_name="__main__")
    assert (tmp_path / "runs" / "own_trainer" / "checkpoints").is_dir()


def aligned_model(folder: Path) -> None:
    """A LLaVA architecture, taught to refuse everything, as a Hugging Face folder."""
    model, processor = tiny_llava()
    module = MLLMModule.from_objects(
        model.train(), processor, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)
    )
    records = [
        Record(record.id, (*record.prompt_and_references()[0], *assistant_turn(REFUSAL)), record.images)
        for record in training_records(16, seed=9)
    ]
    optimizer = module.configure_optimizers()
    batch = MLLMCollator(processor).train(records)
    for _ in range(60):
        loss = module.model(**batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.export(folder)


def test_llava_recipe_on_files_of_the_same_layout(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    aligned_model(tmp_path / "models" / "llava-1.5-7b-aligned")
    data = tmp_path / "data"
    write_hpa(data)
    write_vlguard(data / "VLGuard", "train", unsafe=16, safe=2)
    write_vlguard(data / "VLGuard", "test", unsafe=3, safe=2)
    write_figstep(data / "FigStep", "safebench.csv", "SafeBench", tasks=1)
    write_scenario(data / "MM-SafetyBench", "06-Fraud", 3)
    write_xstest(data / "xstest_prompts.csv")
    main(["data", "check", "--config", str(EXAMPLES / "llava_7b_hpa.yaml")])
    main(
        [
            "fit",
            "--config",
            str(EXAMPLES / "llava_7b_hpa.yaml"),
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--model.init_args.dtype=float32",
            "--model.init_args.lora.rank=2",
            "--data.init_args.num_workers=0",
        ]
    )
    results = RunResults.from_file(tmp_path / "runs" / "llava_7b_hpa")
    assert len(results.tasks) == 6 and results.steps == [-1, 0, 1, 2, 3, 4, 5]
    assert results.summary(-1)["MASR"] == 0.0
    assert "VLGuard" in results.run["data"]["harmful_calibration"]["source"]
    (calibration,) = results.events("safety_calibration")
    assert calibration["used"] == 8 and calibration["records"][0] == "train.json[0]"
    assert len(list((tmp_path / "runs").rglob("*.ckpt"))) == 6


def test_llava_dpo_recipe_on_files_of_the_same_layout(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    aligned_model(tmp_path / "models" / "llava-1.5-7b")
    data = tmp_path / "data"
    rows = [
        {"image": {"bytes": encoded(index), "path": None}, "question": f"Is {index} wise?"}
        | {"chosen": REFUSAL, "rejected": REFUSAL if index == 3 else f"It is, {index}."}
        for index in range(9)
    ]
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [(name, image if name == "image" else pyarrow.string()) for name in rows[0]]
    (data / "SPA-VL" / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(fields))
    parquet.write_table(table, data / "SPA-VL" / "data" / "train-00000-of-00001.parquet")
    write_vlguard(data / "VLGuard", "test", unsafe=3, safe=2)
    write_xstest(data / "xstest_prompts.csv")
    options = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--model.init_args.dtype=float32"]
    options += ["--model.init_args.lora.rank=2", "--data.init_args.num_workers=0"]
    with pytest.warns(DataWarning, match="1 with twice the same answer"):
        main(["fit", "--config", str(EXAMPLES / "llava_7b_dpo.yaml"), *options])
    results = RunResults.from_file(tmp_path / "runs" / "llava_7b_dpo")
    assert results.tasks == ["spa-vl"] and results.steps == [-1, 0] and results.names("task") == []
    assert results.summary(-1)["MASR"] == 0.0
