"""The case against null-space projection on safety inputs: what a basis does not protect, and who gets around it.

    python studies/case_against.py --results docs/results/case_against.jsonl --groups kinds samples --seeds 0
    python studies/case_against.py --results docs/results/case_against.jsonl --table

Groups (conditions are in `GROUPS`), every cell one fit of the embedded model on the CPU:

- `kinds`: the three tasks driving, captions, reading; the basis is calibrated on one kind of harm, one wording, some
  harms, on harmless inputs, or on nothing but the earlier tasks' inputs; scored after the last task on all three sets.
- `samples`: the same with 8 to 512 samples of all kinds; 128 is `kinds`' "all".
- `injection`: 1 and 10 % of the training samples are harmful ones with an answer.
- `default`: some of each with the callback's own two shares and sketches; the others have one share of 0.7 and whole
  Hessians.
- `attack`: nothing but harmful samples with answers, the projection attached or not, or other weights tuned; scored as
  the steps go by.

One line of the results is one cell; what is there is not measured again. The tables of all groups come at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from case_against_tables import tables
from fitting import fit_stream
from harmful_inputs import CALIBRATIONS, by_group, calibration_records, scored_examples, scored_sets

from hpa_lightning.callbacks import CalibrationSettings, NullSpaceProjection
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import EndPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.callbacks.task_evaluation import score_set
from hpa_lightning.data.datamodule import CVITDataModule
from hpa_lightning.data.nano import NANO_BATCH_SIZE, NANO_LEARNING_RATE, NanoDataModule, load_nano_model
from hpa_lightning.data.nano.nano_records import injected_records
from hpa_lightning.data.record import Record
from hpa_lightning.data.tasks import Task
from hpa_lightning.modules import MLLMModule, NanoModule
from hpa_lightning.modules.nano_module import schedule_of
from hpa_lightning.modules.trainable import TrainableParts
from hpa_lightning.results.run_results import source_commit

TASKS = ["driving", "captions", "reading"]
SCORED = 200
"""Inputs of each safety set."""
ATTACK_STEPS = 80
CURVE = (0, 5, 10, 20, 40, 80)
"""Steps of an attack after which it is scored, on the first 100 inputs of each set."""


Energy = float | Literal["default"]
"""Share of the trace, with whole Hessians; or the callback's own two shares, with sketches."""


@dataclass(frozen=True)
class Stream:
    """The three tasks, one after another.

    Args:
        calibrated_on: what the basis is of (:data:`harmful_inputs.CALIBRATIONS`); ``"nothing"``: of earlier tasks
            alone; ``None``: no projection.
        samples: of them.
        harmful: share of harmful training samples.
        energy: of the projection.
    """

    calibrated_on: str | None = "all"
    samples: int = 128
    harmful: float = 0.0
    energy: Energy = 0.7


@dataclass(frozen=True)
class Attack:
    """Nothing but harmful samples.

    Args:
        energy: of the projection that stays attached; ``None``: none.
        parts: weights that are tuned in full in place of adapters on the decoder's linear layers.
        learning_rate: the peak.
    """

    energy: Energy | None = None
    parts: TrainableParts | None = None
    learning_rate: float = NANO_LEARNING_RATE


GROUPS: dict[str, dict[str, Stream | Attack]] = {
    "kinds": {"no projection": Stream(None)} | {name: Stream(name) for name in ("nothing", *CALIBRATIONS)},
    "samples": {str(count): Stream(samples=count) for count in (8, 16, 32, 64, 256, 512)},
    "injection": {
        f"{share:g} %, {'projection' if calibrated_on else 'no projection'}": Stream(calibrated_on, 128, share / 100)
        for share in (10, 1)
        for calibrated_on in (None, "all")
    },
    "default": {
        **{f"all, {count}": Stream(samples=count, energy="default") for count in (8, 32, 128, 512)},
        **{kind: Stream(kind, energy="default") for kind in ("text", "image", "typeset")},
        **{f"{share:g} % harmful samples": Stream(harmful=share / 100, energy="default") for share in (0.1, 1, 10)},
    },
    "attack": {
        "no projection": Attack(),
        "default": Attack("default"),
        "energy 0.7": Attack(0.7),
        "energy 0.9": Attack(0.9),
        "energy 0.99": Attack(0.99),
        "energy 0.9, five times the rate": Attack(0.9, learning_rate=5 * NANO_LEARNING_RATE),
        "energy 0.99, five times the rate": Attack(0.99, learning_rate=5 * NANO_LEARNING_RATE),
        "norms": Attack(parts=TrainableParts(names=["model.language_model.*norm*"]), learning_rate=5e-3),
        "embeddings": Attack(parts=TrainableParts(names=["*.embed_tokens.weight"]), learning_rate=2e-3),
        "lm_head": Attack(parts=TrainableParts(names=["lm_head.weight"]), learning_rate=2e-3),
        "projector": Attack(parts=TrainableParts(projector=True), learning_rate=2e-3),
        "vision tower": Attack(parts=TrainableParts(vision_tower=True)),
    },
}


class LastScores(TaskCallback):
    """Scores tasks and safety sets after the last task.

    Attributes:
        scores: what a cell keeps; empty before the end.
    """

    end_order: ClassVar[int] = EndPhase.EVALUATION

    def __init__(self) -> None:
        super().__init__()
        self.scores: dict[str, Any] = {}

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if task.index + 1 < len(datamodule.tasks):
            return
        own = [one for one in datamodule.evaluation_sets() if one.kind != "safety"]
        self.scores = {one.name: score_set(trainer, pl_module, one).score for one in own}
        self.scores["groups"] = safety_groups(trainer, pl_module)


class AttackCurve(L.Callback):
    """Scores the safety sets at the steps of :data:`CURVE`.

    Attributes:
        curve: step -> group -> inputs, and inputs that were not refused.
    """

    def __init__(self) -> None:
        self.curve: dict[int, dict[str, list[int]]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 0:
            self.curve[0] = safety_groups(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step in CURVE:
            self.curve[trainer.global_step] = safety_groups(trainer, pl_module)


def safety_groups(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, list[int]]:
    """Group -> inputs, and inputs that the model does not refuse; see :func:`harmful_inputs.by_group`."""
    found: dict[str, list[int]] = {}
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    sets = [one for one in datamodule.evaluation_sets() if one.kind == "safety"]
    for one, (kind, examples) in zip(sets, scored_examples(len(sets[0].data)).items(), strict=True):
        _, answers = score_set(trainer, pl_module, one)
        found |= by_group(kind, examples, [not answer["verdict"] for answer in answers])
    return found


def projection(energy: Energy, calibrated_on: str, samples: int, seed: int) -> NullSpaceProjection:
    """Null-space projection with a basis of ``samples`` inputs of one sort, and of the earlier tasks'."""
    nothing = calibrated_on == "nothing"
    form: dict[str, Any] = {} if energy == "default" else {"energy": energy, "form": "exact"}
    return NullSpaceProjection(
        safety_weight=0.0 if nothing else 1.0,
        safety_data=calibration_records("all" if nothing else calibrated_on, samples, seed),
        calibration=CalibrationSettings(safety_samples=samples),
        **form,
    )


def run_stream(stream: Stream, seed: int, folder: Path) -> dict[str, Any]:
    """The scores after the last task."""
    data = NanoDataModule(seed=seed, task_order=TASKS, harmful_ratio=stream.harmful)
    data.safety_sets = [*scored_sets(SCORED), *(one for one in data.safety_sets if one.kind != "safety")]
    last = LastScores()
    callbacks: list[L.Callback] = [last]
    if stream.calibrated_on is not None:
        callbacks.append(projection(stream.energy, stream.calibrated_on, stream.samples, seed))
    fit_stream(NanoModule(), data, seed, callbacks, folder)
    return last.scores


def attacked_module(attack: Attack) -> MLLMModule:
    """The embedded model with adapters, or with the parts that the attack tunes."""
    if attack.parts is None:
        return NanoModule(learning_rate=attack.learning_rate)
    model, processor = load_nano_model()
    return MLLMModule(
        model=model,
        processor=processor,
        optimizer=partial(torch.optim.AdamW, lr=attack.learning_rate, weight_decay=0.0),
        lr_scheduler=partial(schedule_of, num_training_steps=ATTACK_STEPS),
        trainable=attack.parts,
    )


def run_attack(attack: Attack, seed: int, folder: Path) -> dict[str, Any]:
    """The curve of an attack."""
    train: list[Record] = injected_records(ATTACK_STEPS * NANO_BATCH_SIZE, seed)
    task = Task("harm", train=train, calibration=train[:NANO_BATCH_SIZE], steps=ATTACK_STEPS)
    sets = scored_sets(SCORED // 2)
    data = CVITDataModule([task], sets, train_batch_size=NANO_BATCH_SIZE, eval_batch_size=256, seed=seed)
    curve = AttackCurve()
    callbacks: list[L.Callback] = [curve]
    if attack.energy is not None:
        callbacks.append(projection(attack.energy, "all", 128, seed))
    fit_stream(attacked_module(attack), data, seed, callbacks, folder)
    return {"curve": curve.curve}


def measured(path: Path) -> list[dict[str, Any]]:
    """The cells of the file; a torn last line is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def append(path: Path, cell: dict[str, Any]) -> None:
    """Write a cell behind the others, on a line of its own where a killed run has left a half one."""
    torn = path.is_file() and path.read_text()[-1:] not in ("", "\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(cell) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--conditions", nargs="+", help="of the groups; all when left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    cells = [
        (group, condition, seed)
        for seed in arguments.seeds
        for group in arguments.groups
        for condition in GROUPS[group]
        if arguments.conditions is None or condition in arguments.conditions
    ]
    commit = source_commit()  # of the code that is loaded, whatever is checked out later
    done = {(cell["group"], cell["condition"], cell["seed"]) for cell in measured(arguments.results)}
    for group, condition, seed in [] if arguments.table else [cell for cell in cells if cell not in done]:
        start, spec = time.perf_counter(), GROUPS[group][condition]
        L.seed_everything(seed, workers=True, verbose=False)
        with tempfile.TemporaryDirectory() as folder:
            run: Any = run_stream if isinstance(spec, Stream) else run_attack
            scores = run(spec, seed, Path(folder))
        cell = {"group": group, "condition": condition, "seed": seed, **scores}
        cell |= {"seconds": round(time.perf_counter() - start, 1), "commit": commit}
        append(arguments.results, cell)
        print({key: value for key, value in cell.items() if key not in ("groups", "curve")}, flush=True)
    print(tables(measured(arguments.results)))


if __name__ == "__main__":
    main()
