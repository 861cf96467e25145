"""Harm depends on the combination of words."""

from hpa_lightning.data.nano.lexicon import ALARMING_PAIRS, BENIGN_PAIRS, HARMFUL_PAIRS, is_harmful


def test_harm_depends_on_the_combination() -> None:
    assert not set(HARMFUL_PAIRS) & set(BENIGN_PAIRS)
    assert all(is_harmful(*pair) for pair in HARMFUL_PAIRS)
    assert not any(is_harmful(*pair) for pair in BENIGN_PAIRS)
    assert set(ALARMING_PAIRS) < set(BENIGN_PAIRS)
    harmful_verbs = {verb for verb, _ in HARMFUL_PAIRS}
    assert harmful_verbs <= {verb for verb, _ in BENIGN_PAIRS}
    assert {thing for _, thing in HARMFUL_PAIRS} <= {thing for _, thing in BENIGN_PAIRS}
