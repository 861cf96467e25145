"""The features of the trained judge, by hand."""

from __future__ import annotations

from hpa_lightning.metrics.judges.features import WORDS, features, words


def test_words_are_those_of_a_sentence_without_numbers() -> None:
    assert words("2) we can't, in 1999, do that: why?") == ["0.", "we", "can't", "in", "do", "that", ":", "why", "?"]


def test_phrases_name_the_vocabulary_and_pass_over_the_topic() -> None:
    found = features(["i refuse bombs"], [set()], {"i", "refuse"})
    phrases = {name.removeprefix("w:") for name in found if name.startswith("w:")}
    assert phrases == {"^", "^ i", "^ i refuse", "i", "i refuse", "i refuse _", "refuse", "refuse _"}
    assert {name.removeprefix("w1:") for name in found if name.startswith("w1:")} == phrases
    assert features(["a", "i refuse"], [set(), set()], {"i"}).keys() >= {"w:i"}
    assert "w1:i" not in features(["a", "i refuse"], [set(), set()], {"i"})


def test_cues_tell_where_they_stand() -> None:
    cues = [{"sorry"}, set(), {"bad"}, {"bad"}]
    found = features(["a", "b", "c", "d"], cues, ())
    assert {name for name in found if name[0] == "c"} == {"c:sorry", "c1:sorry", "c:bad", "c2:bad", "c4:bad"}


def test_two_cues_of_one_response_are_told_together_wherever_they_stand() -> None:
    assert "x:declines&redirect" in features(["a", "b"], [{"decline"}, {"redirect"}], ())
    assert not any(name.startswith("x:") for name in features(["a"], [{"decline"}], ()))


def test_a_long_sentence_is_read_to_its_bound_and_short_responses_are_told() -> None:
    late = features([" ".join(["word"] * WORDS + ["late"])], [set()], {"word", "late"})
    assert "w:word" in late and "w:late" not in late and "n:short" not in late
    assert "n:short" in features(["no."], [set()], ())
