"""Every task: enough test questions, split by picture, answers that its metric counts as right."""

import pytest
from support.smol_inputs import tiny_find

from hpa_lightning.metrics.tasks import build_metric
from hpa_lightning.smol.task_examples import TASKS, Examples


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Examples]:
    find = tiny_find(tmp_path_factory.mktemp("inputs"))
    return {name: task.examples(find) for name, task in TASKS.items()}


def test_there_are_at_least_six_tasks_with_two_hundred_test_questions_each(examples: dict[str, Examples]) -> None:
    assert len(TASKS) >= 6
    assert all(len(found["test"]) >= 200 and len(found["train"]) >= 300 for found in examples.values())


@pytest.mark.parametrize("name", TASKS)
def test_no_picture_is_in_two_splits(examples: dict[str, Examples], name: str) -> None:
    pictures = [{example.picture for example in items} for items in examples[name].values()]
    assert sum(map(len, pictures)) == len(set.union(*pictures))


@pytest.mark.parametrize("name", TASKS)
def test_the_right_answers_score_full_and_others_answers_do_not(examples: dict[str, Examples], name: str) -> None:
    answers = [example.answer for example in examples[name]["test"]]
    scores = []
    for given in (answers, [*answers[1:], answers[0]]):
        metric = build_metric(TASKS[name].metric)
        metric.update(given, [(answer,) for answer in answers])
        scores.append(float(metric.compute()))
    # CIDEr of captions of two or three words is below its 10, since they have no longer runs of words.
    assert scores[0] == 1.0 or (TASKS[name].metric == "cider" and scores[0] > 4)
    assert scores[1] < 0.6 * scores[0]


def test_conventions_differ(examples: dict[str, Examples]) -> None:
    """A model that has learnt one task's convention is wrong in another one."""
    asked = {name: {example.answer for example in found["test"]} for name, found in examples.items()}
    assert all(answer.startswith("group: ") for answer in asked["kinds"])
    assert all(answer.startswith("digit = ") for answer in asked["digits"])
    assert all(answer.startswith("It reads ") for answer in asked["words"])
    assert asked["choice"] == {"A", "B", "C", "D"}


def test_the_right_option_is_the_pictures_caption(examples: dict[str, Examples]) -> None:
    captions = {example.picture: example.answer for example in examples["captions"]["test"]}
    for example in examples["choice"]["test"]:
        options = dict(line.split(". ", 1) for line in example.question.splitlines()[1:-1])
        assert options[example.answer] == captions[example.picture]
        assert len({option.casefold() for option in options.values()}) == 4


def test_what_a_chart_asks_is_what_it_shows(examples: dict[str, Examples]) -> None:
    for example in examples["charts"]["test"][:30]:
        if example.question.startswith("How many"):
            assert f"has {example.answer} bars" in example.statement
        if example.question.startswith("Which bar is the highest"):
            assert f"the {example.answer} one is the highest" in example.statement
