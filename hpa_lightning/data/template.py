"""Chat templates as text: where the answers are in a rendered conversation, and how turns end."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.record import assistant_turn, message_text, user_turn
from hpa_lightning.values import shown

PLAIN = "plain"

_PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ 'IMAGE_TOKEN\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ 'END_OF_TURN' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

Messages = Sequence[Mapping[str, Any]]


def tokenizer_of(processor: Any) -> Any:
    """Return the processor's tokenizer, or ``processor`` itself if it is one."""
    return getattr(processor, "tokenizer", processor)


def reads_text_alone(processor: Any) -> bool:
    """Whether ``processor`` is a tokenizer, as a language model without images has."""
    return tokenizer_of(processor) is processor


#: What SmolLM3, Qwen3 and Nemotron take in a text as a switch; their templates take it out.
_SWITCHES = re.compile(r"/(?:no_think|think|system_override)\b")


class ChatTemplate:
    """Renders conversations with a processor's chat template and tells where the answers are.

    Decision: a turn ends with the token that the template writes right behind the answer, if the tokenizer has it as an
    added token, marked as special or not. A template that ends an assistant turn without one (such as that of LLaVA-1.5
    on the hub) would never teach the model to stop; the tokenizer's end-of-sequence token is written after every answer
    then, as LLaVA's own training code does.

    Decision: of a template that does not know ``add_generation_prompt``, what it writes in front of an answer stands at
    the end of every prompt, with a warning. Otherwise the model would have to write it, and every score would read it
    as a part of the answer. A template that writes today's date is warned of.

    Args:
        processor: a Hugging Face processor (or tokenizer) with a chat template.
        template: a Jinja template to use instead of the processor's, or ``"plain"``: turns that begin with
            ``USER:`` and ``ASSISTANT:``, every image's token on a line before the turn's text, the end-of-sequence
            token after every answer.

    Attributes:
        end_of_turn: the token (as text) that follows every answer.
        control_tokens: the special tokens (as texts) that part turns, begin or end a sequence, or pad it.
        described: length and digest of the template.

    Raises:
        ValueError: neither the processor nor ``template`` has a template, it does not write a turn's text as it is, or
            no token can end a turn.
    """

    def __init__(self, processor: Any, template: str | None = None) -> None:
        self._processor = processor
        self._tokenizer = tokenizer_of(processor)
        eos = self._tokenizer.eos_token
        if template == PLAIN:
            image_token = getattr(processor, "image_token", "<image>")
            if eos is None:
                raise ValueError("chat_template='plain' ends answers with the tokenizer's eos_token; it has none.")
            template = _PLAIN_TEMPLATE.replace("IMAGE_TOKEN", image_token).replace("END_OF_TURN", eos)
        if template is None and not (
            getattr(processor, "chat_template", None) or getattr(self._tokenizer, "chat_template", None)
        ):
            raise ValueError(
                f"{type(processor).__name__} has no chat template; set processor.chat_template to the Jinja template "
                "that the model was trained with, or pass chat_template='plain' (USER: / ASSISTANT: turns) for a model "
                "that has seen none."
            )
        self._template = template
        self._before_answers = ""  # by a template that does not write it behind prompts
        self._as_string = reads_text_alone(processor) and self._takes_strings()
        source = template or getattr(processor, "chat_template", None) or self._tokenizer.chat_template
        text = source if isinstance(source, str) else json.dumps(source, sort_keys=True)
        self.described = f"{len(text)} characters, {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
        self._check_writes_texts()
        self._before_answers = self._missing_behind_prompts()
        self._warn_of_date(text)
        found = self._behind_answer()
        if found is None and eos is None:
            raise ValueError(
                "the chat template ends an assistant turn without an added token and the tokenizer has no eos_token; "
                "the model could never learn to stop. Set tokenizer.eos_token."
            )
        self.end_of_turn: str = found or str(eos)
        self.control_tokens = self._control_tokens()

    def prompt(self, messages: Messages, where: str = "conversation") -> str:
        """Return the text of a conversation that ends with a user turn, up to where the answer begins.

        Raises:
            ValueError: named by ``where``, if the template changes earlier answers, or leaves another turn's text out.
        """
        return self._with_spans(messages, generation=True, where=where)[0]

    def training_text(self, messages: Messages, where: str) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a conversation and the character spans of its answers.

        A span begins where generation would begin and ends after the end-of-turn token.

        Raises:
            ValueError: named by ``where``, if the template changes the answers or the turns before them, or leaves
                another turn's text out.
        """
        return self._with_spans(messages, generation=False, where=where)

    def begun(self, messages: Messages, reply: str, where: str) -> str:
        """Return the text of :meth:`prompt` followed by how a reply begins, whose turn does not end.

        Raises:
            ValueError: named by ``where``, if the template changes the prompt or the reply.
        """
        text, spans = self.training_text((*messages, *assistant_turn(reply)), where)
        found = text[: spans[-1][1]].removesuffix(self.end_of_turn).rstrip()
        if not found.startswith(self.prompt(messages, where)):
            raise ValueError(
                f"{where}: the chat template renders the prompt differently before a reply that begins with "
                f"{reply[:60]!r}; expected the same text. Use another chat_template."
            )
        return found

    def stop_token_ids(self) -> list[int]:
        """Return the ids at which generation stops: the end-of-turn token and the end of the sequence."""
        ids = [self._tokenizer.convert_tokens_to_ids(self.end_of_turn), self._tokenizer.eos_token_id]
        return sorted({identity for identity in ids if identity is not None})

    def _check_writes_texts(self) -> None:
        """Check that a turn's text comes out as it is: some templates print the list of its parts, or fail at it."""
        said = "a \"probe\" of 'both' marks"
        expected = (
            "expected one that goes through the parts {'type': 'image'} and {'type': 'text', 'text': ...} of a turn's "
            "content. Use another chat_template."
        )
        try:
            written = self._render(user_turn(said))
        except Exception as error:  # of any kind: it is a user's Jinja
            raise ValueError(f"the chat template fails with {type(error).__name__}: {error}; {expected}") from error
        if said not in written:
            raise ValueError(f"the chat template writes {shown(written)} for a turn that says {said}; {expected}")

    def _missing_behind_prompts(self) -> str:
        """What stands before an answer and not at the end of a prompt, of a template that never writes it there."""
        question, answer = user_turn("a"), "a probe"
        prompt = self._render(question, generation=True)
        whole = self._render((*question, *assistant_turn(answer))).rpartition(answer)[0]
        if prompt != self._render(question) or not whole.startswith(prompt) or not whole[len(prompt) :].strip():
            return ""
        missing = whole[len(prompt) :].rstrip(" ")
        rank_zero_warn(
            f"the chat template does not know add_generation_prompt: {missing!r}, which it writes in front of an "
            "answer, is put at the end of every prompt, so that answers begin behind it. Programs that serve the model "
            "with this template do not put it there: give them one that knows add_generation_prompt.",
            category=UserWarning,
        )
        return missing

    def _warn_of_date(self, source: str) -> None:
        own = "macro strftime_now"
        if "strftime_now" in source and own not in source and str(date.today().year) in self._render(user_turn("a")):
            rank_zero_warn(
                "the chat template writes today's date, so that prompts, and with them answers and scores, differ from "
                "day to day. For runs that compare, pass a chat_template that begins with "
                "'{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}' (a date of yours).",
                category=UserWarning,
            )

    def _behind_answer(self) -> str | None:
        """The longest added token that the template writes right behind an answer."""
        answer = "a probe"
        _, written, behind = self._render((*user_turn("a"), *assistant_turn(answer))).rpartition(answer)
        added = {str(token) for token in self._tokenizer.added_tokens_decoder.values()}
        added |= set(self._tokenizer.all_special_tokens)
        found = [token for token in added if token and written and behind.lstrip().startswith(token)]
        return max(found, key=len, default=None)

    def _control_tokens(self) -> frozenset[str]:
        question, answer = user_turn("a"), assistant_turn("b")
        try:
            written = self._render((*question, *answer, *question), generation=True)
        except Exception:  # of a user's Jinja, which may take one question and one answer alone
            written = self._render((*question, *answer)) + self._render(question, generation=True)
        tokens = {str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        named = (self._tokenizer.bos_token, self._tokenizer.eos_token, self._tokenizer.pad_token, self.end_of_turn)
        found = {token for token in tokens if token in written} | {token for token in named if token}
        return frozenset(token for token in found if token.strip())

    def _takes_strings(self) -> bool:
        """Whether the template expects the content of a turn as a string, as those of language models do."""
        probe, self._as_string = "a probe", True
        try:
            return probe in self._render(user_turn(probe))
        except Exception:  # of any kind: it is a user's Jinja
            return False

    def _render(self, messages: Messages, generation: bool = False) -> str:
        found: str = self._processor.apply_chat_template(
            [
                {**message, "content": message_text(message)} if self._as_string else dict(message)
                for message in messages
            ],
            chat_template=self._template,
            add_generation_prompt=generation,
            tokenize=False,
        )
        return found + self._before_answers if generation else found

    def _with_spans(
        self, messages: Messages, generation: bool, where: str = "conversation"
    ) -> tuple[str, list[tuple[int, int]]]:
        text = self._render(messages, generation)
        self._check_texts(text, messages, where)
        spans: list[tuple[int, int]] = []
        inserted = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prefix = self._render(messages[:index], generation=True)
            if text[: len(prefix) + inserted].replace(self.end_of_turn, "") != prefix.replace(self.end_of_turn, ""):
                raise ValueError(
                    f"{where}: the chat template renders the turns before message {index} differently once the answer "
                    "follows; the answer's tokens cannot be distinguished from the prompt's. Use another chat_template."
                )
            start = len(prefix) + inserted
            end = self._end_of_answer(text, start, message_text(message).strip(), where)
            found = re.compile(r"\s*" + re.escape(self.end_of_turn)).match(text, end)
            if found:
                end = found.end()
            else:
                text = text[:end] + self.end_of_turn + text[end:]
                end += len(self.end_of_turn)
                inserted += len(self.end_of_turn)
            spans.append((start, end))
        return text, spans

    def _check_texts(self, text: str, messages: Messages, where: str) -> None:
        """Check that every text stands in the conversation, as often as turns say it; answers are looked for later."""
        said: list[tuple[str, str]] = []  # role and text
        for message in messages:
            content = message["content"]
            parts = [content] if isinstance(content, str) else [one["text"] for one in content if one["type"] == "text"]
            said += [(message["role"], part) for part in parts if message["role"] != "assistant"]
        written, expected = _words(text), [_words(part) for _, part in said]
        for (role, part), words in zip(said, expected, strict=True):
            if words and written.count(words) < sum(other.count(words) for other in expected):
                raise ValueError(
                    f"{where}: the chat template leaves out or changes the text of the {role}'s turn, {shown(part)}; "
                    "the model would not read it. Take the turn out of the record, or use another chat_template."
                )

    def _end_of_answer(self, text: str, start: int, answer: str, where: str) -> int:
        blank = len(text[start:]) - len(text[start:].lstrip())
        if text.startswith(answer, start + blank):
            return start + blank + len(answer)
        # A template that writes something between the generation prompt and the answer, such as an empty thought.
        turn_end = text.find(self.end_of_turn, start)
        found = text.rfind(answer, start, turn_end if turn_end >= 0 else None)
        if not answer or found < 0 or text[found + len(answer) : turn_end].strip():
            raise ValueError(
                f"{where}: the answer {answer[:60]!r} is not in the conversation as the chat template renders "
                f"it ({text[start : start + 80]!r}); the template changes it. Use another chat_template."
            )
        return found + len(answer)


def _words(text: str) -> str:
    """The text without switches, and with single spaces; templates trim texts."""
    return " ".join(_SWITCHES.sub(" ", text).split())
