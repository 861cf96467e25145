"""Every reader on broken inputs: mutated files of each format, and values that JSON and YAML can hold.

``python tests/support/fuzz_readers.py 30000`` runs that many inputs and prints the faults by kind.
"""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import os
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save

from hpa_lightning.calibration.earlier_tasks import EarlierTasks
from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.data import (
    MME,
    SIUO,
    SPAVL,
    CaptionedImages,
    DataPart,
    FigStep,
    HarmBench,
    MixedData,
    MMBench,
    MMSafetyBench,
    MultipleChoice,
    PreferenceFile,
    PromptFile,
    SafeRLHF,
    ScienceQA,
    SEEDBench,
    SORRYBench,
    TextVQA,
    VLGuard,
    XSTest,
)
from hpa_lightning.data.benchmarks.description import read_benchmark
from hpa_lightning.data.overlap import record_key
from hpa_lightning.data.readers import as_records, examine_records
from hpa_lightning.data.record import missing_images
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.functional import InputSketch
from hpa_lightning.fuse.adapter_settings import check_plain_lora
from hpa_lightning.fuse.checkpoint import _files_of_index, read_json
from hpa_lightning.fuse.diagonals import _made_with, read_diagonals
from hpa_lightning.fuse.tensor_files import TensorFiles
from hpa_lightning.metrics.judges import resolve_judge
from hpa_lightning.modules.reference_logs import _HEADER as HEADER
from hpa_lightning.modules.reference_logs import ReferenceLogs
from hpa_lightning.rating import export_form, rate_outcome
from hpa_lightning.report.run_tables import gate_table, matrix_table, run_table, safety_table, score_table
from hpa_lightning.results.predictions import read_predictions
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.study.store import Store
from hpa_lightning.study.study_file import read_study

LONGEST = 2000
"""Characters of a message."""

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat", "loss": True}]
PARTS = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}]
CHAT = [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "a cat", "weight": 1}]
QUESTION = {"question_id": 1, "image": "a.png", "text": "What?", "answer": ["a cat"]}
CAPTIONS = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
RULES = {"match": "anywhere", "phrases": ["I cannot"], "exact": ["No."], "source": "mine"}
STUDY = {
    "title": "x",
    "base": {"seed_everything": "${seed}", "trainer": {"callbacks": []}},
    "conditions": {"clean": {}, "other": {"data": {"seed": "${seed}"}}},
    "methods": {"a": {"title": "A ${p}", "callbacks": [{"class_path": "x.Y", "p": "${p}"}], "grid": {"p": [1, 2]}}},
    "groups": {
        "g": {
            "title": "G",
            "methods": ["a"],
            "seeds": [1, 2],
            "reference": "a[p=1]",
            "x": {"setting": "p"},
            "curves": ["a[p=1]"],
        }
    },
}
DESCRIPTION = {"title": "x", "tasks": [{"name": "a", "train": "${folder}/t.json", "test": "t.json", "steps": 3}]}
EVENTS: list[dict[str, Any]] = [
    {"event": "run", "method": "x", "seed": 1, "tasks": ["a"], "sets": [{"name": "a", "kind": "task"}], "commit": "c"},
    {
        "event": "score",
        "step": 0,
        "after": "a",
        "set": "a",
        "kind": "task",
        "metric": "exact_match",
        "score": 0.5,
        "n": 4,
    },
    {"event": "time", "step": 0, "phase": "train", "seconds": 1.5},
    {
        "event": "retention",
        "step": 0,
        "layer": 1,
        "module": "q",
        "columns": 8,
        "retained": 2,
        "alpha": 0.5,
        "shared": 1,
    },
    {
        "event": "gate",
        "step": 0,
        "task": "a",
        "action": "retry",
        "budget": 0.1,
        "attack_success_rate": 0.2,
        "kept_attack_success_rate": 0.1,
    },
]
ANSWERS = [{"id": "1", "prompt": "What?", "response": "a cat", "references": ["a cat"], "decoding": {}}]
VLGUARD = [
    {"id": 1, "image": "a.png", "safe": False, "instr-resp": [{"instruction": "a?", "response": "No."}]},
    {"id": 2, "image": "a.png", "safe": True, "instr-resp": [{"safe_instruction": "b?", "response": "Yes."}]},
]
PROBLEM = {"question": "What?", "choices": ["a", "b"], "answer": 1, "hint": "h", "image": "i.png", "split": "test"}
SIUO_ROW = {"question_id": 1, "question": "What?", "image": "a.png", "reference_answer": "x"}
CHOICE = {"question": "What?", "options": {"A": "a cat", "B": "a dog"}, "answer": "B", "image": "a.png", "id": 3}


@dataclass(frozen=True)
class Case:
    """A reader and a file that it takes.

    Args:
        file: path of what is mutated, in the folder of the case.
        content: what it holds, before it is written as its suffix says.
        read: called with the folder.
        others: path of each further file -> what it holds.
    """

    file: str
    content: Any
    read: Callable[[Path], Any]
    others: Mapping[str, Any] = field(default_factory=dict)


def _records(make: Callable[[Path], RecordSet | str]) -> Callable[[Path], Any]:
    """Read, check and compare records, as a stream does."""

    def read(folder: Path) -> None:
        data = make(folder)
        if isinstance(data, str):
            for message in examine_records(data, None, "x")[1]:
                check_message(message)
        for record in as_records(data, None, "the data"):
            record_key(record)
            missing_images([record])

    return read


def _judge(folder: Path) -> None:
    resolve_judge(str(folder / "rules.json"))(["I cannot.", ""])


def _run(folder: Path) -> None:
    run = RunResults.from_file(folder)
    run.matrix(), run.summary(), run.commits, run.minutes()
    for table in (run_table([run]), matrix_table(run), safety_table(run), gate_table(run), score_table([run])):
        table.text()


def _archive(folder: Path) -> None:
    Store(folder / "runs", [folder / "cells.jsonl"])


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def _tsv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _rated(folder: Path) -> None:
    form = "filled.json" if (folder / "filled.json").exists() else "form/form.csv"
    rate_outcome([folder / form], folder / "key.json", incomplete=True, draws=5)


def _form() -> dict[str, Any]:
    """Files of a rating form with its key, two runs and one question."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the answers have no pictures
        folder = Path(place)
        for name, answer in (("one", "a cat"), ("two", "No.")):
            (folder / name / "predictions").mkdir(parents=True)
            events = [*EVENTS[:2], {"event": "end", "finished_tasks": 1, "tasks": 1}]
            (folder / name / "results.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
            row = {**ANSWERS[0], "response": answer}
            (folder / name / "predictions/step_01_a.jsonl").write_text(json.dumps(row) + "\n")
        export_form([folder / "one", folder / "two"], folder / "form", folder / "key.json")
        key = json.loads((folder / "key.json").read_text())
        table = (folder / "form/form.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(table)))
    rows[0] |= {"rater": "me", "safety": "4"}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    ratings = {rows[0]["item"]: [{"safety": 4}, {}]}
    filled = {name: key[name] for name in ("format", "form", "shown")} | {"rater": "me", "ratings": ratings}
    return {"key.json": key, "filled.json": filled, "form/form.csv": buffer.getvalue()}


def _read_weights(files: TensorFiles) -> None:
    for key in files.stored:
        files.read(key)


def _logs(folder: Path) -> None:
    ReferenceLogs(folder / "logs.jsonl", {"data": "x"}, 2).of(torch.tensor([0, 1]))


def _safetensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return save(tensors, metadata)


_CALIBRATION = CalibrationSettings()
_DIAGONALS = _safetensors(
    {f"{what}/layer": torch.ones(3) for what in ("safety", "task")},
    {key: str(value) for key, value in _made_with(_CALIBRATION).items()},
)


def _memory() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "memory.safetensors"
        sketch = InputSketch(3, 2)
        sketch.update(torch.ones(4, 3))
        EarlierTasks({"layer": sketch}, {"layer": "layer"}, 1, ("a",), "llama").write(path)
        return path.read_bytes()


_INDEX = {"metadata": {"total_size": 12}, "weight_map": {"layer": "weights.safetensors"}}
_ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
_ADAPTER |= {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {}}
_FORM = _form()
_QUESTION_OF_MMBENCH = {
    "question": "What?",
    "hint": "",
    "answer": "A",
    "category": "ocr",
    "l2-category": "x",
    "split": "dev",
}
_MMBENCH = _tsv(
    [
        {"index": turn * 1_000_000 + 7, **_QUESTION_OF_MMBENCH, "A": "yes", "B": "no", "C": "", "D": "",
         "answer": "AB"[turn], "image": base64.b64encode(_picture()).decode() if turn == 0 else "7"}
        | ({"A": "no", "B": "yes"} if turn else {})
        for turn in (0, 1)
    ]
)  # fmt: skip
_SEED = {
    "questions": [
        {
            "question_id": 1,
            "question": "What?",
            **{f"choice_{letter}": f"a {letter}" for letter in "abcd"},
            "answer": "B",
            "data_type": "image",
            "data_id": "a.png",
            "question_type_id": 3,
        }
    ],
    "question_type": {"Scene": 3},
}
_SAFE_RLHF = {
    "prompt": "How?",
    "response_0": "No.",
    "response_1": "So.",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "safer_response_id": 0,
    "better_response_id": 1,
}


CASES: dict[str, Case] = {
    "conversations": Case(
        "t.json", [{"id": 1, "image": "a.png", "conversations": TURNS}] * 2, _records(lambda f: str(f / "t.json"))
    ),
    "pairs": Case(
        "t.json",
        [{"system": "x", "conversation": [{"human": "a", "assistant": "b"}]}],
        _records(lambda f: str(f / "t.json")),
    ),
    "chat lines": Case("t.jsonl", [{"id": "a", "messages": CHAT}] * 2, _records(lambda f: str(f / "t.jsonl"))),
    "chat column": Case(
        "t.json",
        [{"messages": [{"role": "user", "content": "<image>a"}, CHAT[1]], "images": ["a.png"]}],
        _records(lambda f: str(f / "t.json")),
    ),
    "alpaca": Case(
        "t.json",
        [{"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}],
        _records(lambda f: str(f / "t.json")),
    ),
    "query": Case(
        "t.json",
        [{"query": "a", "response": "c", "history": [["d", "e"]], "images": []}],
        _records(lambda f: str(f / "t.json")),
    ),
    "questions": Case("q.jsonl", [QUESTION] * 2, _records(lambda f: str(f / "q.jsonl"))),
    "parquet": Case(
        "t.parquet",
        [{"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}] * 3,
        _records(lambda f: str(f / "t.parquet")),
    ),
    "prompts json": Case(
        "p.json", [{"prompt": "a", "turns2": ["x"]}], _records(lambda f: PromptFile(str(f / "p.json")))
    ),
    "prompts turns": Case(
        "p.jsonl",
        [{"question_id": 1, "turns": ["a"], "image": "a.png", "kind": 1}],
        _records(lambda f: PromptFile(str(f / "p.jsonl"), image_column="image", filters={"kind": [1, "x"]})),
    ),
    "prompts csv": Case(
        "p.csv",
        'prompt,answer,kind\nWhat?,so,a\n"two\nlines",b,c\n',
        _records(lambda f: PromptFile(str(f / "p.csv"), prompt_column="prompt", answer_column="answer")),
    ),
    "prompts txt": Case("p.txt", "What?\n\nWhy?\n", _records(lambda f: PromptFile(str(f / "p.txt")))),
    "multiple choice": Case(
        "c.json",
        [CHOICE, {**CHOICE, "options": ["a", "b"], "answer": 0, "image": ["a.png"]}],
        _records(lambda f: MultipleChoice(str(f / "c.json"))),
    ),
    "ch3ef": Case(
        "c.json",
        {"items": [{"query": "a", "options": ["x", "y"], "id": 1}]},
        _records(lambda f: MultipleChoice(str(f / "c.json"), first_is_right=True)),
    ),
    "vlguard": Case("test.json", VLGUARD, _records(lambda f: VLGuard(str(f), subset="all", image_folder=str(f)))),
    "spa-vl": Case(
        "s.json",
        [{"id": 1, "image": "a.png", "question": "a", "chosen": "b", "rejected": "c"}],
        _records(lambda f: SPAVL(str(f / "s.json"), "chosen")),
    ),
    "figstep": Case(
        "safebench.csv",
        "dataset,category_id,task_id\nx,1,2\n",
        _records(lambda f: FigStep(str(f), image_folder=str(f))),
    ),
    "mm-safetybench": Case(
        "processed_questions/06-Fraud.json",
        {"0": {"Rephrased Question(SD)": "a"}},
        _records(lambda f: MMSafetyBench(str(f), "SD")),
    ),
    "siuo": Case("siuo_gen.json", [SIUO_ROW], _records(lambda f: SIUO(str(f), image_folder=str(f)))),
    "siuo choice": Case(
        "siuo_mcqa.json",
        [{**SIUO_ROW, "options": ["a", "b"], "correct_option": "A"}],
        _records(lambda f: SIUO(str(f), "choice", image_folder=str(f))),
    ),
    "xstest": Case(
        "x.csv", "id,prompt,label\n1,How to kill a process?,safe\n", _records(lambda f: XSTest(str(f / "x.csv")))
    ),
    "scienceqa": Case(
        "problems.json",
        {"7": PROBLEM, "8": {**PROBLEM, "image": None}},
        _records(lambda f: ScienceQA(str(f), "test", image_folder=str(f))),
    ),
    "scienceqa splits": Case(
        "pid_splits.json",
        {"test": ["7"], "train": []},
        _records(lambda f: ScienceQA(str(f), "test", image_folder=str(f))),
    ),
    "textvqa": Case(
        "v.json",
        {"data": [{"question_id": 1, "image_id": "a", "question": "What?", "answers": ["x"] * 10}]},
        _records(lambda f: TextVQA(str(f / "v.json"), str(f / "q.jsonl"))),
    ),
    "textvqa own": Case(
        "v.json",
        {"data": [{"question_id": 1, "image_id": "a", "question": "What?", "answers": ["x"] * 10}]},
        _records(lambda f: TextVQA(str(f / "v.json"))),
    ),
    "captions": Case(
        "caps.json", CAPTIONS, _records(lambda f: CaptionedImages(str(f / "q.jsonl"), str(f / "caps.json")))
    ),
    "captioned questions": Case(
        "q.jsonl", [QUESTION], _records(lambda f: CaptionedImages(str(f / "q.jsonl"), str(f / "caps.json")))
    ),
    "harmbench": Case(
        "hb.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nDo a,standard,illegal,,,a\n"
        'Do b,contextual,illegal,,"A\nkettle",b\n',
        _records(lambda f: HarmBench(str(f / "hb.csv"))),
    ),
    "sorry-bench": Case(
        "sorry.jsonl",
        [{"question_id": 1, "category": "3", "turns": ["What?"], "prompt_style": "base"}],
        _records(lambda f: SORRYBench(str(f / "sorry.jsonl"))),
    ),
    "safe-rlhf": Case("safe.jsonl", [_SAFE_RLHF], _records(lambda f: SafeRLHF(str(f / "safe.jsonl")))),
    "safe-rlhf parquet": Case("safe.parquet", [_SAFE_RLHF], _records(lambda f: SafeRLHF(str(f / "safe.parquet")))),
    "preferences": Case(
        "pref.jsonl",
        [
            {
                "prompt": "<image>Why?",
                "image": "a.png",
                "chosen": "No.",
                "rejected": [{"role": "assistant", "content": "x"}],
            }
        ],
        _records(lambda f: PreferenceFile(str(f / "pref.jsonl"))),
    ),
    "preferences turns": Case(
        "pref.json",
        [
            {
                "conversations": TURNS[:1],
                "image": "a.png",
                "chosen": TURNS[1:],
                "rejected": {"from": "gpt", "value": "x"},
            }
        ],
        _records(lambda f: PreferenceFile(str(f / "pref.json"), faulty="skip")),
    ),
    "mmbench": Case("mm.tsv", _MMBENCH, _records(lambda f: MMBench(str(f / "mm.tsv")))),
    "mmbench made": Case("mm.tsv", _MMBENCH, _records(lambda f: MMBench(str(f / "mm.tsv"), rounds="made"))),
    "mme": Case(
        "MME/count/0001.txt",
        "Is it a?\tYes\nIs it b?\tNo\n",
        _records(lambda f: MME(str(f / "MME"))),
        {"MME/count/0001.png": _picture()},
    ),
    "mme parquet": Case(
        "mme.parquet",
        [
            {
                "question_id": "count/1.png",
                "image": {"bytes": _picture(), "path": "1.png"},
                "question": f"Is it {word}?",
                "answer": word,
                "category": "count",
            }
            for word in ("Yes", "No")
        ],
        _records(lambda f: MME(str(f / "mme.parquet"))),
    ),
    "seed-bench": Case(
        "SEED-Bench.json", _SEED, _records(lambda f: SEEDBench(str(f / "SEED-Bench.json"), image_folder=str(f)))
    ),
    "mixed": Case(
        "t.jsonl",
        [{"id": "a", "messages": CHAT}] * 2,
        _records(lambda f: MixedData([DataPart(str(f / "t.jsonl"), samples=1)])),
    ),
    "rating key": Case("key.json", _FORM["key.json"], _rated, {"filled.json": _FORM["filled.json"]}),
    "rating json": Case("filled.json", _FORM["filled.json"], _rated, {"key.json": _FORM["key.json"]}),
    "rating csv": Case("form/form.csv", _FORM["form/form.csv"], _rated, {"key.json": _FORM["key.json"]}),
    "reference logs": Case(
        "logs.jsonl",
        [{HEADER: {"data": "x", "pairs": 2}}, *({"pair": n, "chosen": -1.0, "rejected": -2.0} for n in (0, 1))],
        _logs,
    ),
    "diagonals": Case(
        "diagonals.safetensors",
        _DIAGONALS,
        lambda f: read_diagonals(f / "diagonals.safetensors", {"layer": 3}, _CALIBRATION),
    ),
    "earlier tasks": Case(
        "memory.safetensors",
        _memory(),
        lambda f: EarlierTasks.read(f / "memory.safetensors", {"layer": 3}, 1, "llama"),
    ),
    "index of weights": Case(
        "model.safetensors.index.json",
        _INDEX,
        lambda f: _files_of_index(f),
        {"weights.safetensors": _safetensors({"layer": torch.ones(3)})},
    ),
    "weights": Case(
        "weights.safetensors",
        _safetensors({"layer": torch.ones(3), "other": torch.ones(2, 2, dtype=torch.bfloat16)}),
        lambda f: _read_weights(TensorFiles(f, ["weights.safetensors"])),
    ),
    "adapter": Case(
        "adapter_config.json",
        _ADAPTER,
        lambda f: check_plain_lora(read_json(f / "adapter_config.json"), str(f / "adapter_config.json")),
    ),
    "rules": Case("rules.json", RULES, _judge),
    "predictions": Case("predictions/step_00_a.jsonl", ANSWERS, lambda f: list(read_predictions(f))),
    "results": Case("results.jsonl", EVENTS, _run),
    "study": Case("study.yaml", STUDY, lambda f: [cell.key for cell in read_study(f / "study.yaml").cells()]),
    "description": Case("own.yaml", DESCRIPTION, lambda f: read_benchmark(str(f / "own.yaml"), f)),
    "archive": Case(
        "cells.jsonl", [{"key": "a/b/seed_1", "digest": "x", "seconds": 1, "threads": 2, "events": EVENTS}], _archive
    ),
    "store": Case(
        "runs/a/b/seed_1/cell.json", {"key": "a/b/seed_1", "digest": "x", "seconds": 1.0, "threads": 1}, _archive
    ),
}

STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    7,
    2**70,
    1e999,
    float("nan"),
    0.5,
    "",
    " ",
    "<image>",
    "\ud83d",
    "a\0b",
    "x" * 5000,
    "../../etc",
    "http://[x",
    "https://x.org/a.png",
    "data:image/png;base64,@",
    "s3://x",
    "${nothing}",
    "${folder}",
    "yes",
    [],
    [[]],
    [None],
    ["a", "a"],
    [1, "a"],
    {},
    {"a": 1},
    {"": None},
    {"type": "image"},
    {"bytes": None, "path": None},
    {"bytes": "x", "path": 7},
    {"url": ["x"]},
    {"class_path": "os.system", "init_args": {"command": "true"}},
    ["x" * 50] * 500,
)


def prepare(folder: Path, case: Case) -> Path:
    """Write the files of all cases that the case may need, and return the path of its own."""
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    (folder / "imgs" / "06-Fraud" / "SD").mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("q.jsonl", [QUESTION]),
        ("caps.json", CAPTIONS),
        ("problems.json", {"7": PROBLEM}),
        ("pid_splits.json", {"test": ["7"]}),
        ("cells.jsonl", ""),
    ):
        write(folder / name, content)
    for name, content in case.others.items():
        write(folder / name, content)
    path = folder / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(path: Path, content: Any) -> None:
    """Write the content as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(content), path)
        return
    path.write_bytes(encoded(path.suffix, content))


def encoded(suffix: str, content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode("utf-8", "surrogatepass")
    if suffix == ".yaml":
        return yaml.safe_dump(content, sort_keys=False).encode("utf-8", "surrogatepass")
    if suffix == ".jsonl":
        rows = content if isinstance(content, list) else [content]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    return json.dumps(content).encode()


def inputs(case: Case, seed: int, whole: bytes) -> Iterator[Any]:
    """Mutated contents without end: of the structure, of the bytes, and some that are known to hurt."""
    draw = random.Random(f"{seed}/{case.file}")
    while True:
        if isinstance(case.content, str | bytes) or Path(case.file).suffix == ".parquet" or draw.random() < 0.3:
            yield _mutated_bytes(whole, draw)
        elif draw.random() < 0.03:
            yield draw.choice(
                [
                    b"",
                    b"[" * 100_000,
                    b'{"a":' * 50_000,
                    b"1" * 5000,
                    b"[" + b"1" * 5000 + b"]",
                    b"\xff\xfe\x00",
                    b"null",
                ]
            )
        else:
            content = json.loads(json.dumps(case.content))
            for _ in range(draw.choice((1, 1, 1, 2, 3))):
                content = _mutated(content, draw)
            yield content


def _mutated(node: Any, draw: random.Random) -> Any:
    """One place in the structure replaced, removed, doubled or renamed."""
    children: list[Any] = (
        list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    )
    if not children or draw.random() < 0.15:
        return copy.deepcopy(draw.choice(STRANGE))
    key = draw.choice(children)
    if draw.random() < 0.7:
        node[key] = _mutated(node[key], draw)
    elif isinstance(node, list):
        draw.choice(
            (
                lambda: node.pop(key),
                lambda: node.append(copy.deepcopy(node[key])),
                lambda: node.insert(0, copy.deepcopy(draw.choice(STRANGE))),
            )
        )()
    else:
        value = node.pop(key)
        if draw.random() < 0.4:
            node[draw.choice(("x", "", "video", "images", "system", "loss", "image", "answers", key * 200))] = value
        elif draw.random() < 0.5:
            node[key], node[draw.choice(("system", "image", "extra", "id"))] = (
                value,
                copy.deepcopy(draw.choice(STRANGE)),
            )
    return node


def _mutated_bytes(whole: bytes, draw: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(data) + 1)
        kind = draw.randrange(4)
        if kind == 0 and data:
            data[min(place, len(data) - 1)] = draw.randrange(256)
        elif kind == 1:
            del data[place : place + draw.randrange(1, 20)]
        elif kind == 2:
            data[place:place] = draw.choice(
                (b'"', b"{", b"]", b",", b"\n", b"\0", b"\t", b"\xe2\x80\xa8", b"\\ud800", b"&a *a")
            )
        else:
            data[place:place] = data[: draw.randrange(1, 60)]
    return bytes(data)


def check_message(message: str) -> None:
    assert len(message) <= LONGEST, f"a message of {len(message)} characters"


def fault(case: Case, folder: Path) -> str | None:
    """What is wrong with how the reader takes its file, if anything is: another error than the documented one."""
    try:
        with warnings.catch_warnings(record=True) as told, redirect_stderr(io.StringIO()):
            warnings.simplefilter("always")
            case.read(folder)
        for warning in told:
            check_message(str(warning.message))
    except (ValueError, FileNotFoundError) as error:
        if isinstance(error, UnicodeError) or type(error) not in (ValueError, FileNotFoundError):
            return _kind(error)
        if len(str(error)) > LONGEST:
            return f"a message of {len(str(error))} characters: {_kind(error)[:300]}"
        names = {
            Path(case.file).name,
            Path(case.file).stem,
            *case.others,
            "q.jsonl",
            "caps.json",
            "problems.json",
            "pid_splits.json",
        }
        if not any(name in str(error) for name in names) and "the data" not in str(error):
            return f"no file named: {_kind(error)[:300]}"
    except (Exception, RecursionError) as error:
        return _kind(error)
    return None


def _kind(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "hpa_lightning" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {place}: {str(error)[:200]}"


def run(name: str, count: int, seed: int = 0) -> list[tuple[Any, str]]:
    """Put ``count`` inputs to a reader and return those that it takes wrongly, with what happened."""
    case, found = CASES[name], []
    with tempfile.TemporaryDirectory() as folder:
        path = prepare(Path(folder), case)
        write(path, case.content)
        case.read(Path(folder))  # what is mutated is good
        whole = path.read_bytes()
        generator = inputs(case, seed, whole)
        for _ in range(count):
            content = next(generator)
            try:
                data = content if isinstance(content, bytes) else encoded(path.suffix, content)
            except (UnicodeError, yaml.YAMLError, RecursionError):
                continue
            path.write_bytes(data)
            if (text := fault(case, Path(folder))) is not None:
                found.append((content, text))
    return found


def main() -> None:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int.from_bytes(os.urandom(3), "big")
    chosen = sys.argv[3:] or list(CASES)
    kinds: Counter[str] = Counter()
    examples: dict[str, Any] = {}
    for name in chosen:
        for content, text in run(name, total // len(chosen), seed):
            kind = f"{name}: {text.partition(': ')[0] if 'no file' not in text else text[:120]}"
            kinds[kind] += 1
            examples.setdefault(kind, (text, content))
    print(f"seed {seed}: {total} inputs, {sum(kinds.values())} faults of {len(kinds)} kinds")
    for kind, count in kinds.most_common():
        print(f"{count:6d} {kind}\n         {examples[kind][0][:260]!r}\n         {str(examples[kind][1])[:300]!r}")


if __name__ == "__main__":
    main()
