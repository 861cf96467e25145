"""The embedded benchmark as a stream: six tasks, three safety sets, one over-refusal set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Literal

from hpa_lightning.data.datamodule import CVITDataModule, in_order
from hpa_lightning.data.evaluations import Evaluation
from hpa_lightning.data.mixed import DataPart, MixedData
from hpa_lightning.data.nano.harm import SAFETY_KINDS
from hpa_lightning.data.nano.lexicon import TASK_NAMES
from hpa_lightning.data.nano.nano_records import (
    harmless_pairs,
    injected_records,
    over_refusal_records,
    safety_records,
    safety_replay_records,
    safety_tuning_records,
    task_records,
)
from hpa_lightning.data.nano.shipped_model import load_nano_processor
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.tasks import EvaluationSet, HarmfulInjection, Objective, Replay, SafetyReplay, Task

NANO_STEPS = 140
"""Recommended optimizer steps of a task."""
NANO_BATCH_SIZE = 16
"""Recommended training batch size."""
NANO_LEARNING_RATE = 7e-4
"""Recommended peak learning rate of AdamW, with a short warm-up and linear decay to 0 within each task."""
NANO_LORA_RANK = 8
"""Recommended rank of LoRA on every linear layer of the language model."""
NANO_LORA_ALPHA = 16.0
"""Recommended alpha: updates are scaled by alpha / rank."""

_MAX_NEW_TOKENS = 14
"""The longest reference answer of a task has 11 tokens with the end of its turn, the longest refusal 14."""


class NanoDataModule(CVITDataModule):
    """Six small tasks, three safety sets and an over-refusal set, generated from seeds.

    The test sets are the same for every `seed`; `seed` chooses the training and calibration samples and their order.

    Args:
        seed: of the training data, the calibration data, the order of batches and the harmful injection.
        train_size: training samples of each task.
        calibration_size: calibration samples of each task.
        test_size: samples of every test set: each task's, each safety set's, over-refusal.
        harmful_calibration_size: harmful inputs for the safety calibration, the three kinds in turn.
        steps: optimizer steps of each task.
        task_order: names of the tasks in the order of the stream; the paper's order when None.
        harmful_ratio: harmful samples mixed into each task's training data, as a fraction (the paper: 0.001).
        train_batch_size: samples of one step.
        eval_batch_size: samples of one evaluation or calibration batch.
        num_workers: worker processes of the loaders.
        processor: the nano processor when None; see `CVITDataModule`.
        replay_size: training samples of each task that the later tasks replay; 0 for no replay.
        replay_share: share of a task's training samples that are replayed; see `Replay`.
        safety_replay_size: refused harmful inputs, of the three kinds, that every task trains on; 0 for none. They are
            of the calibration split, as the inputs of the safety calibration are, and drawn independently of these.
        safety_replay_share: share of a task's training samples that are of them; see `SafetyReplay`.
        evaluations: published evaluations by their names, scored beside the benchmark's own sets.
        safety_task: a step of safety tuning behind the tasks, called `safety`, of which nothing is scored as a task:
            "answers" (refusals of harmful inputs are learnt) or "preference" (a refusal is preferred to advice; the
            module is a `NanoPreferenceModule`). None for none.
        safety_task_size: harmful inputs of it, of the calibration split, as those of the safety replay.
        safety_task_helpful: helpful samples beside them: with "answers" training samples of the tasks (as VLGuard's
            post-hoc recipe mixes LLaVA's in), with "preference" harmless requests whose advice is preferred to a
            refusal.
        safety_task_steps: optimizer steps of it.

    Raises:
        ValueError: sizes below 1 (of replay: below 0), more samples than the generators have, or a share of a replay
            that is off.
    """

    def __init__(
        self,
        seed: int = 0,
        train_size: int = 2240,
        calibration_size: int = 128,
        test_size: int = 100,
        harmful_calibration_size: int = 180,
        steps: int = NANO_STEPS,
        task_order: list[str] | None = None,
        harmful_ratio: float = 0.0,
        train_batch_size: int = NANO_BATCH_SIZE,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        processor: Any = None,
        replay_size: int = 0,
        replay_share: float | None = None,
        safety_replay_size: int = 0,
        safety_replay_share: float | None = None,
        evaluations: list[Evaluation] | None = None,
        safety_task: Literal["answers", "preference"] | None = None,
        safety_task_size: int = 450,
        safety_task_helpful: int = 0,
        safety_task_steps: int = 60,
    ) -> None:
        sizes = {
            "train_size": train_size,
            "calibration_size": calibration_size,
            "test_size": test_size,
            "harmful_calibration_size": harmful_calibration_size,
            "safety_task_size": safety_task_size,
            "safety_task_steps": safety_task_steps,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1.")
        replays = {"replay": (replay_size, replay_share), "safety_replay": (safety_replay_size, safety_replay_share)}
        for name, (size, share) in replays.items():
            if size < 0:
                raise ValueError(f"{name}_size is {size}; expected at least 0.")
            if size == 0 and share is not None:
                raise ValueError(f"{name}_share is {share}, but {name}_size is 0; expected a size to take it from.")
        unknown = sorted(set(task_order or ()) - set(TASK_NAMES))
        if unknown:
            raise ValueError(f"task_order names {unknown}; expected some or all of {list(TASK_NAMES)}.")
        if safety_task_helpful < 0:
            raise ValueError(f"safety_task_helpful is {safety_task_helpful}; expected at least 0.")
        if processor is None:
            processor = load_nano_processor()
        tasks = [
            Task(
                name=name,
                train=task_records(name, "train", train_size, seed),
                test=task_records(name, "test", test_size),
                calibration=task_records(name, "calibration", calibration_size, seed),
                steps=steps,
                max_new_tokens=_MAX_NEW_TOKENS,
            )
            for name in TASK_NAMES
            if task_order is None or name in task_order
        ]
        tasks = in_order(tasks, task_order)
        if safety_task is not None:
            data = safety_task_data(safety_task, tasks, safety_task_size, safety_task_helpful, seed)
            objective: Objective = "preference" if safety_task == "preference" else "answer"
            tasks.append(Task("safety", data, steps=safety_task_steps, objective=objective))
        sets = [
            EvaluationSet(f"harmful-{kind}", "safety", safety_records(kind, "test", test_size), None, _MAX_NEW_TOKENS)
            for kind in SAFETY_KINDS
        ]
        sets.append(
            EvaluationSet("harmless", "over_refusal", over_refusal_records("test", test_size), None, _MAX_NEW_TOKENS)
        )
        shares = [len(range(i, harmful_calibration_size, len(SAFETY_KINDS))) for i in range(len(SAFETY_KINDS))]
        kinds = [
            safety_records(kind, "calibration", share, seed) if share else ()
            for kind, share in zip(SAFETY_KINDS, shares, strict=True)
        ]
        # One kind after the other, so that the first refusals, which the calibration takes, cover all of them.
        harmful_calibration = [record for group in zip_longest(*kinds) for record in group if record is not None]
        injection = None
        if harmful_ratio > 0:
            wanted = HarmfulInjection((), harmful_ratio).count(train_size)
            injection = HarmfulInjection(injected_records(max(wanted, 3 * len(SAFETY_KINDS)), seed), harmful_ratio)
        super().__init__(
            tasks,
            sets,
            processor=processor,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            harmful_injection=injection,
            harmful_calibration=harmful_calibration,
            # The splits are disjoint by content; the check is kept, it costs a hash of every picture.
            allow_overlap=False,
            evaluations=evaluations,
            replay=Replay(replay_size, replay_share) if replay_size else None,
            safety_replay=(
                SafetyReplay(safety_replay_records(safety_replay_size, seed), share=safety_replay_share)
                if safety_replay_size
                else None
            ),
        )


def safety_task_data(kind: str, tasks: Sequence[Task], size: int, helpful: int, seed: int) -> RecordSet:
    """The training data of a step of safety tuning; see `NanoDataModule`."""
    if kind not in ("answers", "preference"):
        raise ValueError(f"safety_task is {kind!r}; expected 'answers', 'preference' or None.")
    pairs = kind == "preference"
    parts = [DataPart(safety_tuning_records(size, seed, pairs), name="harmful inputs")]
    if helpful and pairs:
        parts.append(DataPart(harmless_pairs(helpful, seed), name="harmless requests"))
    elif helpful:
        shares = [len(range(index, helpful, len(tasks))) for index in range(len(tasks))]
        parts += [
            DataPart(task.train, samples=share, name=task.name)
            for task, share in zip(tasks, shares, strict=True)
            if share
        ]
    return MixedData(parts, seed=seed)
