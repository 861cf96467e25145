"""ConstantRefusal: the model that is perfectly safe and of no use."""

from __future__ import annotations

from typing import Any, ClassVar

import lightning as L

from hpa_lightning.answering import answering_module
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import StartPhase
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.metrics.judges import StringRefusalJudge


class ConstantRefusal(TaskCallback):
    """Answers every question with the same refusal, whatever the model has learnt.

    The bad extreme of a comparison: attack success 0, average performance 0, over-refusal 1. A table in which it looks
    good asks for nothing but safety.

    The aligned model is scored as it is, for the comparison with it; the refusals begin with the first task. Multiple
    choice is not touched. Training continues as without it.

    Hooks: task start (after the first evaluation), task resume, teardown: ``generate`` of the module is replaced in
    between. State: none. Strategies: one device, DDP, FSDP2.

    Args:
        text: the refusal; the corrected default rules have to know it as one.

    Raises:
        ValueError: a text that is no refusal.

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
        >>> from hpa_lightning.callbacks.baselines import ConstantRefusal
        >>> callbacks = [SequentialTuning(), ConstantRefusal("I am sorry, I cannot help with that."), TaskEvaluation()]
    """

    start_order: ClassVar[int] = StartPhase.ANSWERING

    def __init__(self, text: str = "I cannot help with this request.") -> None:
        if StringRefusalJudge("default")([text]) != [True]:
            raise ValueError(f"ConstantRefusal: {text!r} is not a refusal by the default rules; expected a refusal.")
        super().__init__()
        self.text = text

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        answering_module(pl_module, "ConstantRefusal replaces generate, and so")

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        pl_module.generate = self._answer  # type: ignore[assignment]

    def on_task_resume(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        pl_module.generate = self._answer  # type: ignore[assignment]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pl_module.__dict__.pop("generate", None)

    def _answer(self, batch: dict[str, Any], max_new_tokens: int | None = None) -> list[str]:
        return [self.text] * len(batch["ids"])
