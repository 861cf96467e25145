"""A part of a filter that asks a text classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpa_lightning.data.record import Record
from hpa_lightning.filtering.assessment import Finding, worst
from hpa_lightning.filtering.class_scores import check_activation, class_scores, label_finding, wanted_labels
from hpa_lightning.filtering.model_loading import naming_model
from hpa_lightning.filtering.turn_texts import check_roles, turn_texts
from hpa_lightning.whole_model import load_whole

_PART = "TextClassifier"
_NO_LIMIT = 1_000_000  # what a tokenizer without a limit has as its limit is far above


class TextClassifier:
    """Calls a record harmful where a sequence classifier of transformers gives one of its turns a label of harm.

    A text that is longer than the model takes is read in windows that overlap, none of it is cut off; the window with
    the highest score counts. The model is loaded at the first call, or by :meth:`load`.

    Args:
        model: folder or hub name of the classifier with its tokenizer.
        labels: the model's labels that mean harm, or label -> threshold.
        threshold: least score of a label that counts, for those without their own.
        roles: whose turns are read.
        max_length: tokens in a window; as many as the model takes when ``None``.
        stride: tokens that two windows share; 64, or a quarter of a window that is shorter than 256, when ``None``.
        activation: from logits to scores: ``"softmax"``, ``"sigmoid"``, or ``"auto"``, which is what the pipeline of
            transformers does: sigmoid for several labels at once (``problem_type``) and for a single output.
        batch_size: windows in one forward pass.
        dtype: of the weights.
        device: where it runs; a CUDA device if there is one when ``None``.

    Raises:
        ValueError: an unknown role or activation, a threshold outside (0, 1]. When loaded: no such model, one whose
            head is not in its file, a label that it does not have, a stride that leaves windows no room.
    """

    def __init__(
        self,
        model: str,
        labels: list[str] | dict[str, float],
        threshold: float = 0.5,
        roles: Sequence[str] = ("user", "assistant"),
        max_length: int | None = None,
        stride: int | None = None,
        activation: str = "auto",
        batch_size: int = 32,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        if batch_size < 1 or (stride is not None and stride < 0):
            raise ValueError(f"{_PART}: batch_size is {batch_size}, stride {stride}; expected at least 1 and 0.")
        self.model = str(model)
        self.labels = wanted_labels(_PART, labels, threshold)
        self.roles = check_roles(roles, _PART)
        self.max_length = max_length
        self.stride = stride
        self.activation = check_activation(_PART, activation)
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = device
        self._loaded: tuple[Any, Any, int, int] | None = None

    def load(self) -> None:
        """Load the model, which otherwise happens at the first call."""
        if self._loaded is not None:
            return
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with naming_model(_PART, self.model, "a sequence classifier"):
            classifier = load_whole(
                AutoModelForSequenceClassification.from_pretrained, self.model, self.dtype, self.device
            )
            tokenizer = AutoTokenizer.from_pretrained(self.model)
        if self.activation == "auto" and classifier.config.problem_type == "regression":
            raise ValueError(
                f"{_PART}: {self.model!r} is a regression; say with activation: sigmoid that it scores so."
            )
        wanted_labels(_PART, self.labels, 1.0, list(classifier.config.id2label.values()))
        if not tokenizer.is_fast:
            raise ValueError(f"{_PART}: {self.model!r} has no fast tokenizer, which windows of long texts need.")
        window = self.max_length or _longest_input(classifier, tokenizer)
        stride = min(64, window // 4) if self.stride is None else self.stride
        if window - tokenizer.num_special_tokens_to_add() <= stride:
            raise ValueError(
                f"{_PART}: windows of {window} tokens share stride={stride} of them; expected a smaller stride."
            )
        self._loaded = classifier, tokenizer, window, stride

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        """One finding for each record: of the turn, window and label with the highest score."""
        texts = [(index, *text) for index, record in enumerate(records) for text in turn_texts(record, self.roles)]
        by_record: list[list[Finding]] = [[] for _ in records]
        for (index, where, _), scores in zip(texts, self.scores([text for *_, text in texts]), strict=True):
            by_record[index].append(label_finding(scores, self.labels, where))
        return [worst(findings) for findings in by_record]

    def scores(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return label -> score of every text, for all labels of the model; of a long text its windows' highest."""
        if not texts:
            return []
        self.load()
        assert self._loaded is not None
        classifier, tokenizer, window, stride = self._loaded
        encoded = tokenizer(
            list(texts), truncation=True, max_length=window, stride=stride, return_overflowing_tokens=True
        )
        owners = encoded.pop("overflow_to_sample_mapping")
        features = [
            {key: encoded[key][i] for key in tokenizer.model_input_names if key in encoded} for i in range(len(owners))
        ]
        names = classifier.config.id2label
        highest: dict[int, Tensor] = {}
        order = sorted(range(len(features)), key=lambda index: len(features[index]["input_ids"]))  # less padding
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = tokenizer.pad([features[index] for index in chosen], return_tensors="pt").to(classifier.device)
            for index, row in zip(chosen, self._scores(classifier, batch), strict=True):
                before = highest.get(owners[index])
                highest[owners[index]] = row if before is None else torch.maximum(row, before)  # NaN stays
        return [
            {names[number]: score for number, score in enumerate(highest[index].tolist())}
            for index in range(len(texts))
        ]

    @torch.no_grad()
    def _scores(self, classifier: Any, batch: Mapping[str, Tensor]) -> Tensor:
        several = classifier.config.problem_type == "multi_label_classification"
        return class_scores(classifier(**batch).logits, self.activation, several)


def _longest_input(classifier: Any, tokenizer: Any) -> int:
    """How many tokens the model takes: the less of what its tokenizer says and its positions."""
    positions = getattr(classifier.config, "max_position_embeddings", None)
    embeddings = getattr(getattr(classifier.base_model, "embeddings", None), "position_embeddings", None)
    first = getattr(embeddings, "padding_idx", None)  # RoBERTa counts positions from behind the padding's
    known = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LIMIT else []
    if isinstance(positions, int) and positions > 0:
        known.append(positions if first is None else positions - first - 1)
    if not known:
        raise ValueError(f"{_PART}: the model does not say how many tokens it takes; give max_length.")
    return int(min(known))
