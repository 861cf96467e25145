"""Regression fusion of two folders: against whole Hessians of both models in memory, and from task to task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model_folders import tuned, write
from support.tiny_mllms import tiny_llava, training_records, write_llava_json
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from hpa_lightning.calibration import visit_hessians
from hpa_lightning.calibration.earlier_tasks import EarlierTasks
from hpa_lightning.callbacks import CalibrationSettings, RetentionSettings
from hpa_lightning.callbacks.batches import valid_positions
from hpa_lightning.cli import main
from hpa_lightning.data import MLLMCollator
from hpa_lightning.fuse import fuse_checkpoints, methods
from hpa_lightning.modules.blocks import find_decoder_blocks

CALIBRATION = CalibrationSettings(safety_samples=3, task_samples=4, batch_size=2)
SAFETY, TASK = training_records(3, 1, "s"), training_records(4, 2, "t")
SETTINGS: dict[str, Any] = {"method": "regression", "calibration": CALIBRATION}
LAYERS = 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    model, processor = tiny_llava(LAYERS)
    before = write(root / "before", model, processor)
    return before, write(root / "after", tuned(model), processor)


def load(folder: Path) -> dict[str, Tensor]:
    return dict(AutoModelForImageTextToText.from_pretrained(folder).state_dict())


def hessians(folder: Path, records: Any) -> dict[str, Tensor]:
    """Whole damped Hessians of every linear layer of the decoder blocks, float64."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    prefix, blocks = find_decoder_blocks(model)
    linears = {n: m for n, m in model.named_modules() if n.startswith(f"{prefix}.") and isinstance(m, nn.Linear)}
    found: dict[str, Tensor] = {}

    def keep(accumulators: Any) -> None:
        found.update({name: one.hessian().double().clone() for name, one in accumulators.items()})

    batches = [MLLMCollator(processor).train(records[i : i + 2]) for i in range(0, len(records), 2)]

    def forward(batch: Any) -> Any:
        return model(**batch)

    visit_hessians(forward, batches, blocks, linears, keep, damping=0.01, valid_positions=valid_positions)
    return found


def test_equals_whole_hessians_where_the_sketches_hold_all_columns(pair: tuple[Path, Path], tmp_path: Path) -> None:
    audit = fuse_checkpoints(*pair, tmp_path / "fused", SAFETY, TASK, safety_weight=2.0, **SETTINGS)
    safety, task = hessians(pair[0], SAFETY), hessians(pair[1], TASK)
    old, new, fused = (load(folder) for folder in (*pair, tmp_path / "fused"))
    for name in task:
        update = (new[f"{name}.weight"] - old[f"{name}.weight"]).double()
        bent = torch.linalg.solve((task[name] + 2.0 * safety[name]).T, (update @ task[name]).T).T
        expected = old[f"{name}.weight"].double() + bent
        torch.testing.assert_close(fused[f"{name}.weight"].double(), expected, rtol=1e-4, atol=1e-6)
    assert audit["settings"]["method"] == "regression" and audit["settings"]["rank"] == 384
    assert {entry["module"] for entry in audit["layers"]} == set(task)
    assert all(0 < entry["safety_action_left"] < 1 for entry in audit["layers"])
    others = {key for key in new if not any(key == f"{name}.weight" for name in task)}
    assert others and all(torch.equal(new[key], fused[key]) for key in others)


def test_a_second_task_is_bent_away_from_the_first(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The first fusion's file is the earlier task of the second, which then does less to the first one's inputs."""
    memory = tmp_path / "memory.safetensors"
    fuse_checkpoints(*pair, tmp_path / "first", SAFETY, TASK, save_memory=memory, task_name="one", **SETTINGS)
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / "first"),
        AutoProcessor.from_pretrained(pair[0]),
    )
    torch.manual_seed(3)
    again = write(tmp_path / "again", tuned(model), processor)
    second = training_records(4, 9, "u")
    left = {}
    for name, options in {"free": {}, "held": {"earlier_tasks": memory}}.items():
        fuse_checkpoints(tmp_path / "first", again, tmp_path / name, SAFETY, second, **options, **SETTINGS)
        left[name] = load(tmp_path / name)
    before, task = load(tmp_path / "first"), hessians(pair[1], TASK)
    for name, hessian in task.items():
        done = {key: (left[key][f"{name}.weight"] - before[f"{name}.weight"]).double() for key in left}
        free, held = (float(torch.trace(done[key] @ hessian @ done[key].T)) for key in ("free", "held"))
        assert held < free
    audit = json.loads((tmp_path / "held" / "audit.json").read_text())
    assert audit["settings"]["earlier tasks"] == ["one"]
    again_one = {"earlier_tasks": memory, "task_name": "one", "safety_weight": -1.0}
    with pytest.warns(UserWarning, match="a task 'one' already"), pytest.raises(ValueError, match="safety_weight"):
        fuse_checkpoints(tmp_path / "first", again, tmp_path / "x", SAFETY, second, **{**SETTINGS, **again_one})


def test_a_fusion_that_was_cut_off_after_its_memory_goes_on(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, memory = tmp_path / "whole.safetensors", tmp_path / "memory.safetensors"
    fuse_checkpoints(*pair, tmp_path / "whole", SAFETY, TASK, save_memory=whole, **SETTINGS)
    calls = []
    fuse = methods.RegressionMethod.fuse

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments[1].name)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return fuse(*arguments)

    monkeypatch.setattr(methods.RegressionMethod, "fuse", stopped)
    with pytest.raises(KeyboardInterrupt):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, save_memory=memory, **SETTINGS)
    monkeypatch.undo()
    memory.write_bytes(whole.read_bytes())  # as if it had been written before the end
    with pytest.raises(ValueError, match=rf"remembers {pair[1].name}; expected a new file, .* with other\."):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, save_memory=memory, task_name="other", **SETTINGS)
    assert memory.read_bytes() == whole.read_bytes()
    fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, save_memory=memory, **SETTINGS)
    first, second = load(tmp_path / "whole"), load(tmp_path / "out")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert memory.read_bytes() == whole.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        fuse_checkpoints(*pair, tmp_path / "new", SAFETY, TASK, save_memory=memory, **SETTINGS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ties"}, "expected 'hpa' or 'regression'"),
        ({"method": "regression", "retention": RetentionSettings()}, "retention: a setting of method 'hpa'"),
        ({"method": "regression", "orthogonal": False}, "orthogonal: a setting of method 'hpa'"),
        ({"method": "regression", "safety_weight": -1.0}, "safety_weight is -1.0"),
        ({"method": "regression", "rank": 0}, "rank is 0"),
        ({"method": "regression", "earlier_tasks": "nowhere"}, "no file of earlier tasks 'nowhere'"),
        ({"rank": 8, "save_memory": "a"}, "rank, save_memory: a setting of method 'regression'"),
    ],
)
def test_settings_are_refused(options: dict[str, Any], message: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fuse_checkpoints(*pair, tmp_path / "out", SAFETY, TASK, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"method": "regression", "save_memory": "out/m.safetensors"}, {"save_diagonals": "out/d.safetensors"}]
)
def test_files_inside_the_output_are_refused_before_it_is_computed(
    options: dict[str, Any], pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"inside the output, .* such as out-[md].safetensors"):
        fuse_checkpoints(*pair, "out", SAFETY, TASK, **options)
    assert not list(tmp_path.iterdir())


def test_command(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llava_json(tmp_path / "s.json", SAFETY, tmp_path / "images")
    write_llava_json(tmp_path / "t.json", TASK, tmp_path / "images")
    command = ["fuse", "--before", str(pair[0]), "--after", str(pair[1]), "--output", str(tmp_path / "out")]
    command += ["--safety-data", str(tmp_path / "s.json"), "--task-data", str(tmp_path / "t.json")]
    command += ["--image-folder", str(tmp_path / "images")]
    command += ["--method", "regression", "--rank", "16", "--save-memory", str(tmp_path / "m.safetensors")]
    with pytest.raises(SystemExit) as refused:
        main([*command, "--p-min", "3", "--units", "rows"])
    assert refused.value.code == 2 and "--p-min, --units: of --method hpa" in capsys.readouterr().err
    main(command)
    assert f"{7 * LAYERS} linear layers fused; of what the update did" in capsys.readouterr().out
    widths = {"0.self_attn.q_proj": 32}
    found = EarlierTasks.read(tmp_path / "m.safetensors", widths, LAYERS, "llava")
    assert found.tasks == ("after",) and found.sketches["0.self_attn.q_proj"].rank == 16
