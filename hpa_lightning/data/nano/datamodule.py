"""The embedded benchmark as a stream: six tasks, three safety sets, one over-refusal set."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from hpa_lightning.data.evaluations import Evaluation
from hpa_lightning.data.nano.lexicon import TASK_NAMES
from hpa_lightning.data.nano.loading import load_nano_processor
from hpa_lightning.data.nano.records import (
    injected_records,
    over_refusal_records,
    safety_records,
    safety_replay_records,
    task_records,
)
from hpa_lightning.data.nano.safety import SAFETY_KINDS
from hpa_lightning.data.stream import CVITDataModule
from hpa_lightning.data.tasks import EvaluationSet, HarmfulInjection, Replay, SafetyReplay, Task

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
    ) -> None:
        sizes = {
            "train_size": train_size,
            "calibration_size": calibration_size,
            "test_size": test_size,
            "harmful_calibration_size": harmful_calibration_size,
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
            task_order=task_order,
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
