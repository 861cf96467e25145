"""MLLMModule: a Hugging Face image-text-to-text or causal language model as a LightningModule."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from hpa_lightning.data.bad_records import naming_failure
from hpa_lightning.data.batch_order import TaskLoader
from hpa_lightning.data.collator import MLLMCollator
from hpa_lightning.data.needs import evaluation_data, predicted_sets, validation_data
from hpa_lightning.data.protocols import Collator, EvaluationData, OpeningCollator
from hpa_lightning.data.record import Record, assistant_turn
from hpa_lightning.data.resuming import described, differences, refuse_changes
from hpa_lightning.data.tasks import EvaluationSet
from hpa_lightning.data.template import ChatTemplate, tokenizer_of
from hpa_lightning.decoding import (
    Answers,
    check_generation,
    decoded,
    decoding_of,
    ended,
    own_decoding,
    resolve,
    set_aside,
)
from hpa_lightning.evaluation import ScoredSet, SetScoring, means
from hpa_lightning.metrics.judges.judged_text import given_answer, opened_thoughts
from hpa_lightning.modules.assembly import ModelParts, load_weights_
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.emulated_bfloat16 import advice
from hpa_lightning.modules.fsdp import is_sharded, shard_model_, unshard_root_
from hpa_lightning.modules.likelihood import answer_log_likelihoods
from hpa_lightning.modules.load_pretrained import build_model, load_processor, select_trainable
from hpa_lightning.modules.lora import LoraSettings, add_lora
from hpa_lightning.modules.mixed_answers import mixed_answers
from hpa_lightning.modules.opening_likelihoods import opening_log_likelihoods
from hpa_lightning.modules.osf import OSFSettings, add_osf
from hpa_lightning.modules.save_pretrained import export_model
from hpa_lightning.modules.schedules import TaskSchedule, build_scheduler
from hpa_lightning.modules.task_state import TASK_STATE, state_of_trainer, unfinished_weights
from hpa_lightning.modules.timm_mllm import TimmMLLM
from hpa_lightning.modules.token_weights import TokenWeightedModule
from hpa_lightning.modules.trainable import TrainableParts, describe_trainable
from hpa_lightning.trainer_attributes import datamodule_of, loaded_by_finder

MODULE_SETTINGS = "hpa_lightning_module"
"""The key of a checkpoint that holds :meth:`MLLMModule.resume_settings`."""
_LONGEST_ANSWER = 64  # tokens, where nobody names a limit


class MLLMModule(TokenWeightedModule):
    """Tunes a multimodal language model on the answers of its training records.

    The loss of an optimizer step is the mean over its answer tokens, those of all accumulated batches and ranks
    together; see :class:`TokenWeightedModule`.

    Args:
        model: hub name or folder of an image-text-to-text model, or of a causal language model that reads text alone;
            or the model itself (see :meth:`from_objects`). docs/architectures.md says which are supported.
        config: instead of ``model``, for random weights: a configuration as a dict with ``model_type``, or the name or
            folder of one.
        parts: instead of ``model``: a vision tower and a causal language model to put together; the processor comes
            with them.
        start_from: a Lightning checkpoint, or a run's folder (its newest whole one), with whose weights the model
            starts; ``model``, ``config`` or ``parts`` are those of that run.
        processor: name or folder of the processor, or the processor itself; ``model``'s when ``None``. That of a model
            that reads text alone is its tokenizer.
        optimizer: parameters -> optimizer. Called again whenever Lightning configures optimizers, so that every task of
            a stream gets a fresh one.
        lr_scheduler: a :class:`TaskSchedule`, which follows the tasks' lengths (``{name: cosine, warmup_ratio: 0.03}``
            in YAML); or optimizer -> scheduler; or a function of the optimizer and ``num_training_steps``, which gets
            the task's length. Called again for every task, as ``optimizer`` is.
        lr_scheduler_interval: ``"step"`` or ``"epoch"``; the length is counted in it.
        lora: adapters on the language model, mixtures of experts with ``experts`` above 1; everything else is frozen.
            ``None`` tunes the weights themselves.
        freeze_vision: without LoRA, keep the vision tower fixed (with LoRA it is fixed unless in ``train_modules``).
        train_modules: dotted names of submodules to tune in full: beside the adapters with LoRA, and nothing else
            without it. ``None``: nothing beside the adapters; everything without LoRA.
        trainable: the same by parts (projector, language model, some of its blocks, ...), instead of ``freeze_vision``
            and ``train_modules``; what trains, and how many parameters, is reported at the fit's start.
        dtype: of the loaded weights (``"float32"``, ``"bfloat16"``, ``"auto"``).
        attn_implementation: ``"sdpa"``, ``"flash_attention_2"``, ``"eager"``; the model's default when ``None``.
        gradient_checkpointing: recompute activations in backward.
        generation: arguments of ``model.generate``, those of transformers' ``GenerationConfig``, ``stop_strings`` too;
            greedy decoding by default. The model's own ``generation_config.json`` does not count, but for token ids.
            Its ``max_new_tokens`` holds for all sets that name none.
        osf: instead of ``lora``, tune the lesser singular directions of the language model's layers (peft's OSF).

    Raises:
        ValueError: not exactly one of ``model``, ``config`` and ``parts``, an architecture that is refused, no
            processor, unknown ``train_modules``, ``osf`` beside ``lora``, or weights in ``start_from`` that do not fit.
    """

    def __init__(
        self,
        model: Any = None,
        config: str | dict[str, Any] | None = None,
        processor: Any = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0),
        lr_scheduler: TaskSchedule | LRSchedulerCallable | None = None,
        lr_scheduler_interval: str = "step",
        lora: LoraSettings | None = None,
        freeze_vision: bool = True,
        train_modules: list[str] | None = None,
        dtype: str = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        generation: dict[str, Any] | None = None,
        parts: ModelParts | None = None,
        trainable: TrainableParts | None = None,
        start_from: str | Path | None = None,
        osf: OSFSettings | None = None,
    ) -> None:
        super().__init__()
        if lr_scheduler_interval not in ("step", "epoch"):
            raise ValueError(f"lr_scheduler_interval is {lr_scheduler_interval!r}; expected 'step' or 'epoch'.")
        if isinstance(lora, Mapping):  # as it is in a checkpoint's hyperparameters
            lora = LoraSettings(**lora)
        osf = OSFSettings(**osf) if isinstance(osf, Mapping) else osf
        if lora is not None and osf is not None:
            raise ValueError("osf is given together with lora; expected one of them (`lora: null` takes it away).")
        if isinstance(lr_scheduler, Mapping):
            lr_scheduler = TaskSchedule.from_dict(lr_scheduler)
        parts = ModelParts(**parts) if isinstance(parts, Mapping) else parts
        trainable = TrainableParts(**trainable) if isinstance(trainable, Mapping) else trainable
        # A checkpoint of this module holds its weights itself.
        in_memory = ["model", "processor"] if isinstance(model, nn.Module) else []
        self.save_hyperparameters(ignore=["start_from", *in_memory])
        for hyperparameters in (self._hparams, self._hparams_initial):
            _keep_primitives(hyperparameters)
        if parts is not None:
            if any(item is not None for item in (model, config, processor)):
                raise ValueError(
                    "parts is given together with model, config or processor; expected parts alone, which builds them."
                )
            self.model, self.processor = parts.build(dtype, attn_implementation)
        else:
            self.model = build_model(model, config, dtype, attn_implementation)
            self.processor = load_processor(processor, model, config)
        if start_from is not None:
            load_weights_(self.model, start_from)
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self._loss_alone = {"loss_alone": True} if isinstance(self.model, TimmMLLM) else {}
        self.lora = lora
        self.generation = check_generation(generation or {})
        if gradient_checkpointing:
            named = "activation_checkpointing_enable"  # Transformers 5's later name for it
            enable = getattr(self.model, named, None) or self.model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        if lora is not None:
            add_lora(self.model, lora)
        if osf is not None:
            add_osf(self.model, osf)
        self.osf = osf
        adapted = lora is not None or osf is not None
        self._fixed = select_trainable(self.model, adapted, freeze_vision, train_modules, trainable)
        self._as_made = _dtype_and_trained(self.model)  # callbacks freeze parameters, strategies cast them
        self._reports_parts = trainable is not None
        self._in_training = False
        self._stop_token_ids: list[int] | None = None
        self._warned_defaults = False
        self._warned_thoughts = False
        self._scoring: list[SetScoring] = []  # of the running loop's sets
        self.scored: list[ScoredSet] = []  # by the last validation or test
        self._kept_state: dict[str, Any] | None = None  # of the weights: a checkpoint's, or that of a fit that is over
        self.train()  # `from_pretrained` hands models over in eval mode, and Lightning leaves modes as they are

    @classmethod
    def from_objects(cls, model: nn.Module, processor: Any, **settings: Any) -> MLLMModule:
        """Wrap a model and a processor that are in memory; ``settings`` as in the constructor."""
        return cls(model=model, processor=processor, **settings)

    @classmethod
    def from_timm(
        cls,
        vision_tower: str,
        language_model: Any,
        tokenizer: Any = None,
        pretrained_vision: bool = True,
        vision_arguments: dict[str, Any] | None = None,
        image_size: int | None = None,
        chat_template: str | None = None,
        **settings: Any,
    ) -> MLLMModule:
        """Build a model from a timm vision tower and a causal language model; see :func:`build_timm_mllm`."""
        from hpa_lightning.modules.timm_mllm import build_timm_mllm

        model, processor = build_timm_mllm(
            vision_tower,
            language_model,
            tokenizer,
            pretrained_vision,
            vision_arguments,
            image_size,
            chat_template=chat_template,
        )
        return cls.from_objects(model, processor, **settings)

    def train(self, mode: bool = True) -> MLLMModule:
        """Set the mode; frozen parts stay in eval mode, so that their batch statistics do not move."""
        super().train(mode)
        for module in self._fixed if mode else ():
            module.eval()
        return self

    def configure_model(self) -> None:
        """Under ``ModelParallelStrategy``, spread the parameters over the processes (FSDP2), block by block."""
        if self.device_mesh is None or is_sharded(self.model):
            return
        if self.osf is not None:
            raise ValueError("OSF decomposes whole weights, and ModelParallelStrategy spreads them; use DDP.")
        _, blocks = find_decoder_blocks(self.model, self.lora.blocks if self.lora is not None else None)
        shard_model_(self.model, blocks, self.device_mesh["data_parallel"])

    # -- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy over the answer tokens of a ``train`` batch."""
        self.count_answer_tokens(batch["labels"])
        with naming_failure(self._names_of(batch_idx)):
            loss = self.model(**self._cast(batch), use_cache=False, **self._loss_alone).loss
        self.log("train/loss", loss, prog_bar=True, batch_size=batch["input_ids"].shape[0])
        found: Tensor = loss
        return found

    def on_train_start(self) -> None:
        """Make a schedule and its optimizer again after a finder's trials: it had the length of other batches.

        Without a schedule the optimizer stays, with the rate that ``LearningRateFinder`` has set in it.
        """
        if self.make_lr_scheduler is not None and loaded_by_finder(self.trainer):
            self.trainer.strategy.setup_optimizers(self.trainer)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._in_training = True

    def _names_of(self, batch_idx: int) -> Callable[[], list[str]]:
        """What names the records of a training batch; callbacks call the step outside Lightning's loop too."""
        loader, in_training = getattr(self._trainer, "train_dataloader", None), self._in_training
        self._in_training = False
        return lambda: loader.names(batch_idx) if in_training and isinstance(loader, TaskLoader) else []

    def configure_optimizers(self) -> Any:
        """Return a fresh optimizer over the trainable parameters, and a fresh scheduler."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("no parameter is trainable; set lora, osf, train_modules or freeze_vision=False.")
        optimizer = self.build_optimizer(parameters)
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = build_scheduler(self.make_lr_scheduler, optimizer, self._trainer, self.lr_scheduler_interval)
        schedule = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if (monitor := getattr(scheduler, "monitor", None)) is not None:  # Lightning's ReduceLROnPlateau
            schedule["monitor"] = monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimizer for the running task."""
        return self.make_optimizer(parameters)

    # -- answering ---------------------------------------------------------------------------------------------------

    def decoding(self, max_new_tokens: int | None = None) -> dict[str, Any]:
        """Return all that decides an answer: greedy search, what ``generation`` says, stop tokens, the longest answer.

        What is not named is at transformers' default, whatever the model's ``generation_config.json`` says.

        Args:
            max_new_tokens: longest answer in tokens; that of ``generation``, or 64, when ``None``.
        """
        limit = max_new_tokens or self.generation.get("max_new_tokens") or _LONGEST_ANSWER
        tokenizer = tokenizer_of(self.processor)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return resolve(self.generation, limit, self._stops(), pad)

    def generate(self, batch: dict[str, Any], max_new_tokens: int | None = None) -> Answers:
        """Answer a ``generate`` batch of the collator.

        An answer ends at the chat template's end-of-turn token, at the end of the sequence, or at one of
        ``generation``'s ``stop_strings``, which is not part of it. Training mode and random state are the caller's
        afterwards, unless it samples. Where the prompt ends with a mark that begins thoughts (``<think>``), the answer
        begins with it if it was cut or ends its thoughts, so that the two are told apart.

        Args:
            batch: on the module's device.
            max_new_tokens: longest answer in tokens, see :meth:`decoding`.

        Returns:
            The answers without prompts, special tokens and outer blanks; a list that also reports which of them were
            cut.
        """
        inputs = self._cast(batch["inputs"])
        decoding = self.decoding(max_new_tokens)
        tokenizer = tokenizer_of(self.processor)
        arguments = {**decoding, **({"tokenizer": tokenizer} if decoding.get("stop_strings") else {})}
        if is_sharded(self.model):
            arguments["synced_gpus"] = True  # all processes run as many forward passes as the slowest
            unshard_root_(self.model)  # `generate` encodes the images before it calls the model
        self._warn_about_defaults()
        names = [f"record {identity!r}" for identity in batch.get("ids", ())]
        with (
            torch.no_grad(), eval_mode(self.model), own_decoding(self.model), mixed_answers(self),
            naming_failure(lambda: names),
        ):  # fmt: skip
            tokens = self.model.generate(**inputs, **arguments)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts, cut = ended(new, decoded(new, tokenizer, decoding), decoding)
        texts = [text.strip() for text in texts]
        for row, mark in enumerate(map(opened_thoughts, batch.get("prompts", ()))):
            if texts[row] and (cut[row] or given_answer(mark + texts[row])):
                texts[row] = mark + texts[row]
        answers = Answers(texts, cut)
        self._warn_about_thoughts(answers, decoding["max_new_tokens"])
        return answers

    def _warn_about_thoughts(self, answers: Answers, limit: int) -> None:
        """Tell once that answers end within their thoughts: nothing is answered, and a judge reads the thoughts."""
        ends = zip(answers, answers.cut, strict=True)
        count = sum(cut and bool(text.strip()) and not given_answer(text) for text, cut in ends)
        if 2 * count > len(answers) and not self._warned_thoughts:
            self._warned_thoughts = True
            rank_zero_warn(
                f"{count} of {len(answers)} answers of a batch were cut within their thoughts, at "
                f"max_new_tokens={limit}: tasks score them as wrong, and judges read the thoughts. Raise "
                "max_new_tokens until few answers are cut, or switch thoughts off: for Qwen3, with records "
                "of one turn, by a chat_template that begins with '{%- set enable_thinking = false -%}'."
            )

    def _warn_about_defaults(self) -> None:
        """Tell once what the model's file of decoding settings asks for and does not get."""
        left_out = set_aside(self.model, self.generation) if not self._warned_defaults else {}
        self._warned_defaults = True
        if left_out:
            rank_zero_warn(
                f"the model's generation_config asks for {left_out}; answers are decoded without it, so that all "
                "models are decoded alike. Put it into `generation` to use it."
            )

    def choose(self, records: Sequence[Record], collator: Collator, batch_size: int = 8) -> list[list[float]]:
        """The mean log-likelihood per token of every choice of every record, as the answer to its prompt.

        Decision: the mean over the answer's tokens, as perplexity compares them (Ch3Ef, arXiv 2403.17830), so that long
        choices are not at a disadvantage.

        Args:
            records: with ``choices``; a final assistant turn is cut off.
            collator: makes the batches.
            batch_size: choices in one forward pass.

        Returns:
            For each record one number for each choice, natural logarithm.

        Raises:
            ValueError: a record without choices.
        """
        candidates: list[Record] = []
        for record in records:
            if not record.choices:
                raise ValueError(f"{record.where}: there are no choices; expected a record of multiple choice.")
            prompt = record.prompt_and_references()[0]
            for choice in record.choices:
                messages = (*prompt, *assistant_turn(choice))
                candidates.append(Record(record.id, messages, record.images, source=record.source))
        found: list[float] = []
        with eval_mode(self.model), mixed_answers(self):
            for start in range(0, len(candidates), batch_size):
                chosen = candidates[start : start + batch_size]
                batch = collator.train(chosen)
                batch = self._cast({key: value.to(self.device) for key, value in batch.items()})
                names = list(dict.fromkeys(record.where for record in chosen))
                with naming_failure(lambda names=names: names):  # type: ignore[misc]
                    total, tokens = answer_log_likelihoods(partial(self.model, use_cache=False), batch)
                found += (total / tokens).tolist()
        result, first = [], 0
        for record in records:
            result.append(found[first : first + len(record.choices)])
            first += len(record.choices)
        return result

    def opening_likelihoods(
        self, records: Sequence[Record], openings: Sequence[str], collator: OpeningCollator, batch_size: int = 8
    ) -> list[list[float]]:
        """The log-probability that the reply to every prompt begins with each of the openings.

        See :func:`~hpa_lightning.modules.opening_likelihoods.opening_log_likelihoods`.

        Args:
            records: a final assistant turn is cut off.
            openings: how replies begin; none of them begins with another.
            collator: makes the batches.
            batch_size: sequences in one forward pass.

        Returns:
            For each record one natural logarithm for each opening, the sum over its tokens; the end of the turn is not
            one of them.
        """

        def prepare(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            return self._cast({key: value.to(self.device) for key, value in inputs.items()})

        with eval_mode(self.model), mixed_answers(self):
            return opening_log_likelihoods(self.model, records, openings, collator, batch_size, prepare)

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Return ``{"id", "prompt", "response", "cut"}`` of every record of a ``generate`` batch.

        An evaluation set is answered as ``test`` answers it, with its own limit on new tokens.
        """
        sets = predicted_sets(datamodule_of(self.trainer))
        limit = decoding_of(sets[dataloader_idx], self)["max_new_tokens"] if dataloader_idx < len(sets) else None
        answers = self.generate(batch, max_new_tokens=limit)
        found = zip(batch["ids"], batch["prompts"], answers, answers.cut, strict=True)
        return [
            {"id": identity, "prompt": prompt, "response": said, "cut": cut} for identity, prompt, said, cut in found
        ]

    # -- validation and test -----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        data = validation_data(self.trainer, "validation")
        self._scoring = self._scorings(data, data.validation_sets())

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a ``generate`` batch and update the metric of its set."""
        self._scoring[dataloader_idx].answer(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("validation")  # which may run inside a fit, beside TaskEvaluation's figures

    def on_test_epoch_start(self) -> None:
        data = evaluation_data(self.trainer, "test")
        self._scoring = self._scorings(data, data.evaluation_sets())

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a ``generate`` batch and update the metric of its set."""
        self._scoring[dataloader_idx].answer(batch)

    def on_test_epoch_end(self) -> None:
        self._log_scores("evaluation")

    def _scorings(self, data: EvaluationData, sets: Sequence[EvaluationSet]) -> list[SetScoring]:
        sharded = is_sharded(self.model)
        return [SetScoring(item, data, self, self.trainer, together=sharded) for item in sets]

    def _log_scores(self, prefix: str) -> None:
        """Log every set's score and the means over the sets, and keep the answers in ``scored``."""
        for scoring in self._scoring:
            scoring.choose()
        self.scored = [scoring.finish(by_sample=True) for scoring in self._scoring]
        for fields, _ in self.scored:
            self.log(f"{fields['set']}/{fields['metric']}", fields["score"], sync_dist=True)  # the same on every rank
        for name, value in means(self.scored).items():
            self.log(f"{prefix}/{name}", value, sync_dist=True)

    # -- export and helpers ------------------------------------------------------------------------------------------

    def resume_settings(self) -> dict[str, Any]:
        """What a fit that continues must have in common with this one; weights, data and optimizer apart.

        Returns:
            ``"class"``, ``"lora"``, ``"osf"``, ``"generation"``, ``"dtype"`` of the weights, ``"trained"`` (how many
            tensors, with a digest of their names), and ``"lr_scheduler"`` where its settings are known.
        """
        found = {
            "class": type(self).__qualname__,
            "lora": described(self.lora),
            "osf": described(self.osf),
            "generation": described(self.generation),
            **self._as_made,
        }
        if isinstance(self.make_lr_scheduler, TaskSchedule | partial):
            found["lr_scheduler"] = {**described(self.make_lr_scheduler), "interval": self.lr_scheduler_interval}
        return found

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if slow := advice(self.trainer, self):
            rank_zero_warn(slow)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self._reports_parts:
            rank_zero_info(f"{type(self).__name__} {describe_trainable(self.model)}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the state of the weights, in checkpoints of weights alone too, and what is tuned how."""
        checkpoint[MODULE_SETTINGS] = self.resume_settings()
        if (state := self._weights_state()) is not None:
            checkpoint[TASK_STATE] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Warn of weights from before a task's end, unless a fit is resumed that will finish it."""
        self._kept_state = checkpoint.get(TASK_STATE)
        function = None if self._trainer is None else self._trainer.state.fn
        stage = "load_from_checkpoint" if function is None else function.value
        if stage != "fit" and (reason := unfinished_weights(self._kept_state)):
            rank_zero_warn(f"{stage}: {reason}.")
        saved = checkpoint.get(MODULE_SETTINGS)  # not in those of earlier versions
        if stage == "fit" and saved is not None:
            refuse_changes(self._trainer, differences({"model": saved}, {"model": self.resume_settings()}), "module")

    def keep_weights_state(self, state: dict[str, Any]) -> None:
        """Remember where a fit that is over has left the weights: its trainer may give way to another one."""
        self._kept_state = state

    def _weights_state(self) -> dict[str, Any] | None:
        """What the fit says of the weights, or what was kept: a trainer that only tests them knows nothing of them."""
        fits = self._trainer is not None and self._trainer.state.fn == "fit"
        return (state_of_trainer(self._trainer) if fits else None) or self._kept_state

    def export(self, folder: str | Path, unfinished: bool = False) -> None:
        """Write one standard Hugging Face folder, adapters merged in fp32, that ``from_pretrained`` loads.

        With several processes all have to call it, and the first one writes.

        Args:
            folder: it is made as a whole or not at all; there may be none of that name, or an empty one.
            unfinished: write weights from before a task's end, which a method has not fused yet, as they are.

        Raises:
            ValueError: the folder is not empty, the model cannot be saved so, has mixtures of LoRA experts, which
                cannot be merged, or is from before a task's end.
        """
        reason = unfinished_weights(self._weights_state())
        if reason and not unfinished:
            raise ValueError(f"{reason}, or pass export(folder, unfinished=True) to write them as they are.")
        export_model(self.model, self.processor, folder, write=self.global_rank == 0)

    def _stops(self) -> list[int]:
        if self._stop_token_ids is None:
            datamodule = None if self._trainer is None else datamodule_of(self._trainer)
            collator = getattr(datamodule, "collator", None)
            if isinstance(collator, MLLMCollator):
                stops = collator.template.stop_token_ids()
            elif getattr(self.processor, "chat_template", None):
                stops = ChatTemplate(self.processor).stop_token_ids()
            else:
                stops = [tokenizer_of(self.processor).eos_token_id]
            configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
            known = configured if isinstance(configured, list) else [configured]
            self._stop_token_ids = sorted({i for i in (*stops, *known) if i is not None})
        return self._stop_token_ids

    def _cast(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give floating-point inputs (pixels) the model's dtype; mixed precision keeps fp32 weights and inputs."""
        dtype = next(parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; every submodule gets its own mode back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _dtype_and_trained(model: nn.Module) -> dict[str, str]:
    """The dtype of the weights, and how many tensors are trained, with a digest of their names."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)
    digest = hashlib.blake2b("\n".join(trained).encode(), digest_size=8).hexdigest()
    return {"dtype": str(dtype), "trained": f"{len(trained)} tensors, {digest}"}


def _keep_primitives(hyperparameters: Any) -> None:
    """Leave only what a checkpoint can load with ``weights_only=True``: dataclasses as dicts, no callables."""
    for key, value in list(hyperparameters.items()):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            hyperparameters[key] = dataclasses.asdict(value)
        elif not isinstance(value, str | int | float | bool | list | dict | None):
            del hyperparameters[key]
