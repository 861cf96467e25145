"""The scripts in `benchmarks/`, at small sizes: they run, and what they compare computes the same."""

import argparse
import configparser
import importlib
import logging
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Imports a benchmark by name, as the scripts import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_block_implementations_agree(script) -> None:
    block = script("block")
    options = argparse.Namespace(
        device="cpu", dtype="float32", safety_samples=2, task_samples=2, tokens=160, repeats=1, shrink=16, only=None
    )
    runs = {}
    for name in ("plain", "ours"):
        built = block.Block(options)
        before = built.linears["mlp.down_proj"].weight.clone()
        diagonals = block.IMPLEMENTATIONS[name](built)
        weights = {key: linear.weight.clone() for key, linear in built.linears.items()}
        assert not torch.equal(weights["mlp.down_proj"], before)
        runs[name] = diagonals, weights
    for what, of in runs["plain"][0].items():
        for layer, diagonal in of.items():
            # Plain code inverts in float32.
            torch.testing.assert_close(runs["ours"][0][what][layer].float(), diagonal.float(), rtol=1e-3, atol=0.0)
    for layer, weight in runs["plain"][1].items():
        torch.testing.assert_close(runs["ours"][1][layer], weight, rtol=0.0, atol=1e-6)


def test_block_floor_takes_the_cheaper_side(script) -> None:
    rates = {"float32": 1.0, "float64": 1.0, "cholesky": 1.0, "copy": math.inf}
    options = argparse.Namespace(dtype="float32", safety_samples=0, task_samples=128, tokens=640, shrink=1)
    parts = script("block").floor(options, rates)
    widths = (4096, 4096, 4096, 11008)
    assert parts["sums"] == sum(128 * 640 * c**2 for c in widths)
    assert parts["factors"] == pytest.approx(sum(2 * c**3 / 3 for c in widths))
    few = argparse.Namespace(dtype="float32", safety_samples=1, task_samples=0, tokens=64, shrink=1)
    parts = script("block").floor(few, rates)
    assert parts["sums"] == 0.0
    assert parts["factors"] == pytest.approx(sum(2 * 64**2 * c + 64**3 / 3 for c in widths))


def counted(method: Callable[..., None], calls: list[str]) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        calls.append(method.__name__)
        method(*arguments)

    return call


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_steps_alternate_between_plain_and_trio(
    script, tuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = script("steps")
    calls: list[str] = []
    for callback, hook in (
        (steps.MaskedFreezing, "on_before_optimizer_step"),
        (steps.OrthogonalProjection, "after_step"),
    ):
        monkeypatch.setattr(callback, hook, counted(getattr(callback, hook), calls))
    options = argparse.Namespace(
        device="cpu", dtype="float32", rank=4, blocks=1, hidden=128, inner=256, samples=1, tokens=8, pairs=2
    )
    turns, phases = steps.run("in_training", tuning, options, str(tmp_path))
    found = turns.steps
    assert phases["calibrate"] > 0.0
    steps_taken, at_the_end = calls[:-1], calls[-1]
    assert steps_taken == 4 * ["on_before_optimizer_step", "after_step"], (
        "two steps to warm up, two of the four after them"
    )
    assert at_the_end == "after_step", "once more when the task ends"
    assert [on for on, _, _ in found] == [True, False, False, True]
    for on, seconds, inside in found:
        assert (inside > 0.0) is on
        assert inside < seconds


def test_stream_rate_counts_samples(script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_path = script("data_path")
    file = script("llava").write_data(tmp_path, 6, "task", "A field of colours.")
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr(data_path, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert data_path.rate(file, 0, 2, 1) == 2.0, "four samples in two seconds: the first batch starts the clock"


def test_growth(script) -> None:
    growth = script("growth")
    sizes = {"blocks": 1, "width": 128, "tokens": 512, "rank": 4}
    point = growth.measure(sizes, torch.device("cpu"))
    assert set(point) == {"calibration", "fusion", "bytes"}
    assert point["fusion"] > 0.0
    line = [{"value": value, "bytes": 3.0 * value**1.5} for value in (1, 2, 8)]
    assert growth.exponent(line, "bytes") == pytest.approx(1.5)
    assert math.isnan(growth.exponent([{"value": 1, "bytes": 0.0}, {"value": 2, "bytes": 1.0}], "bytes"))


@pytest.fixture(scope="module")
def gpu_steps(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The arguments that `gpu.sh --small` calls Python with in each of its steps."""
    folder = tmp_path_factory.mktemp("gpu")
    noting = folder / "python"
    noting.write_text(
        '#!/bin/sh\ncase "$*" in *benchmarks*|*pytest*) for word in "$@"; do printf "%s\\t" "$word"; done '
        f">>{folder}/calls; echo >>{folder}/calls;; esac\n"
    )
    noting.chmod(0o755)
    command = [str(FOLDER / "gpu.sh"), "--small", "--output", str(folder)]
    subprocess.run(command, env={**os.environ, "PYTHON": str(noting)}, capture_output=True, check=True)
    report = (folder / "report.md").read_text()
    ends = re.findall(r"^\| (\w+) \| \d+ \| (.*) \|$", report.partition("## summary")[2], re.MULTILINE)
    assert [end for _, end in ends] == 8 * ["well"]
    assert [step for step, _ in ends] == re.findall(r"^## (\w+)$", report, re.MULTILINE)[:-1]
    return [line.rstrip("\t").split("\t") for line in (folder / "calls").read_text().splitlines()]


GPU_TABLES = {
    "block": "| ratio | ",
    "sums": "| moved on in float64 | ",
    "steps": "| null_space | full | ",
    "hpa_plus": "| sketch | 8 | ",
    "fuse": "| forward passes | ",
    "nano": "| AP | ",
}


@pytest.mark.parametrize("name", GPU_TABLES)
def test_a_step_of_the_gpu_command_runs_small(
    gpu_steps: list[list[str]],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: eight that import torch and Lightning take longer than all that they do."""
    ((path, *arguments),) = (step for step in gpu_steps if step[0] == f"benchmarks/{name}.py")
    if "--folder" in arguments:  # gpu.sh's own, which it has removed
        arguments[arguments.index("--folder") + 1] = str(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    logger, threads = logging.getLogger("lightning.pytorch"), torch.get_num_threads()
    level = logger.level
    try:
        runpy.run_path(str(FOLDER.parent / path), run_name="__main__")
    finally:  # a command may be quiet for good; other tests read the log
        logger.setLevel(level)
        torch.set_num_threads(threads)
    assert GPU_TABLES[name] in capsys.readouterr().out


def test_the_gpu_command_runs_tests_that_are_there(gpu_steps: list[list[str]], request: pytest.FixtureRequest) -> None:
    """They are tests of this suite; on a CPU only what they are picked by can go wrong."""
    tests, fsdp = (step for step in gpu_steps if "pytest" in step)
    assert len(gpu_steps) == len(GPU_TABLES) + 2
    assert fsdp[-3:] == ["tests/callbacks/test_processes.py", "-k", "one_device"]
    assert "_on_one_device_" in (FOLDER.parent / fsdp[-3]).read_text()
    files = [word for word in tests if word.endswith(".py")]
    found = {item.nodeid for item in request.session.items if item.nodeid.startswith(tuple(files))}
    if not found:  # this file runs alone
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
        found = set(subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True).stdout.splitlines())
    expression = re.sub(r"\b(?!(?:and|or|not)\b)[\w-]+", lambda word: f"({word[0]!r} in name)", tests[-1])
    picked = " ".join(name for name in found if eval(expression, {"name": name}))
    for test in ("test_orthogonal_projection.py::", "[post_training-full]", "[in_training-lora]"):
        assert test in picked


def test_a_step_that_fails_fails_the_gpu_command(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text('#!/bin/sh\ncase "$*" in *benchmarks*|*pytest*) exit 3;; esac\n')
    broken.chmod(0o755)
    done = subprocess.run(
        [str(FOLDER / "gpu.sh"), "--small", "--output", str(tmp_path)],
        env={**os.environ, "PYTHON": str(broken)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (tmp_path / "report.md").read_text().count("exit code 3") == 8


def test_a_bare_gpu_machine_gets_what_the_package_imports() -> None:
    """What `setup.cfg` names and such a machine lacks travels as wheels."""

    def names(lines: list[str]) -> set[str]:
        words = (re.match(r"[A-Za-z0-9_.-]+", line.strip()) for line in lines)
        return {word[0].lower().replace("_", "-") for word in words if word}

    setup = configparser.ConfigParser(interpolation=None)
    setup.read(FOLDER.parent / "setup.cfg")
    needed = names(setup["options"]["install_requires"].splitlines())
    present, travelling = (names((FOLDER / name).read_text().splitlines()) for name in ("present.txt", "wheels.txt"))
    assert needed - present - travelling == set()
    assert not present & travelling
    assert "torch" in present and "jsonargparse" in travelling


def test_sketches_against_whole_hessians(script, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    hpa_plus = script("hpa_plus")
    options = ["--device", "cpu", "--shrink", "32", "--tokens", "300", "--ranks", "16", "24", "--lora-rank", "2"]
    monkeypatch.setattr(sys, "argv", ["hpa_plus.py", *options])
    hpa_plus.main()
    told = capsys.readouterr().out
    assert re.findall(r"^\| (sketch|exact|hpa) \| (\d*) \|", told, re.MULTILINE) == [
        ("sketch", "16"),
        ("sketch", "24"),
        ("exact", ""),
        ("hpa", ""),
    ]
    held = hpa_plus.held_bytes(192)
    memory, saved = held["sketch"]
    assert memory < 1e9 and saved < 0.6e9, "the goals for LLaVA-7B"
    assert held["exact, energy"][0] > 20 * memory
    inputs = hpa_plus.Inputs(128, argparse.Namespace(device="cpu", dtype="float32", tokens=700))
    assert [len(rows) for rows in inputs] == [640, 60] and inputs.seconds > 0
    assert all(torch.equal(one, again) for one, again in zip(inputs, inputs, strict=True)), "another pass draws others"
    kept = [hpa_plus.WAYS[way](inputs, 128) for way in ("sketch", "exact")]
    assert abs(kept[0].shape[1] - kept[1].shape[1]) <= 1


def test_the_cost_of_smol_on_a_small_model(
    script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from support.tiny_mllms import tiny_timm

    from hpa_lightning.modules.save_pretrained import export_model

    model, processor = tiny_timm(tower="vit_tiny_patch16_224", arguments={"img_size": 224, "depth": 1})
    export_model(model, processor, tmp_path / "model")
    sizes = ["--words", "26", "--samples", "2", "--new", "3", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", ["smol.py", "--model", str(tmp_path / "model"), *sizes])
    smol = script("smol")
    smol.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    of_answers = [precision for precision in smol.PRECISIONS if not precision.startswith("bf16-mixed")]
    assert len(rows) == 4 + 2 * len(smol.PRECISIONS) + 2 * len(of_answers)


def test_growth_of_sketches(script, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    hpa_plus = script("hpa_plus")
    monkeypatch.setattr(hpa_plus, "AXES", {"blocks": [1, 4], "width": [64, 128], "rank": [4, 8]})
    monkeypatch.setattr(hpa_plus, "BASE", {"blocks": 1, "width": 64, "tokens": 300, "rank": 8})
    monkeypatch.setattr(sys, "argv", ["hpa_plus.py", "--device", "cpu", "--growth", "--lora-rank", "2"])
    hpa_plus.main()
    rows = re.findall(r"^\| (\w+ \d+) \| .* \| ([^|]*) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in rows] == ["blocks 1", "blocks 4", "width 64", "width 128", "rank 4", "rank 8"]
    exponents = [float(last.split(", ")[-1]) for _, last in rows[1:4:2]]
    # Of 64 and 128 columns (two and three quarters as many once), 56 bytes each, and 1024 for four matrices of 8 x 8.
    of_width = round(math.log2((56 * 5.75 * 128 + 1024) / (56 * 5.75 * 64 + 1024)), 2)
    assert exponents == [1.0, of_width], "bytes go with the blocks and, but for k^2, with the width"
