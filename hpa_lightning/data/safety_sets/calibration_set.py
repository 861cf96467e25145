"""The safety calibration set: harmful inputs, refused by the aligned model itself.

The alignment data are not available after alignment; what the aligned model answers to harmful inputs tells the same
(HPA, arXiv 2511.20158, uses 8 such samples).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from hpa_lightning.data.images import to_rgb
from hpa_lightning.data.protocols import Collator
from hpa_lightning.data.record import Record, assistant_turn
from hpa_lightning.metrics.safety import judged
from hpa_lightning.metrics.scoring import is_blank


@dataclass(frozen=True)
class SafetyCalibration:
    """Harmful inputs that the aligned model refused, answered with its refusals.

    Args:
        records: training records, each ending with the model's own refusal.
        asked: how many harmful inputs were put to the model.
        refused: how many of them it refused.
    """

    records: tuple[Record, ...]
    asked: int
    refused: int

    def state_dict(self) -> dict[str, Any]:
        """Return primitives and tensors only, which a checkpoint loads with ``weights_only=True``."""
        rows = [
            {
                "id": record.id,
                "messages": [dict(message) for message in record.messages],
                "images": [_to_primitive(image) for image in record.images],
                "source": record.source,
            }
            for record in self.records
        ]
        return {"records": rows, "asked": self.asked, "refused": self.refused}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> SafetyCalibration:
        """Restore what :meth:`state_dict` returned."""
        records = tuple(
            Record(
                row["id"],
                tuple(row["messages"]),
                tuple(image.numpy() if isinstance(image, torch.Tensor) else image for image in row["images"]),
                source=row["source"],
            )
            for row in state["records"]
        )
        return cls(records, state["asked"], state["refused"])


def build_safety_calibration(
    generate: Callable[[dict[str, Any]], Sequence[str]],
    collator: Collator,
    harmful_records: Sequence[Record],
    judge: Callable[[list[str]], Sequence[bool]],
    size: int = 8,
    batch_size: int = 8,
    on_shortage: Literal["error", "warn"] = "error",
) -> SafetyCalibration:
    """Let the aligned model answer harmful inputs and keep those that it refuses, until there are ``size``.

    Args:
        generate: a ``generate`` batch of the collator -> answers.
        collator: makes the batches.
        harmful_records: harmful inputs; a final assistant turn is ignored.
        judge: answers -> True for each refusal.
        size: how many refusals are wanted (paper: 8).
        batch_size: inputs in one call of ``generate``.
        on_shortage: what to do if fewer than ``size`` are refused. With ``"warn"`` the set is smaller; without a
            single refusal it is an error in any case.

    Raises:
        ValueError: too few refusals: how many of how many.

    Returns:
        The refused inputs in the order of ``harmful_records``, at most ``size``.
    """
    if size < 1 or batch_size < 1:
        raise ValueError(f"size and batch_size are {size} and {batch_size}; expected at least 1.")
    if on_shortage not in ("error", "warn"):
        raise ValueError(f"on_shortage is {on_shortage!r}; expected 'error' or 'warn'.")
    kept: list[Record] = []
    asked = refused = 0
    for start in range(0, len(harmful_records), batch_size):
        chunk = list(harmful_records[start : start + batch_size])
        answers = list(generate(collator.generate(chunk)))
        if len(answers) != len(chunk):
            raise ValueError(f"{len(chunk)} harmful inputs got {len(answers)} answers; expected one for each.")
        verdicts = judged(answers, judge, [record.prompt for record in chunk])
        asked += len(chunk)
        for record, answer, is_refusal in zip(chunk, answers, verdicts, strict=True):
            if is_refusal and not is_blank(answer):  # judges take silence for a refusal
                refused += 1
                prompt = record.prompt_and_references()[0]
                messages = (*prompt, *assistant_turn(answer.strip()))
                kept.append(Record(record.id, messages, record.images, source=record.source))
        if len(kept) >= size:
            break
    if len(kept) < size:
        message = (
            f"the aligned model refused {refused} of {asked} harmful inputs; the safety calibration set needs {size}. "
            "Give more harmful inputs, lower the size, check that the model is the aligned one and that the judge "
            "knows its way of refusing."
        )
        if on_shortage == "error" or not kept:
            raise ValueError(message)
        rank_zero_warn(message)
    return SafetyCalibration(tuple(kept[:size]), asked, refused)


def given_safety_calibration(
    records: Sequence[Record], judge: Callable[[list[str]], Sequence[bool]], size: int = 8
) -> SafetyCalibration:
    """Take refusals that one already has instead of the model's own.

    Args:
        records: harmful inputs with their refusals: each ends with an assistant turn, or has a reference answer.
        judge: answers -> True for each refusal; answers that it does not know as refusals are used too, with a warning.
        size: the first so many are used, or all if there are fewer.

    Raises:
        ValueError: no records, or a record without an answer.
    """
    if not records:
        raise ValueError("the safety calibration got no records; expected harmful inputs with their refusals.")
    kept, answers = [], []
    for record in records[:size]:
        prompt, references = record.prompt_and_references()
        if not references or is_blank(references[0]):
            raise ValueError(
                f"{record.where}: the harmful input has no answer; expected its refusal as the last turn or as the "
                "reference answer. (A datamodule's harmful_calibration the model can answer itself: "
                "harmful_calibration_answers='model'.)"
            )
        answers.append(references[0].strip())
        messages = (*prompt, *assistant_turn(answers[-1]))
        kept.append(Record(record.id, messages, record.images, source=record.source))
    verdicts = judged(answers, judge, [record.prompt for record in kept])
    if not all(verdicts):
        first = verdicts.index(False)
        rank_zero_warn(
            f"{len(verdicts) - sum(verdicts)} of {len(kept)} given refusals are none by the judge, the first in "
            f"{kept[first].where}: {answers[first][:80]!r}. They are used as they are."
        )
    return SafetyCalibration(tuple(kept), len(kept), sum(verdicts))


def _to_primitive(image: Any) -> str | torch.Tensor:
    if isinstance(image, str | Path):
        return str(image)
    array = np.asarray(to_rgb(image) if isinstance(image, Image.Image) else image)
    return torch.from_numpy(array.copy())
