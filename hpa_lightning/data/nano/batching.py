"""Examples to tensors and back, without the processor's per-sample cost (equal to it; the tests compare)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpa_lightning.data.nano.construction import IMAGE_TOKENS, split_words
from hpa_lightning.data.nano.examples import Example
from hpa_lightning.data.template import tokenizer_of


class Encoder:
    """Token ids of prompts and answers, pixel values of pictures."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = tokenizer_of(processor)
        self.ids = self.tokenizer.get_vocab()

    def prompt(self, example: Example, with_image: bool = True) -> list[int]:
        """Ids of the user turn up to and with the assistant's opening token."""
        picture = ["<image>"] * IMAGE_TOKENS if with_image and example.image is not None else []
        return [self.ids[word] for word in ("<user>", *picture, *split_words(example.question), "<assistant>")]

    def answer(self, example: Example) -> list[int]:
        """Ids of the answer and the end-of-turn token."""
        return [self.ids[word] for word in (*split_words(example.answer), "</s>")]

    @staticmethod
    def pixels(examples: Sequence[Example]) -> Tensor:
        """Float32 (batch, 3, 32, 32), from -1 to 1."""
        pictures = np.stack([example.image for example in examples if example.image is not None])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1

    def train_batch(self, groups: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
        """Right-padded training batch; each row holds several questions about one picture, apart from each other.

        The picture comes once, in front (without one, the words that all questions begin with); every question sees it
        and itself alone, at the positions it would have by itself. So a row gives the loss of its examples one by one,
        for one reading of the picture.

        Returns:
            `input_ids`, `labels` (-100 but on answers) and `position_ids`, int64 (rows, length); `attention_mask`,
            boolean (rows, 1, length, length); `pixel_values` if there are pictures.
        """
        rows = []
        for group in groups:
            prompts = [self.prompt(example) for example in group]
            shared = 1 + IMAGE_TOKENS if group[0].image is not None else _shared_prefix(prompts)
            ids = prompts[0][:shared]
            labels, positions, parts = [-100] * shared, list(range(shared)), [0] * shared
            for number, (example, prompt) in enumerate(zip(group, prompts, strict=True), start=1):
                question, answer = prompt[shared:], self.answer(example)
                ids += question + answer
                labels += [-100] * len(question) + answer
                positions += range(shared, shared + len(question) + len(answer))
                parts += [number] * (len(question) + len(answer))
            rows.append((ids, labels, positions, parts))
        length = max(len(ids) for ids, *_ in rows)
        # A padded position is a part of its own: it sees the picture, and nothing sees it.
        padded = [
            torch.tensor([row[field] + [fill] * (length - len(row[field])) for row in rows])
            for field, fill in enumerate((0, -100, 0, -1))
        ]
        parts_of = padded[3]
        visible = (parts_of[:, None, :] == 0) | (parts_of[:, None, :] == parts_of[:, :, None])
        batch = {
            "input_ids": padded[0],
            "labels": padded[1],
            "position_ids": padded[2],
            "attention_mask": (visible & torch.ones(length, length, dtype=torch.bool).tril())[:, None],
        }
        first = [group[0] for group in groups if group[0].image is not None]
        if first:
            batch["pixel_values"] = self.pixels(first)
        return batch


def _shared_prefix(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with; the last one of each, before its answer, stays its own."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def length_buckets(
    encoder: Encoder, groups: Sequence[Sequence[Example]], batch_size: int, rng: random.Random
) -> Iterator[dict[str, Tensor]]:
    """Batches of groups in random order; sorted by length within runs of eight batches, to pad less."""
    order = list(range(len(groups)))
    rng.shuffle(order)
    lengths = [sum(len(encoder.prompt(e)) + len(encoder.answer(e)) for e in group) for group in groups]
    starts: list[int] = []
    for run in range(0, len(order) - batch_size + 1, 8 * batch_size):
        order[run : run + 8 * batch_size] = sorted(order[run : run + 8 * batch_size], key=lengths.__getitem__)
        starts += range(run, min(run + 8 * batch_size, len(order) - batch_size + 1), batch_size)
    rng.shuffle(starts)
    for start in starts:
        yield encoder.train_batch([groups[i] for i in order[start : start + batch_size]])


def answer_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over answer tokens of a causal language model or a LLaVA; the head sees those alone."""
    labels = batch["labels"][:, 1:]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    kept = labels != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[kept]).float(), labels[kept])


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    max_new_tokens: int = 24,
    batch_size: int = 256,
) -> list[str]:
    """Greedy answers of the model, in the order of `examples`."""
    encoder = Encoder(processor)
    prompts = [encoder.prompt(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: (examples[i].image is None, len(prompts[i])))
    answers = [""] * len(examples)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = max(len(prompts[i]) for i in chosen)
        ids = torch.zeros(len(chosen), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, length - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, length - len(prompts[i]) :] = 1
        pictured = [examples[i] for i in chosen if examples[i].image is not None]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if pictured:
            inputs["pixel_values"] = encoder.pixels(pictured)
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = encoder.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text.strip()
    return answers
