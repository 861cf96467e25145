"""PreferenceModule: direct preference optimisation and its relatives, with the base model as the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from hpa_lightning.data.bad_records import SKIP, STOP, naming_failure, problem_of
from hpa_lightning.data.batch_order import TaskLoader
from hpa_lightning.data.collator import MLLMCollator
from hpa_lightning.data.datamodule import CVITDataModule
from hpa_lightning.data.digests import records_digest
from hpa_lightning.data.pairs import PAIR_NUMBERS, NumberedRecords
from hpa_lightning.data.record import Record
from hpa_lightning.data.resuming import described
from hpa_lightning.data.template import tokenizer_of
from hpa_lightning.functional.preference_loss import (
    PreferenceLoss,
    answer_log_probabilities,
    check_preference_loss,
    preference_loss,
)
from hpa_lightning.modules.fsdp import is_sharded
from hpa_lightning.modules.load_pretrained import build_model
from hpa_lightning.modules.lora import adapters_are_empty, adapters_off, outside_adapters
from hpa_lightning.modules.mllm import MLLMModule, eval_mode
from hpa_lightning.modules.reference_logs import ReferenceLogs, complete, weights_digest

_STATE = "hpa_lightning_reference"


@dataclass(frozen=True)
class PreferenceSettings:
    """How pairs are learnt; the names are those of TRL's ``DPOConfig``.

    Args:
        loss: see :func:`~hpa_lightning.functional.preference_loss`: ``"sigmoid"`` (DPO), ``"ipo"``, ``"hinge"``,
            ``"robust"``, ``"apo_zero"``, ``"apo_down"``, ``"bco_pair"``, ``"nca_pair"``.
        beta: strength of the reference.
        label_smoothing: share of labels taken to be wrong; above 0 with ``"sigmoid"`` it is cDPO.
        sft_weight: weight of a second term, the chosen answer's cross-entropy per token, so that it becomes likelier
            and not only likelier than the rejected one (Pang et al., NeurIPS 2024, arXiv 2404.19733, eq. 1, which
            weighs the other term). Decision: each pair's mean over its tokens, as there; TRL's loss ``"sft"`` is one
            mean over the tokens of all pairs of a batch.
        learning_rate: of the tasks with pairs in a stream; that of the optimizer when ``None``.
        reference: name or folder of the reference model, which is held in memory beside the tuned one. ``None``: with
            adapters the model without them; without adapters what ``reference_cache`` holds, which is made from the
            model before its first step.
        reference_cache: folder for the reference's log-probabilities, one file for each task. They are computed once,
            before the first step, and no reference runs during training. A file of other data, another model or other
            settings is an error; a file that was not finished is gone on with.

    Raises:
        ValueError: an unknown loss, a beta, a smoothing, a weight or a learning rate that it cannot have.
    """

    loss: PreferenceLoss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    learning_rate: float | None = None
    reference: str | None = None
    reference_cache: str | None = None

    def __post_init__(self) -> None:
        check_preference_loss(self.loss, self.beta, self.label_smoothing)
        if not 0 <= self.sft_weight < float("inf"):
            raise ValueError(f"preference.sft_weight is {self.sft_weight}; expected a number of at least 0.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"preference.learning_rate is {self.learning_rate}; expected a number above 0, or None.")


class PreferenceModule(MLLMModule):
    """Tunes a model on preference pairs; batches without pairs are learnt as :class:`MLLMModule` learns them.

    Pairs come from a task with ``objective: preference`` of a stream, alone or among others, or from any loader whose
    batches :meth:`MLLMCollator.pairs` makes. The loss of an optimizer step is the mean over its pairs, those of all
    accumulated batches and ranks together.

    The reference is the model without its adapters: no second model is held. Behind :class:`SequentialTuning`, which
    merges the adapters of each task, that is the model at the task's start. It runs in eval mode and without gradients;
    dropout acts on the tuned model as it is set (TRL turns it off).

    Logged, as means over the ranks, by TRL's names: ``rewards/chosen``, ``rewards/rejected``, ``rewards/accuracies``,
    ``rewards/margins``, ``logps/chosen``, ``logps/rejected``.

    Source: Rafailov et al., "Direct Preference Optimization" (NeurIPS 2023, arXiv 2305.18290).

    Args:
        preference: loss and reference.
        **settings: of :class:`MLLMModule`.

    Raises:
        ValueError: as :class:`MLLMModule`.
        MisconfigurationException: when pairs are trained on: there is no reference, since weights outside the adapters
            are tuned too and neither ``reference`` nor ``reference_cache`` is set.
    """

    trains_on_pairs = True

    def __init__(self, preference: PreferenceSettings | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if isinstance(preference, Mapping):  # as it is in a checkpoint's hyperparameters
            preference = PreferenceSettings(**preference)
        self.preference = preference or PreferenceSettings()
        self._reference_model: list[nn.Module] = []  # a list: it is no part of this module and of its checkpoints
        self._logs: ReferenceLogs | None = None
        self._logs_of: Any = None  # the loader's data that `_logs` are of
        self._reference_state: dict[str, str] = {}  # the task that `_logs` are of, the digest of its reference
        self._has_reference = False

    def resume_settings(self) -> dict[str, Any]:
        """As :class:`MLLMModule`'s, with loss and reference."""
        return {**super().resume_settings(), "preference": described(replace(self.preference, reference_cache=None))}

    def setup(self, stage: str) -> None:
        """Forget the reference of an earlier fit; what a checkpoint tells of one is loaded after this."""
        if stage == "fit":
            self._logs = self._logs_of = None
            self._reference_state, self._has_reference = {}, False

    def on_fit_start(self) -> None:
        super().on_fit_start()
        tasks = getattr(getattr(self.trainer, "datamodule", None), "tasks", ())
        if any(getattr(task, "objective", "answer") == "preference" for task in tasks):
            self._check_reference()

    # -- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean preference loss of a batch of pairs; of any other batch what ``MLLMModule`` returns."""
        if PAIR_NUMBERS not in batch:
            return super().training_step(batch, batch_idx)
        numbers = batch[PAIR_NUMBERS]
        self._check_reference()
        logs = self._reference_logs()
        with naming_failure(self._names_of(batch_idx)):
            reference = self._reference_log_probabilities(batch) if logs is None else logs.of(numbers)
            total, tokens = self._log_probabilities(self.model, batch)
        self.count_pairs(len(numbers))
        settings = self.preference
        chosen, rejected = (total - reference).chunk(2)
        losses = preference_loss(
            chosen, rejected, settings.loss, settings.beta, settings.label_smoothing, *tokens.chunk(2)
        )
        if settings.sft_weight:
            losses = losses - settings.sft_weight * total.chunk(2)[0] / tokens.chunk(2)[0].clamp(min=1)
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(numbers))
        self._log_rewards(chosen.detach(), rejected.detach(), total.detach())
        return loss

    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimizer, with the pairs' own learning rate where the running task has pairs."""
        optimizer = super().build_optimizer(parameters)
        rate, stream = self.preference.learning_rate, getattr(self._trainer, "datamodule", None)
        if rate is not None and isinstance(stream, CVITDataModule):
            span = stream.task_at_epoch(min(self.trainer.current_epoch, stream.total_epochs - 1))
            if span.task.objective == "preference":
                for group in optimizer.param_groups:
                    group["lr"] = rate
        return optimizer

    def _log_rewards(self, chosen: Tensor, rejected: Tensor, total: Tensor) -> None:
        beta = self.preference.beta
        figures = {
            "rewards/chosen": beta * chosen,
            "rewards/rejected": beta * rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": beta * (chosen - rejected),
            "logps/chosen": total.chunk(2)[0],
            "logps/rejected": total.chunk(2)[1],
        }
        means = torch.stack([values.mean() for values in figures.values()])
        if self._trainer is not None and self.trainer.world_size > 1:
            means = self.trainer.strategy.reduce(means, reduce_op="mean")
        self.log_dict(dict(zip(figures, means, strict=True)), batch_size=len(chosen))

    def _log_probabilities(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sums over the answers' tokens, ``(2 * pairs,)``, and the numbers of these tokens."""
        inputs = {key: value for key, value in batch.items() if key not in ("labels", PAIR_NUMBERS)}
        return answer_log_probabilities(model(**self._cast(inputs), use_cache=False).logits, batch["labels"])

    # -- the reference -----------------------------------------------------------------------------------------------

    def _check_reference(self) -> None:
        """Check, once in a fit, that there is a reference."""
        settings = self.preference
        if self._has_reference or settings.reference is not None or settings.reference_cache is not None:
            return
        tuned = [name for name, parameter in outside_adapters(self.model) if parameter.requires_grad]
        if tuned:
            raise MisconfigurationException(
                f"{len(tuned)} parameters outside the adapters are tuned, {tuned[0]!r} for one, so that the model "
                "without adapters is not the reference. Set preference.reference_cache (a folder: the reference's "
                "log-probabilities are computed before the first step), or preference.reference (a model's name or "
                "folder), or tune with `lora` alone."
            )
        self._has_reference = True

    def _reference_log_probabilities(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The answers' log-probabilities under the reference, ``(2 * pairs,)`` fp32, without gradients."""
        model = self._reference_in_memory()
        without = adapters_off(model) if model is self.model else nullcontext()
        with torch.no_grad(), eval_mode(model), without:
            return self._log_probabilities(model, batch)[0]

    def _reference_in_memory(self) -> nn.Module:
        """The model named by ``preference.reference``, on this module's device; the tuned one where there is none."""
        if self.preference.reference is None:
            return self.model
        if not self._reference_model:
            dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
            loaded = build_model(self.preference.reference, None, str(dtype).removeprefix("torch."), None)
            self._reference_model.append(loaded.requires_grad_(False).eval())
        return self._reference_model[0].to(self.device)

    def _reference_logs(self) -> ReferenceLogs | None:
        """The stored figures of the running task's pairs, made when its first batch comes; ``None`` without a cache."""
        loader = getattr(self._trainer, "train_dataloader", None)
        records = getattr(loader, "dataset", None)
        if self._logs_of is not None and records is not None and self._logs_of is records:
            return self._logs
        task = loader.task if isinstance(loader, TaskLoader) else "pairs"
        if self._logs is not None and self._reference_state.get("task") == task:
            return self._logs  # the next epoch of the same task
        self._logs_of, self._logs = records, None
        resumed = self._reference_state.get("task") == task
        if not resumed and self.lora is not None and not adapters_are_empty(self.model):
            rank_zero_warn(
                f"{task}: the adapters are not empty at the start of the preference tuning; the reference is the model "
                "without them. Merge them before (SequentialTuning does at each task's start) if they belong to it."
            )
        if self.preference.reference_cache is not None:
            self._logs = self._make_logs(loader, records, task, resumed)
        else:
            self._reference_state = {"task": task}
        return self._logs

    def _make_logs(self, loader: Any, records: Any, task: str, resumed: bool) -> ReferenceLogs:
        if not isinstance(records, NumberedRecords):
            raise MisconfigurationException(
                "reference_cache needs numbered pairs, and the loader's data are of "
                f"{type(records).__name__}; expected a stream's preference task, or NumberedRecords(records)."
            )
        moves = self.preference.reference is None and any(p.requires_grad for _, p in outside_adapters(self.model))
        known = self._reference_state.get("model") if resumed and moves else None
        about = self._about(records, known or weights_digest(self._reference_in_memory()))
        folder, trainer = Path(str(self.preference.reference_cache)), self.trainer
        writes = trainer.is_global_zero
        error, logs = None, None
        try:
            logs = ReferenceLogs(folder / f"{task}.jsonl", about, len(records), writes)
        except (ValueError, OSError) as refused:
            error = str(refused)
        if (error := trainer.strategy.broadcast(error)) is not None or logs is None:
            raise MisconfigurationException(error or "another process could not open the reference log-probabilities.")
        if known is not None and not trainer.strategy.broadcast(not logs.missing):
            raise MisconfigurationException(
                f"{logs.path} lacks {len(logs.missing)} of {len(records)} pairs, and the weights that it was made with "
                "have been tuned since; bring the whole file, or start the task again."
            )
        skips = getattr(getattr(trainer, "datamodule", None), "bad_records", STOP) == SKIP
        if skips and is_sharded(self.model):
            raise MisconfigurationException(
                "reference_cache with bad_records='skip' under FSDP2: the processes would run the model different "
                "numbers of times. Use bad_records='stop', or leave reference_cache out."
            )
        collator = self._collator()

        def compute(numbers: list[int]) -> list[tuple[int, float, float]]:
            found = [records[number] for number in numbers]
            # What cannot be collated is not trained on either, and stays unknown.
            found = [record for record in found if not skips or problem_of(collator.pairs, record) is None]
            return self._compute(collator.pairs(found)) if found else []

        complete(logs, compute, getattr(loader, "batch_size", None) or 1, trainer)
        self._reference_state = {"task": task, "model": about["model"]}
        rank_zero_info(f"{task}: the reference's log-probabilities of {len(records)} pairs are in {logs.path}.")
        return logs

    def _compute(self, batch: Mapping[str, Tensor]) -> list[tuple[int, float, float]]:
        """Number, and the reference's log-probabilities of both answers, of every pair of a batch."""
        batch = {key: value.to(self.device) for key, value in batch.items()}
        numbers, found = batch[PAIR_NUMBERS].tolist(), self._reference_log_probabilities(batch).tolist()
        return list(zip(numbers, found[: len(numbers)], found[len(numbers) :], strict=True))

    def _collator(self) -> MLLMCollator:
        collator = getattr(getattr(self.trainer, "datamodule", None), "collator", None)
        return collator if isinstance(collator, MLLMCollator) else MLLMCollator(self.processor)

    def _about(self, records: Sequence[Record], model: str) -> dict[str, Any]:
        """What stored figures are of: data, reference, and what decides tokens and arithmetic."""
        return {
            "data": records_digest(records),
            "model": model,
            "settings": {
                "chat_template": self._collator().template.described,
                "tokens": len(tokenizer_of(self.processor)),
                "precision": str(self.trainer.precision),
                "dtype": str(next(p.dtype for p in self.model.parameters() if p.is_floating_point())),
            },
        }

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which task's reference is in use, for a resume within it."""
        super().on_save_checkpoint(checkpoint)
        if self._reference_state:
            checkpoint[_STATE] = dict(self._reference_state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the task whose reference was in use."""
        super().on_load_checkpoint(checkpoint)
        self._reference_state = dict(checkpoint.get(_STATE, {}))
