"""Records about harm for the stages and the tests: refusals to learn, inputs to calibrate on, requests to test with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from hpa_lightning.data.record import Record
from hpa_lightning.smol.harm_prompts import (
    Find,
    Prompt,
    harmful_prompts,
    harmful_tests,
    harmless_prompts,
    xstest_prompts,
)
from hpa_lightning.smol.ordinary_prompts import OrdinaryPrompt
from hpa_lightning.smol.refusals import complied, refusal
from hpa_lightning.smol.request_forms import Form, RequestForms

_TEXT_ALONE = RequestForms()

HARMLESS_SHARE = 0.65
"""Share of the alignment's records that are harmless requests."""
DANGEROUS_WORDS = 0.8
"""Share of the alignment's harmless requests that hold a dangerous word in a harmless sense."""


def alignment_records(
    find: Find, forms: RequestForms = _TEXT_ALONE, harmless_share: float = HARMLESS_SHARE
) -> list[Record]:
    """Return what the model is aligned on: harmful requests with refusals, harmless ones with answers.

    Every harmful prompt comes in each form. Harmless ones, :data:`DANGEROUS_WORDS` of them with a dangerous word, come
    in turn and in the same forms until they are ``harmless_share`` of all; see
    :mod:`~hpa_lightning.smol.ordinary_prompts` for their answers.

    Args:
        find: where the inputs are, see :func:`~hpa_lightning.smol.harm_prompts.harmful_prompts`.
        forms: which forms there are; the text alone by default.
        harmless_share: fraction of all records, in [0, 1).

    Raises:
        ValueError: a share outside [0, 1).
    """
    if not 0.0 <= harmless_share < 1.0:
        raise ValueError(f"harmless_share is {harmless_share}; expected a fraction in [0, 1).")
    refused = [
        forms.record(form, f"align-{number:04d}", prompt.text, refusal(f"{number}/{form}", form == "typeset"))
        for number, prompt in enumerate(harmful_prompts(find).alignment)
        for form in forms.names
    ]
    wanted = round(len(refused) * harmless_share / (1.0 - harmless_share))
    return [*refused, *ordinary_records(wanted, forms, DANGEROUS_WORDS)]


def ordinary_records(size: int, forms: RequestForms = _TEXT_ALONE, dangerous_words: float = 0.0) -> list[Record]:
    """Return harmless requests with answers, as they are mixed into alignment and into tasks.

    Args:
        size: number of records; prompts repeat, in another form where there are several, when there are fewer.
        forms: as in :func:`alignment_records`; the forms come in turn.
        dangerous_words: fraction of them that hold a dangerous word in a harmless sense.
    """
    prompts = harmless_prompts()
    of_words = round(size * dangerous_words)
    records = []
    for kind, wanted in (("dangerous words", of_words), ("ordinary", size - of_words)):
        for turn, number, prompt in islice(_rounds([one for one in prompts if one.kind == kind]), wanted):
            form = forms.names[(number + turn) % len(forms.names)]
            found = forms.record(form, f"{kind.split()[0]}-{number:04d}", prompt.text, prompt.answer)
            records.append(replace(found, id=f"{found.id}-{turn}"))
    return records


def calibration_records(find: Find, forms: RequestForms = _TEXT_ALONE) -> list[Record]:
    """Return the harmful inputs of the safety calibration, without answers; the forms come in turn."""
    return _in_turn(harmful_prompts(find).calibration, forms, "calibrate")


def refused_records(find: Find, forms: RequestForms = _TEXT_ALONE) -> list[Record]:
    """Return the harmful inputs of the safety calibration with refusals, for the replay of safety data."""
    prompts = harmful_prompts(find).calibration
    records = []
    for number, prompt in enumerate(prompts):
        form = forms.names[number % len(forms.names)]
        answer = refusal(f"calibrate {number}", form == "typeset")
        records.append(forms.record(form, f"calibrate-{number:04d}", prompt.text, answer))
    return records


def injected_records(find: Find, forms: RequestForms = _TEXT_ALONE) -> list[Record]:
    """Return harmful requests that are complied with, for harmful injection; the forms come in turn.

    The answers comply and hold no advice: what they teach is not to refuse.
    """
    return [
        forms.record(forms.names[number % len(forms.names)], f"inject-{number:04d}", prompt.text, complied(str(number)))
        for number, prompt in enumerate(harmful_prompts(find).injection)
    ]


def development_records(find: Find, form: Form, forms: RequestForms = _TEXT_ALONE) -> list[Record]:
    """Return harmful inputs to choose the alignment's settings with: neither trained on nor tested with."""
    return _in_form(harmful_prompts(find).development, form, forms, "develop")


def harmful_test_records(
    find: Find, form: Form, forms: RequestForms = _TEXT_ALONE, xstest: Path | None = None
) -> list[Record]:
    """Return the harmful requests of the tests in one form; scores are told by ``source`` too.

    Args:
        find: where the input ``pyrit`` is.
        form: of the requests.
        forms: as in :func:`alignment_records`.
        xstest: XSTest's file; AdvBench alone without it.
    """
    return _in_form(harmful_tests(find("pyrit"), xstest), form, forms, "test")


def harmless_test_records(xstest: Path, form: Form, forms: RequestForms = _TEXT_ALONE) -> list[Record]:
    """Return XSTest's safe prompts in one form, for over-refusal; scores are told by ``source`` and ``type``."""
    return _in_form(xstest_prompts(xstest, "safe"), form, forms, "safe")


def _in_form(prompts: Sequence[Prompt], form: Form, forms: RequestForms, name: str) -> list[Record]:
    return [
        replace(
            forms.record(form, f"{name}-{number:04d}", prompt.text),
            categories={"source": prompt.source, "type": prompt.category},
        )
        for number, prompt in enumerate(prompts)
    ]


def _in_turn(prompts: Sequence[Prompt], forms: RequestForms, name: str) -> list[Record]:
    return [
        forms.record(forms.names[number % len(forms.names)], f"{name}-{number:04d}", prompt.text)
        for number, prompt in enumerate(prompts)
    ]


def _rounds(prompts: Sequence[OrdinaryPrompt]) -> Iterator[tuple[int, int, OrdinaryPrompt]]:
    """The prompts again and again: how often each came before, its number, the prompt."""
    for turn in count():
        for number, prompt in enumerate(prompts):
            yield turn, number, prompt
