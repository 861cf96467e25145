"""Cues of refusals: a position has a word that announces it."""

from support.judged_answers import ANSWERS, MISSED_BY_V1, REFUSALS, TAKEN_BY_V1

from hpa_lightning.metrics.judges.cues import CUES, POSITION_WORD, POSITIONS
from hpa_lightning.metrics.judges.judged_text import opening


def test_a_position_always_has_a_word_that_announces_it() -> None:
    sentences = [part for text in [*REFUSALS, *ANSWERS, *MISSED_BY_V1, *TAKEN_BY_V1] for part in opening(text)]
    for sentence in sentences:
        if not POSITION_WORD.search(sentence):
            assert [name for name in POSITIONS - {"opens"} if CUES[name].search(sentence)] == []
