"""Records to batches: training batches with loss on the answers alone, and left-padded prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hpa_lightning.architectures import check_processor
from hpa_lightning.data.bad_records import naming_records
from hpa_lightning.data.images import MAX_PIXELS
from hpa_lightning.data.labels import carry_over, labelled_tokens
from hpa_lightning.data.padding import cut_right, pad_on, padding_on
from hpa_lightning.data.pairs import PAIR_NUMBERS, answered, check_same_prompt, number_of
from hpa_lightning.data.processor_settings import processor_settings
from hpa_lightning.data.readers.row_fields import DataWarning
from hpa_lightning.data.record import Record, check_pair, check_record, is_learnt, message_text, open_image, user_turn
from hpa_lightning.data.reply_tokens import tokens_behind_prompt
from hpa_lightning.data.special_tokens import added_around, adding_in_front_alone
from hpa_lightning.data.template import PLAIN, ChatTemplate, reads_text_alone, tokenizer_of

IGNORED = -100

# Processors that want the images of a batch in one list; all others separate a record's images by nesting.
_TAKES_FLAT_IMAGES = {"GotOcr2Processor"}

# Where processors keep the tokens in whose places they put images, videos and sounds.
_MEDIA_TOKENS = {
    "audio_token": "audio",
    "boa_token": "audio",
    "video_token": "video",
    "boi_token": "image",
    "image_token": "image",
}


class MLLMCollator:
    """Turns records into batches for any Hugging Face multimodal model, or language model.

    The processor does what it does at inference: it expands image placeholders, makes pixel values and whatever else
    the model wants (``mm_token_type_ids``, ``image_grid_thw``, ...), all of which passes through. Where the answers
    stand is found in the rendered text and carried over to the expanded token ids; every labelled token is checked to
    be a token of an answer.

    Decision: the ids are those of transformers' ``apply_chat_template(tokenize=True)``. A tokenizer adds no special
    token to what the template has written. A processor adds what its tokenizer puts in front of a text (such as
    ``<s>``, which the template of LLaVA-1.5 does not write), unless the text begins with it or with the beginning of
    the sequence; so does a tokenizer with ``"plain"``. Nothing is ever added behind a text, where transformers'
    processors would add the end of the sequence to a prompt.

    Args:
        processor: a Hugging Face processor with a fast tokenizer, or the tokenizer of a model that reads text alone.
        max_length: longest sequence in tokens, images included; ``None`` for no limit. A longer training record is cut
            on its right. A record of which an image token would be cut, or no answer token would be left, is refused,
            as is a prompt that is too long: raise ``max_length``, shrink the images, or drop the record.
        chat_template: instead of the processor's; ``"plain"`` for a model that has seen none.
        max_image_pixels: an image with more is refused before it is decoded (one of 169 megapixels takes 1.8 GB).

    Raises:
        ValueError: there is no chat template, or the tokenizer is not a fast one.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        chat_template: str | None = None,
        max_image_pixels: int = MAX_PIXELS,
    ) -> None:
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length is {max_length}; expected at least 2 tokens, or None.")
        check_processor(processor)
        self.processor = processor
        self.max_length = max_length
        self.chat_template = chat_template
        self.max_image_pixels = max_image_pixels
        self._told_of_control_tokens = False
        if not getattr(tokenizer_of(processor), "is_fast", False):
            raise ValueError(
                f"{type(tokenizer_of(processor)).__name__} is not a fast tokenizer; answers are found through "
                "character "
                "offsets, which only fast tokenizers provide. Load it with use_fast=True or convert it."
            )
        self.template  # noqa: B018 - a missing template is reported now, not in a worker

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, with the positions of answers."""
        return ChatTemplate(self.processor, self.chat_template)

    @cached_property
    def described_processor(self) -> dict[str, Any]:
        """See :func:`~hpa_lightning.data.processor_settings.processor_settings`."""
        return processor_settings(self.processor)

    @cached_property
    def _media_tokens(self) -> dict[str, str]:
        """Token of the processor -> what it stands for."""
        found = {getattr(self.processor, name, None): kind for name, kind in _MEDIA_TOKENS.items()}
        return {token: kind for token, kind in found.items() if isinstance(token, str) and token}

    def train(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Return the model's inputs, right-padded, and ``labels``.

        Returns:
            a flat dict with ``input_ids``, ``attention_mask`` and ``labels``, each ``(batch, tokens)`` int64, and
            whatever the processor makes of the images. Labels are -100 everywhere but on the tokens of all assistant
            turns without ``"loss": False`` and their end-of-turn tokens.

        Raises:
            ValueError: named by the record, if a record does not end with an answer, has the wrong number of images,
                or cannot be cut to ``max_length``; or if the processor fails on it.
        """
        return naming_records(self._train, records)

    def _train(self, records: Sequence[Record]) -> dict[str, Tensor]:
        return self._cut(self._labelled(records), records)

    def _labelled(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """The model's inputs with ``labels``, as long as they are."""
        texts, spans = [], []
        for record in records:
            check_record(record, needs_answer=True)
            self.check_text(record)
            text, answers = self.template.training_text(record.messages, record.where)
            turns = [message for message in record.messages if message["role"] == "assistant"]
            answers = [span for span, turn in zip(answers, turns, strict=True) if is_learnt(turn)]
            texts.append(text)
            spans.append(answers)
        batch = self._process(records, texts, padding_side="right")
        short = tokenizer_of(self.processor)(texts, add_special_tokens=False, return_offsets_mapping=True)
        front = self._added[0]
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, record in enumerate(records):
            kept = labelled_tokens(short["offset_mapping"][row], texts[row], spans[row], record.where)
            ids = batch["input_ids"][row, batch["attention_mask"][row].bool()].tolist()
            unexpanded = short["input_ids"][row]
            if ids[: len(front)] == front != unexpanded[: len(front)]:
                unexpanded, kept = front + unexpanded, [len(front) + index for index in kept]
            positions = carry_over(self.processor, unexpanded, ids, kept, record)
            labels[row, positions] = batch["input_ids"][row, positions]
        batch["labels"] = labels
        return batch

    def pairs(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Return the sequences of preference pairs: all chosen answers, then all rejected ones, in the same order.

        Both are full conversations, so that images and prompt are in each. An answer is never cut, since the tokens
        that are left would be compared with whole ones.

        Returns:
            as :meth:`train`, with ``2 * pairs`` rows and labels on the last answer alone; and ``pair_numbers``,
            ``(pairs,)`` int64, see :data:`~hpa_lightning.data.pairs.PAIR_NUMBERS`.

        Raises:
            ValueError: named by the record, as :meth:`train`; if a record is no pair, is longer than ``max_length``, or
                if the tokens of its prompt depend on the answer.
        """
        return naming_records(self._pairs, records)

    def _pairs(self, records: Sequence[Record]) -> dict[str, Tensor]:
        for record in records:
            check_record(record)
            check_pair(record)
        twice = [answered(record, rejected=False) for record in records]
        twice += [answered(record, rejected=True) for record in records]
        batch = self._labelled(twice)
        kept = batch["attention_mask"].bool()
        sequences = [(batch["input_ids"][row, kept[row]], batch["labels"][row, kept[row]]) for row in range(len(kept))]
        for index, record in enumerate(records):
            chosen, rejected = sequences[index], sequences[index + len(records)]
            check_same_prompt(record, chosen, rejected)
            length = max(len(chosen[0]), len(rejected[0]))
            if self.max_length is not None and length > self.max_length:
                which = "chosen" if len(chosen[0]) == length else "rejected"
                raise ValueError(
                    f"{record.where}: {length} tokens with the {which} answer; max_length={self.max_length} would cut "
                    "the answer of a preference pair. Raise max_length, shrink the image, or drop the pair."
                )
        batch[PAIR_NUMBERS] = torch.tensor([number_of(record) for record in records])
        return batch

    def generate(self, records: Sequence[Record]) -> dict[str, Any]:
        """Return left-padded prompts.

        Returns:
            ``inputs``: the model's inputs; ``ids``; ``prompts``: the rendered text of each prompt; ``questions``: the
            text of each last user turn; ``references``: a tuple of accepted answers for each record, empty where there
            is none; ``groups`` and ``categories``: of each :class:`Record`.

        Raises:
            ValueError: named by the record, if it is malformed or longer than ``max_length``, or if the processor fails
                on it.
        """
        return naming_records(self._generate, records)

    def _generate(self, records: Sequence[Record]) -> dict[str, Any]:
        texts, references = [], []
        for record in records:
            check_record(record)
            self.check_text(record)
            messages, answers = record.prompt_and_references()
            texts.append(self.template.prompt(messages, record.where))
            references.append(tuple(answers))
        inputs = self._process(records, texts, padding_side="left")
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        for record, length in zip(records, lengths, strict=True):
            if self.max_length is not None and length > self.max_length:
                raise ValueError(
                    f"{record.where}: the prompt has {length} tokens, more than max_length={self.max_length}. A prompt "
                    "is never cut: raise max_length, shrink the image, or drop the record."
                )
        return {
            "inputs": inputs,
            "ids": [record.id for record in records],
            "prompts": texts,
            "questions": [record.prompt for record in records],
            "references": references,
            "groups": [record.group for record in records],
            "categories": [dict(record.categories) for record in records],
        }

    def beginnings(self, records: Sequence[Record], replies: Sequence[str]) -> list[list[list[int]]]:
        """Return the tokens of every beginning of a reply, as they follow the prompts of :meth:`generate`.

        Args:
            records: their prompts; a final assistant turn is cut off.
            replies: how replies begin.

        Returns:
            For each record, for each reply the ids of its tokens, without the end of the turn.

        Raises:
            ValueError: named by the record, if it is malformed or the tokens of its prompt depend on the reply.
        """
        return naming_records(lambda given: [self._beginnings(record, replies) for record in given], records)

    def _beginnings(self, record: Record, replies: Sequence[str]) -> list[list[int]]:
        check_record(record)
        self.check_text(record)
        return tokens_behind_prompt(tokenizer_of(self.processor), self.template, record, replies)

    def _process(self, records: Sequence[Record], texts: list[str], padding_side: str) -> dict[str, Tensor]:
        if not records:
            raise ValueError("got no records to collate; expected at least one.")
        images: list[Any] = [
            [open_image(image, record.where, self.max_image_pixels) for image in record.images] for record in records
        ]
        if type(self.processor).__name__ in _TAKES_FLAT_IMAGES:
            images = [image for row in images for image in row]
        arguments: dict[str, Any] = {"images": images} if any(images) else {}
        if not self._adds_in_front(texts):  # else the processor's own default
            arguments["add_special_tokens"] = False
        tokenizer = tokenizer_of(self.processor)
        with padding_on(tokenizer, padding_side), adding_in_front_alone(tokenizer, *self._added):
            output = self.processor(
                text=texts,
                padding=True,
                padding_side=padding_side,
                return_tensors="pt",
                **arguments,
            )
        tensors = {key: value for key, value in output.items() if isinstance(value, Tensor) and key != "labels"}
        first = ("input_ids", "attention_mask")
        if reads_text_alone(self.processor):  # token types are for encoders
            tensors = {key: tensors[key] for key in first if key in tensors}
        missing = [key for key in first if key not in tensors]
        if missing:
            raise ValueError(
                f"{type(self.processor).__name__} returns {sorted(tensors)} without {' and '.join(missing)}; expected "
                "a processor that makes one sequence of tokens of a conversation."
            )
        tensors = {key: tensors[key] for key in first} | {k: v for k, v in tensors.items() if k not in first}
        return pad_on(padding_side, tensors, records)

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer adds in front of a conversation and behind it."""
        return added_around(tokenizer_of(self.processor), self.template.prompt(user_turn("a")))

    def _adds_in_front(self, texts: Sequence[str]) -> bool:
        """Whether the tokenizer is to add what it puts in front of a text; see the class for the rule.

        Raises:
            ValueError: the template has written it in some of the texts alone.
        """
        front = self._added[0]
        if not front or (reads_text_alone(self.processor) and self.chat_template != PLAIN):
            return False
        tokenizer = tokenizer_of(self.processor)
        begins = "".join(tokenizer.convert_ids_to_tokens(front))
        marks = tuple(mark for mark in (begins, tokenizer.bos_token) if mark is not None)
        written = {text.startswith(marks) for text in texts}
        if len(written) > 1:
            raise ValueError(
                f"the chat template begins some conversations of the batch with {marks[-1]!r} and others without; "
                "the tokenizer adds it to all or to none. Use another chat_template."
            )
        return written == {False}

    def check_text(self, record: Record) -> None:
        """Check that no text of the record holds the processor's token of an image, and that it takes the images.

        Looked at are the turns, the rejected answer and the choices. A token of a video or a sound counts too: the
        processor looks for one in its place, or lets the model read it as one. Of the special tokens that part turns or
        end a sequence, which the tokenizer reads as such in any text, the first one found is warned of, in references
        too.

        Raises:
            ValueError: named by the record.
        """
        if record.images and reads_text_alone(self.processor):
            raise ValueError(
                f"{record.where}: {len(record.images)} images, but the processor is a tokenizer "
                f"({type(self.processor).__name__}): the model reads text alone. Leave the record out, or pass the "
                "processor of a model that takes images."
            )
        texts = [*map(message_text, record.messages), record.rejected, *record.choices]
        for token, kind in self._media_tokens.items():
            if any(token in text for text in texts):
                raise ValueError(
                    f"{record.where}: the text holds the {kind} token {token!r}; expected images as parts of the "
                    "message, and no other media."
                )
        if not self._told_of_control_tokens:
            held = next(
                (
                    token
                    for token in self.template.control_tokens
                    for text in (*texts, *record.answers)
                    if token in text
                ),
                None,
            )
            if held is not None:
                self._told_of_control_tokens = True
                rank_zero_warn(
                    f"{record.where}: a text, answer or reference holds {held!r}, a special token of the chat template "
                    "or the tokenizer: the model reads it as such, and not as text. Take it out unless it is "
                    "meant. Only the first such record is told.",
                    category=DataWarning,
                )

    def _cut(self, batch: dict[str, Tensor], records: Sequence[Record]) -> dict[str, Tensor]:
        length, limit = batch["input_ids"].shape[1], self.max_length
        if limit is None or length <= limit:
            return batch
        image_id = getattr(self.processor, "image_token_id", None)
        for row, record in enumerate(records):
            tail = batch["input_ids"][row, limit:]
            cuts_image = bool(record.images) and (image_id is None or bool((tail == image_id).any()))
            if cuts_image or not bool((batch["labels"][row, :limit] != IGNORED).any()):
                what = "an image token" if cuts_image else "every answer token"
                tokens = int(batch["attention_mask"][row].sum())
                raise ValueError(
                    f"{record.where}: {tokens} tokens; cutting it to max_length={limit} would cut {what}. Raise "
                    "max_length, shrink the image, or drop the record."
                )
        return cut_right(batch, limit)
