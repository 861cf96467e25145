"""A part of a filter that asks a guard model, such as Llama Guard, by its own chat template."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hpa_lightning.data.record import Record, message_text
from hpa_lightning.filtering.assessment import Assessment, Finding, worst
from hpa_lightning.filtering.model_loading import naming_model
from hpa_lightning.filtering.taxonomies import counted_codes, taxonomy_of
from hpa_lightning.filtering.turn_texts import check_roles
from hpa_lightning.metrics.judges.guard_model import GuardAnswer, GuardModel
from hpa_lightning.values import shown

_PART = "GuardFilter"
_CODE = re.compile(r"[A-Z]+\d+")


class _Question(NamedTuple):
    """A turn that is assessed, with those before it."""

    record: int
    where: str
    turns: tuple[tuple[str, str], ...]


class GuardFilter:
    """Calls a record harmful where a guard model calls one of its turns unsafe.

    Every turn is put to the model as the last of its conversation so far, in the model's own chat template: guards
    assess the last turn, with the others as context. A system prompt stands before the first user's text, since the
    templates know no system turn. Pictures are not shown. The first word of the greedy answer is the verdict, and codes
    behind it are the categories, as Llama Guard 1 to 4 write them; ShieldGemma and its like, asked with ``guidelines``,
    say Yes or No. Anything else is no verdict, as are a conversation that is longer than the model takes, and a text
    that holds one of the model's special tokens, with which it could speak in the template's voice.

    Args:
        model: folder or hub name of the guard model with its tokenizer.
        roles: whose turns are assessed, one question each.
        categories: that count, by code or name; all when ``None``. An unsafe answer without a code counts.
        threshold: of the likelihood of ``unsafe`` among both verdicts, at the verdict's first token, as Meta computes
            the scores of Llama Guard; the word that is said decides when ``None``.
        taxonomy: names of the codes: ``"llama-guard-3"`` (which is 4's, too), ``"llama-guard-2"``, ``"llama-guard-1"``,
            or code -> name.
        safe: the word of a safe verdict.
        unsafe: the word of an unsafe one.
        guidelines: name -> text of policies, each asked for by itself as the template's argument ``guideline``, which
            ShieldGemma's has; the name is the category.
        template_arguments: more arguments of the chat template, such as ``{"add_generation_prompt": true}``.
        batch_size: conversations in one forward pass.
        max_new_tokens: longest answer of the guard.
        dtype: of the weights.
        device: where it runs; a CUDA device if there is one when ``None``.

    Raises:
        ValueError: an unknown role, category or taxonomy, a threshold outside (0, 1], words of which one begins the
            other. When loaded: no such model, no chat template. Later: a template that does not show the turns.

    Source: Inan et al., Llama Guard (arXiv 2312.06674); Zeng et al., ShieldGemma (arXiv 2407.21772).
    """

    def __init__(
        self,
        model: str,
        roles: Sequence[str] = ("user", "assistant"),
        categories: list[str] | None = None,
        threshold: float | None = None,
        taxonomy: str | dict[str, str] = "llama-guard-3",
        safe: str = "safe",
        unsafe: str = "unsafe",
        guidelines: dict[str, str] | None = None,
        template_arguments: dict[str, Any] | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 32,
        dtype: str = "bfloat16",
        device: str | None = None,
    ) -> None:
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(
                f"{_PART}: batch_size is {batch_size}, max_new_tokens {max_new_tokens}; expected at least 1."
            )
        if not safe or not unsafe or safe.startswith(unsafe) or unsafe.startswith(safe):
            raise ValueError(
                f"{_PART}: the verdicts are {safe!r} and {unsafe!r}; expected words that differ at the start."
            )
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"{_PART}: threshold is {threshold}; expected a number above 0, at most 1.")
        if guidelines is not None and (categories is not None or not guidelines):
            raise ValueError(f"{_PART}: guidelines are the categories; expected at least one, and no categories.")
        self.model = str(model)
        self.roles = check_roles(roles, _PART)
        self.threshold = threshold
        self.taxonomy = taxonomy_of(_PART, taxonomy)
        self.categories = categories
        self._counted = counted_codes(_PART, categories, self.taxonomy)
        self.safe = safe
        self.unsafe = unsafe
        self.guidelines = guidelines
        self.template_arguments = dict(template_arguments or {})
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.dtype = dtype
        self.device = device
        self._guard: GuardModel | None = None

    def load(self) -> None:
        """Load the model, which otherwise happens at the first call."""
        if self._guard is None:
            with naming_model(_PART, self.model, "a guard model"):
                self._guard = GuardModel(self.model, self.dtype, self.device)

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        """One finding for each record: of the turn that is most likely unsafe, with the categories of all."""
        found: list[list[Finding]] = [[] for _ in records]
        questions = [question for index, record in enumerate(records) for question in self._questions(index, record)]
        for name, guideline in (self.guidelines or {"": ""}).items():
            arguments = self.template_arguments | ({"guideline": guideline} if guideline else {})
            for question, finding in zip(questions, self._assess(questions, arguments, name), strict=True):
                found[question.record].append(finding)
        return [worst(findings) for findings in found]

    def prompt(self, turns: Sequence[tuple[str, str]], **arguments: Any) -> str:
        """Return what the guard reads for turns, ``(role, text)``, of which the last is assessed."""
        self.load()
        assert self._guard is not None
        return self._guard.conversation(turns, self.template_arguments | arguments)

    def _questions(self, index: int, record: Record) -> Iterator[_Question]:
        turns: list[tuple[str, str]] = []
        system = ""
        for number, message in enumerate(record.messages):
            role, text = message["role"], message_text(message)
            if role == "system":
                system = text
                continue
            turns.append((role, f"{system}\n\n{text}" if system and not turns else text))
            if role in self.roles and turns[-1][1].strip():
                yield _Question(index, f"turn {number} ({role})", tuple(turns))
        if "assistant" in self.roles:
            asked = turns[:-1] if record.ends_with_answer else turns
            others = [(f"reference {n}", text) for n, text in enumerate(record.answers)]
            for where, text in [*others, ("the rejected answer", record.rejected)]:
                if text.strip():
                    yield _Question(index, where, (*asked, ("assistant", text)))

    def _assess(self, questions: Sequence[_Question], arguments: Mapping[str, Any], name: str) -> list[Finding]:
        """A finding for each question, asked in batches of like lengths."""
        self.load()
        assert self._guard is not None
        findings: dict[int, Finding] = {}
        prompts: dict[int, str] = {}
        for number, question in enumerate(questions):
            special = next(filter(None, (self._guard.special_token_in(text) for _, text in question.turns)), None)
            if special is not None:
                findings[number] = _unsure(question, f"the text holds {special!r}, a special token of the guard")
                continue
            prompt = self._guard.conversation(question.turns, arguments)
            limit, needed = self._guard.longest, self._guard.length(prompt) + self.max_new_tokens
            if limit is not None and needed > limit:
                told = f"conversation and answer may take {needed} tokens, more than the {limit} of the guard"
                findings[number] = _unsure(question, told)
                continue
            prompts[number] = prompt
        order = sorted(prompts, key=lambda number: len(prompts[number]))  # less padding
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            asked, words = [prompts[number] for number in chosen], (self.safe, self.unsafe)
            answers = self._guard.answers(asked, self.max_new_tokens, words)
            for number, answer in zip(chosen, answers, strict=True):
                findings[number] = self._finding(answer, questions[number], name)
        return [findings[number] for number in range(len(questions))]

    def _codes(self, text: str) -> list[str]:
        """The codes behind a verdict: those of the taxonomy, and what looks like one."""
        said = [piece.strip().upper() for piece in re.split(r"[,\n]", text)]
        return list(dict.fromkeys(code for code in said if code in self.taxonomy or _CODE.fullmatch(code)))

    def _finding(self, answer: GuardAnswer, question: _Question, name: str) -> Finding:
        first, _, rest = answer.text.partition("\n")
        # "Yes, since ..." is a verdict, "safe to say" is none.
        word = rf"({re.escape(self.unsafe)}|{re.escape(self.safe)})\s*(?:$|[^\w\s])"
        said = re.match(word, first, re.IGNORECASE)
        is_unsafe = said is not None and said[1].lower() == self.unsafe.lower()
        codes = self._codes(rest)
        if said is None or answer.unsafe is None or (codes and not is_unsafe and not name):
            return _unsure(question, f"the guard answers {shown(answer.text)}")
        if math.isnan(answer.unsafe):
            return _unsure(question, "the likelihood of the verdict is not a number; another dtype may help")
        harmful = is_unsafe if self.threshold is None else answer.unsafe >= self.threshold
        if name or not harmful:
            label = self.unsafe if harmful else self.safe
            return Finding.of(harmful, label, answer.unsafe, (name,) if harmful else (), question.where)
        # An unknown code, and none, cannot be left out of what counts.
        counts = [code for code in codes if self._counted is None or code in self._counted or code not in self.taxonomy]
        if codes and not counts:
            label = f"{self.unsafe}, but {', '.join(codes)} does not count"
            return Finding.of(False, label, answer.unsafe, where=question.where)
        named = [f"{code}: {self.taxonomy[code]}" if code in self.taxonomy else code for code in counts]
        return Finding.of(True, self.unsafe, answer.unsafe, named, question.where)


def _unsure(question: _Question, detail: str) -> Finding:
    return Finding(Assessment.NO_VERDICT, where=question.where, detail=detail)
