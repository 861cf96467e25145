"""A guard model in memory: conversations in its chat template, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from hpa_lightning.float32_products import products_on
from hpa_lightning.whole_model import load_whole


@dataclass(frozen=True)
class GuardAnswer:
    """What a guard model says of a conversation.

    Args:
        text: its greedy answer, without white space around it.
        unsafe: likelihood of the verdict `unsafe` among the two, at the first token of the verdict; ``None`` where it
            was not asked for, or where the answer is blank.
    """

    text: str
    unsafe: float | None = None


class GuardModel:
    """A language model that was tuned to assess conversations, with its tokenizer.

    Args:
        model: folder or hub name of the guard model with its tokenizer.
        dtype: of the weights (``"bfloat16"``, ``"float32"``, ``"auto"``).
        device: where it runs; a CUDA device if there is one when ``None``.

    Raises:
        ValueError: no chat template, or weights that its file lacks.
    """

    def __init__(self, model: str, dtype: str, device: str | None) -> None:
        # Reports import the metrics, and do without models.
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

        import hpa_lightning.modules.timm_mllm  # noqa: F401 - registers the architecture with the auto classes

        self.name = model
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(f"{model!r} has no chat template; expected a guard model that comes with one.")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config = AutoConfig.from_pretrained(model)
        causal = type(config) in AutoModelForCausalLM._model_mapping
        kind = AutoModelForCausalLM if causal else AutoModelForImageTextToText
        self.model: Any = load_whole(kind.from_pretrained, model, dtype, device)
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self._special = sorted({*filter(None, self.tokenizer.all_special_tokens), *added})
        #: Tokens of a prompt and its answer; ``None`` where the model does not say.
        self.longest: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)

    def conversation(self, turns: Sequence[tuple[str, str]], arguments: Mapping[str, Any] | None = None) -> str:
        """Return turns, ``(role, text)``, in the model's chat template, special tokens and all.

        Args:
            turns: user and assistant in turn; the last one is assessed.
            arguments: what the template takes beside them.

        Raises:
            ValueError: the template does not show the last turn and the one before.
        """
        failure: object = ""
        for content in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
            messages = [{"role": role, "content": content(text)} for role, text in turns]
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, **(arguments or {}))
            except Exception as error:  # whatever the template raises for a form of content that it does not know
                failure = failure or error
                continue
            if all(said.strip() in text for _, said in turns[-2:]):
                found: str = text
                return found
            failure = "it leaves texts out"
        what = "a prompt and a response" if len(turns) > 1 else "a prompt"
        raise ValueError(f"the chat template of {self.name!r} cannot show {what}: {failure}.")

    def special_token_in(self, text: str) -> str | None:
        """Return a special token of the model that a text holds: it could speak to the guard as the template does."""
        return next((token for token in self._special if token in text), None)

    def parted(self, text: str) -> str:
        """Return a text with a space in every special token of the model, which then is text to it; with a warning.

        Blanks and single characters cannot be parted, and stay.

        Raises:
            ValueError: one token cannot be parted without another.
        """
        tokens = sorted((token for token in self._special if len(token.strip()) > 1), key=len, reverse=True)
        held = [token for token in tokens if token in text]
        for token in held:
            cut = token.index(token.strip()) + 1
            text = text.replace(token, f"{token[:cut]} {token[cut:]}")
        if held:
            rank_zero_warn(
                f"texts hold special tokens of the guard model {self.name!r}, such as {held[0]!r}; it gets them with a "
                "space in them, so that it reads them as text.",
                UserWarning,
            )
        if (left := next((token for token in tokens if token in text), None)) is not None:
            raise ValueError(
                f"a text holds {left!r}, a special token of the guard model {self.name!r}, and a space in it makes "
                "another one. Take it out of the text."
            )
        return text

    def length(self, conversation: str) -> int:
        """Return the number of tokens of a prompt."""
        return len(self.tokenizer(conversation, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def answers(
        self, conversations: Sequence[str], max_new_tokens: int, words: tuple[str, str] | None = None
    ) -> list[GuardAnswer]:
        """Answer a batch of prompts, greedily.

        Args:
            conversations: of :meth:`conversation`.
            max_new_tokens: longest answer.
            words: of the verdicts, (safe, unsafe), whose likelihood is asked for.

        Raises:
            ValueError: both words begin with the same token.
        """
        # The template writes the special tokens itself.
        batch = self.tokenizer(list(conversations), return_tensors="pt", padding=True, add_special_tokens=False)
        from hpa_lightning.decoding import own_decoding  # which imports transformers

        # Its file of decoding settings may ask for sampling, penalties or beams.
        with products_on(self.model.device), own_decoding(self.model):
            made = self.model.generate(
                **batch.to(self.model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=words is not None,
            )
        tokens = made.sequences[:, batch["input_ids"].shape[1] :]
        texts = [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        if words is None:
            return [GuardAnswer(text) for text in texts]
        safe, unsafe = self._first_tokens(words[0]), self._first_tokens(words[1])
        if safe & unsafe:
            raise ValueError(f"{words[0]!r} and {words[1]!r} begin with the same token of {self.name!r}.")
        places = [self._verdict_place(row) for row in tokens.tolist()]
        return [
            GuardAnswer(text, None if place is None else _share(made.logits[place][row], safe, unsafe))
            for row, (text, place) in enumerate(zip(texts, places, strict=True))
        ]

    def _verdict_place(self, tokens: Sequence[int]) -> int | None:
        """Of an answer the place of its first token that is not blank: Llama Guard 3 begins with two line ends."""
        return next((place for place, token in enumerate(tokens) if self._shown(token)), None)

    def _first_tokens(self, word: str) -> set[int]:
        """The first token of a word, at an answer's start and behind white space."""
        found = set()
        for before in ("", " ", "\n", "\n\n"):
            tokens = self.tokenizer(before + word, add_special_tokens=False)["input_ids"]
            found.add(next(token for token in tokens if self._shown(token)))
        return found

    def _shown(self, token: int) -> bool:
        return bool(self.tokenizer.decode([token], skip_special_tokens=True).strip())


def _share(logits: Tensor, safe: set[int], unsafe: set[int]) -> float:
    """The likelihood of `unsafe` among both."""
    of_safe, of_unsafe = (logits.float()[sorted(tokens)].logsumexp(0) for tokens in (safe, unsafe))
    return float((of_unsafe - of_safe).sigmoid())
