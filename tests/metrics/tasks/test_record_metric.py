"""What all scorers of tasks share: the check of predictions and references, the mean, errors by record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from hpa_lightning.metrics.scoring import score_answers
from hpa_lightning.metrics.tasks import build_metric
from hpa_lightning.metrics.tasks.record_metric import MeanScore, best_of, mean_score, scores_of


class Length(MeanScore):
    """The share of the reference's length, of texts that are not empty."""

    @staticmethod
    def score(prediction: str, accepted: Sequence[str], /) -> float:
        if not prediction:
            raise ValueError("nothing was said")
        return best_of(lambda text, reference: min(1.0, len(text) / len(reference)))(prediction, accepted)


def test_the_best_reference_counts_and_function_and_class_agree() -> None:
    predictions, references = ["ab", "abcd"], [("abcd", "abc"), ("abcdefgh",)]
    assert scores_of(predictions, references, Length.score) == pytest.approx([2 / 3, 0.5])
    metric = Length()
    metric.update(predictions[:1], references[:1])
    metric.update(predictions[1:], references[1:], scores=[0.5])
    assert float(metric.compute()) == pytest.approx(float(mean_score(predictions, references, Length.score, "length")))


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ("ab", [("a",)], "got a single string"),
        (["a"], [], "1 predictions and 0 references"),
        (["a"], ["a"], "The references of prediction 0 must be a tuple"),
        (["a", "b"], [("a",), ()], "The references of prediction 1 must be a tuple"),
        (["a", ""], [("a",), ("b",)], "Prediction 1 cannot be scored: nothing was said"),
    ],
)
def test_errors_name_the_record(predictions: Any, references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores_of(predictions, references, Length.score)


def test_nothing_is_nan_with_a_warning_and_known_scores_must_be_as_many() -> None:
    with pytest.warns(UserWarning, match="length has seen no prediction"):
        assert math.isnan(mean_score([], [], Length.score, "length"))
    with pytest.raises(ValueError, match="There are 2 scores of 1 predictions"):
        Length().update(["a"], [("a",)], scores=[1.0, 1.0])


@pytest.mark.parametrize(
    ("name", "thoughts", "answer", "references"),
    [
        ("exact_match", "14 or 15?", "15", ("15",)),
        ("contained_match", "Urban, or rural?", "It is rural.", ("rural",)),
        ("token_f1", "A dog, or a cat?", "a cat", ("a cat",)),
        ("relaxed_match", "14 or 15?", "15", ("15",)),
        ("vqa_accuracy", "One or two?", "two", ("2",) * 10),
        ("option_accuracy", "The answer is A.", "(B)", ("B",)),
        ("grounding_accuracy", "[0, 0, 9, 9]?", "[1, 1, 5, 5]", ("[1, 1, 5, 5]",)),
        ("mme_score", "No?", "Yes.", ("Yes",)),
        ("cider", "A red cube?", "two dogs", ("two dogs",)),
    ],
)
def test_thoughts_are_no_answer(name: str, thoughts: str, answer: str, references: tuple[str, ...]) -> None:
    def scored(prediction: str) -> tuple[float, list[dict[str, Any]]]:
        metric = build_metric(name)
        predictions, groups = [prediction, "a bird"], ["1", "2"]
        others = [("a bird",) if name == "cider" else references]
        rows = score_answers(metric, predictions, [references, *others], predictions, groups, [{}, {}])
        return float(metric.compute()), rows[:1]

    plain, lost = scored(answer), scored("")
    assert scored(f"<think>\n{thoughts}\n</think>\n\n{answer}") == plain
    assert scored(f"{thoughts}</think>{answer}") == plain  # the template may write the opening tag
    assert scored(f"<think>{thoughts} {answer}") == lost  # cut before there was an answer
    assert plain[0] > lost[0]


def test_what_was_only_thought_of_is_not_contained() -> None:
    metric = build_metric("contained_match")
    metric.update(["<think>Urban, or rural?</think>It is rural."], [("urban",)])
    assert metric.compute() == 0.0
