"""Which tokens of a conversation are answers, before and after the processor has expanded its images."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from hpa_lightning.data.record import Record
from hpa_lightning.data.template import tokenizer_of


def labelled_tokens(offsets: list[tuple[int, int]], text: str, spans: list[tuple[int, int]], where: str) -> list[int]:
    """Return the indices of the tokens that overlap a span; they must cover it and nothing of the prompt.

    Args:
        offsets: first and last character of every token of ``text``.
        text: the rendered conversation.
        spans: of the answers with their end-of-turn tokens.
        where: the record, for messages.

    Raises:
        ValueError: a token reaches from the prompt into the answer.
    """
    kept: list[int] = []
    for start, end in spans:
        begin = start + len(text[start:end]) - len(text[start:end].lstrip())
        inside = [index for index, (low, high) in enumerate(offsets) if low < end and high > begin]
        covered = bool(inside) and offsets[inside[0]][0] <= begin and offsets[inside[-1]][1] >= end
        if not covered or text[min(offsets[inside[0]][0], start) : start].strip():
            raise ValueError(
                f"{where}: the tokens of the answer {text[start:end][:60]!r} overlap the prompt's; the chat template "
                "needs a token boundary before the answer."
            )
        # A token of blanks alone between the prompt and the answer is part of what generation has to produce.
        first = inside[0]
        while first > 0 and offsets[first - 1][0] >= start and offsets[first - 1][1] > offsets[first - 1][0]:
            first -= 1
        kept += range(first, inside[-1] + 1)
    return kept


def carry_over(processor: Any, short: list[int], expanded: list[int], kept: list[int], record: Record) -> list[int]:
    """Return the positions in ``expanded`` of the tokens ``kept`` of ``short``.

    Args:
        processor: tells the token of an image, if it has one.
        short: ids of the rendered conversation, an image's placeholder in it once.
        expanded: ids that the processor made of it, without padding.
        kept: indices into ``short``.
        record: the conversation.

    Raises:
        ValueError: the two differ outside the stretches that hold images.
    """
    position = _match(short, expanded, kept)
    places = [position[index] for index in kept]
    image_id = getattr(processor, "image_token_id", None)
    bos = tokenizer_of(processor).bos_token_id

    def differ_by_images(low: int, high: int, low_place: int, high_place: int) -> bool:
        """Whether the stretch between two labelled tokens is the same but for what the images became."""
        before, after = short[low:high], expanded[low_place:high_place]
        if low == 0 and after[:1] == [bos] != before[:1]:  # some processors write it whatever they are told
            after = after[1:]
        grown = bool(record.images) and high - low > 0 and (image_id is None or image_id in (*before, *after))
        return low_place <= high_place and (before == after or grown)

    ends = [*zip(kept, places, strict=True), (len(short), len(expanded))]
    low = low_place = 0
    for high, high_place in ends:
        if high_place < 0 or not differ_by_images(low, high, low_place, high_place):
            break
        low, low_place = high + 1, high_place + 1
    else:
        return places
    raise ValueError(
        f"{record.where}: the processor's tokens differ from the conversation's by more than its images; the "
        "answer's tokens cannot be distinguished from the prompt's. Report this with the processor's class "
        f"({type(processor).__name__})."
    )


def _match(short: list[int], expanded: list[int], needed: Sequence[int]) -> list[int]:
    """Return for each token of ``short`` its position in ``expanded``, or -1."""
    smaller = min(len(short), len(expanded))
    head = next((i for i in range(smaller) if short[i] != expanded[i]), smaller)
    tail = next((i for i in range(smaller - head) if short[-1 - i] != expanded[-1 - i]), smaller - head)
    position = [*range(head), *[-1] * (len(short) - head)]
    for i in range(1, tail + 1):
        position[-i] = len(expanded) - i
    if any(position[index] < 0 for index in needed):  # answers before a later image
        middle = SequenceMatcher(
            None, short[head : len(short) - tail], expanded[head : len(expanded) - tail], autojunk=False
        )
        for block in middle.get_matching_blocks():
            for i in range(block.size):
                position[head + block.a + i] = head + block.b + i
    return position
