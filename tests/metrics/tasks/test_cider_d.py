"""CIDEr-D: by hand, against a dense reference, and against what the field's own scorer gives on the same captions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpa_lightning.metrics import CIDEr, cider
from hpa_lightning.metrics.tasks.cider_d import cider_d

cases = settings(deadline=None, derandomize=True, database=None, max_examples=100)

# Made with pycocoevalcap and its Stanford tokeniser; see "made_with" in the file.
FIELD = json.loads((Path(__file__).parents[2] / "support" / "captions.json").read_text())

RECORDS = FIELD["records"]


def grams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def dense_cider_d(candidates: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """From the equations, with one dense vector per caption and n over the vocabulary of all n-grams."""
    totals = np.zeros(len(candidates))
    for n in range(1, 5):
        captions = [*candidates, *(text for accepted in references for text in accepted)]
        vocabulary = sorted({gram for text in captions for gram in grams(text, n)})
        if not vocabulary:
            continue
        in_record = [[any(g in grams(text, n) for text in accepted) for g in vocabulary] for accepted in references]
        idf = np.log(len(references)) - np.log(np.maximum(1.0, np.sum(in_record, axis=0)))
        for i, (candidate, accepted) in enumerate(zip(candidates, references, strict=True)):
            c = idf * [grams(candidate, n).count(gram) for gram in vocabulary]
            for text in accepted:
                s = idf * [grams(text, n).count(gram) for gram in vocabulary]
                lengths = np.linalg.norm(c) * np.linalg.norm(s)
                cosine = np.minimum(c, s) @ s / lengths if lengths > 0 else 0.0
                totals[i] += np.exp(-((len(candidate) - len(text)) ** 2) / 72) * cosine / len(accepted) / 4 * 10
    return list(totals)


def test_by_hand() -> None:
    """Two records: log(2 / 1) for what one record's references have or none's, log(2 / 2) = 0 for "a"."""
    weight = math.log(2)
    # 1-grams of "a red cube" and "a red ball", all in units of log 2: a 0, red 1, cube 1 against a 0, red 1, ball 1
    one = weight**2 / (math.sqrt(2) * weight) ** 2
    # 2-grams: (a red), (red cube) against (a red), (red ball): the same again; 3-grams differ; there are no 4-grams
    expected = 10 * (one + one + 0 + 0) / 4
    score = cider(["a red cube", "no"], [("a red ball",), ("a cat",)])
    assert float(score) == pytest.approx(expected / 2)
    assert cider_d([["a", "red", "cube"], ["no"]], [[["a", "red", "ball"]], [["a", "cat"]]]) == pytest.approx([2.5, 0])


def test_repetition_is_clipped_and_length_is_punished() -> None:
    # "red red" against "red", the other record elsewhere: min(2, 1) * 1 / (2 * 1), one word too many, no 2-gram shared
    scores = cider_d([["red", "red"], ["x"]], [[["red"]], [["y"]]])
    assert scores == pytest.approx([10 * 0.5 * math.exp(-1 / 72) / 4, 0.0])


def test_perfect_captions_score_ten() -> None:
    texts = ["one two three four", "five six seven eight"]
    assert float(cider(texts, [(text,) for text in texts])) == pytest.approx(10.0)


words = st.lists(st.sampled_from(["a", "red", "cube", "dog", "on"]), max_size=7)


@cases
@given(st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_against_the_dense_reference(records) -> None:
    candidates, references = zip(*records, strict=True)
    scores = cider_d(candidates, references)
    np.testing.assert_allclose(scores, dense_cider_d(list(candidates), list(references)), atol=1e-9)
    assert all(0 <= score <= 10 + 1e-9 for score in scores)


def test_the_fields_scores_on_the_same_captions() -> None:
    predictions = [record["prediction"] for record in RECORDS]
    references = [tuple(record["references"]) for record in RECORDS]
    assert float(cider(predictions, references)) == pytest.approx(FIELD["cider"], rel=1e-6)
    scores = cider_d([r["tokens"][0] for r in RECORDS], [r["tokens"][1:] for r in RECORDS])
    assert scores == pytest.approx([record["cider"] for record in RECORDS], rel=1e-9, abs=1e-12)


def test_the_fields_scorer_where_it_is_installed() -> None:
    field = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap brings 100 MB of Java archives")
    known = {i: [" ".join(tokens) for tokens in record["tokens"][1:]] for i, record in enumerate(RECORDS)}
    given_ = {i: [" ".join(record["tokens"][0])] for i, record in enumerate(RECORDS)}
    mean, scores = field.Cider().compute_score(known, given_)
    ours = cider_d([r["tokens"][0] for r in RECORDS], [r["tokens"][1:] for r in RECORDS])
    assert ours == pytest.approx(list(scores)) and np.mean(ours) == pytest.approx(mean)


def test_document_frequencies_are_those_of_the_whole_set() -> None:
    predictions = [record["prediction"] for record in RECORDS]
    references = [tuple(record["references"]) for record in RECORDS]
    metric = CIDEr()
    for start in range(0, len(RECORDS), 3):
        metric.update(predictions[start : start + 3], references[start : start + 3])
    torch.testing.assert_close(metric.compute(), cider(predictions, references))


def test_a_single_record_is_zero_and_warns() -> None:
    with pytest.warns(UserWarning, match="one record"):
        assert float(cider(["a red cube"], [("a red cube",)])) == 0.0


def test_any_text_survives_the_state() -> None:
    texts = ["line\nbreak", "tab\t\u2028", "\u00e9\u4e2d\U0001f600", "\ud800", '"quoted" \\', ""]
    for dtype in (None, torch.float16, torch.bfloat16):
        metric = CIDEr()
        metric.update(texts, [(text, "other") for text in texts])
        metric = metric if dtype is None else metric.set_dtype(dtype)
        assert float(metric.compute()) == pytest.approx(float(cider(texts, [(text, "other") for text in texts])))
