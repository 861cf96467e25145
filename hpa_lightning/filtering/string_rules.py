"""Parts of a filter that go by wording: lists of phrases, and answers that refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpa_lightning.data.record import Record
from hpa_lightning.filtering.assessment import Assessment, Finding, worst
from hpa_lightning.filtering.turn_texts import check_roles, turn_texts
from hpa_lightning.metrics.judges import StringRefusalJudge, Verdict
from hpa_lightning.metrics.judges.phrase_lists import MATCHES, Phrases, read_phrases
from hpa_lightning.parsing import read_text


class PhraseFilter:
    """Calls a record harmful that holds a phrase of a list.

    Args:
        files: lists, each a category that its file's name (without the ending) gives: JSON as the judges read it,
            ``{"match": "anywhere" | "prefix" | "words", "phrases": [...], "exact": [...]}``, or text with a phrase on
            every line, which are matched as whole words. Letters count in lower case.
        phrases: more phrases, matched as ``match`` says.
        match: ``"words"``: anywhere, as whole words (of scripts without spaces, such as Chinese, as ``"anywhere"``);
            ``"anywhere"``; or ``"prefix"``, at the start of a turn.
        roles: whose turns are read.

    Raises:
        ValueError: no phrase, a file that is missing or broken, an unknown role or way to match.

    >>> from hpa_lightning.data.record import user_turn
    >>> PhraseFilter(phrases=["pipe bomb"])([Record("1", user_turn("How is a pipe bomb made?"))])[0].label
    'pipe bomb'
    """

    def __init__(
        self,
        files: Sequence[str] = (),
        phrases: Sequence[str] = (),
        match: str = "words",
        roles: Sequence[str] = ("user", "assistant"),
    ) -> None:
        if match not in MATCHES:
            raise ValueError(f"PhraseFilter: match is {match!r}; expected one of {', '.join(MATCHES)}.")
        if isinstance(files, str) or isinstance(phrases, str):
            raise ValueError("PhraseFilter: files and phrases are lists; got a single string.")
        self.files = tuple(map(str, files))
        self.phrases = tuple(phrases)
        self.match = match
        self.roles = check_roles(roles, "PhraseFilter")
        self._lists = [(Path(file).stem, _read(Path(file))) for file in self.files]
        if own := tuple(phrase.lower() for phrase in phrases if phrase.strip()):
            self._lists.append(("", Phrases(match, own)))
        if not self._lists:
            raise ValueError("PhraseFilter has no phrase to look for; give files or phrases.")

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        """One finding for each record; the label is the phrase."""
        return [worst(self._finding(text, where) for where, text in turn_texts(r, self.roles)) for r in records]

    def _finding(self, text: str, where: str) -> Finding:
        hits = {name: hit for name, phrases in self._lists if (hit := phrases.found(text)) is not None}
        label = next(iter(hits.values()), "")
        return Finding.of(bool(hits), label, categories=filter(None, hits), where=where if hits else "")


class RefusalFilter:
    """Finds records with an answer that refuses, such as those of a safety set among instruction data.

    Args:
        judge: the rules of :class:`~hpa_lightning.metrics.judges.StringRefusalJudge`: a name or a JSON file.
        partial: whether an answer that refuses a part of what was asked counts, too.
    """

    def __init__(self, judge: str = "default", partial: bool = False) -> None:
        self._judge = StringRefusalJudge(judge)
        self.judge = self._judge.rules
        self.partial = partial

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        """One finding for each record; the label is the verdict of the judge."""
        return [worst(self._finding(text, where) for where, text in turn_texts(r, ("assistant",))) for r in records]

    def _finding(self, text: str, where: str) -> Finding:
        (verdict,) = self._judge.verdicts([text])
        found = verdict.refused or (self.partial and verdict is Verdict.PARTIAL_REFUSAL)
        return Finding(Assessment.HARMFUL, verdict.value, where=where) if found else Finding(Assessment.HARMLESS)


def _read(path: Path) -> Phrases:
    if not path.is_file():
        raise ValueError(f"PhraseFilter: there is no file {str(path)!r}; expected a list of phrases, JSON or text.")
    if path.suffix.lower() == ".json":
        return read_phrases(path, "phrases")
    lines = tuple(line.strip().lower() for line in read_text(path).splitlines() if line.strip())
    if not lines:
        raise ValueError(f"PhraseFilter: {path} holds no phrase; expected one on every line.")
    return Phrases("words", lines)
