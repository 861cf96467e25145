"""What the stages say about a picture is told from a task's questions about it."""

import pytest
from support.smol_inputs import tiny_find

from hpa_lightning.smol.picture_sentences import SAID, picture_sentence
from hpa_lightning.smol.task_examples import TASKS

IN_WORDS = " Answer in one word, in small letters."


@pytest.mark.parametrize(
    ("task", "asked", "sentence"),
    [
        ("clothes", [("Which?", "ankle boot")], "This is a grey picture of an ankle boot."),
        ("clothes", [("Which?", "trousers")], "This is a grey picture of trousers."),
        ("captions", [("Describe.", "A badger.")], "A badger."),
        ("digits", [("Which digit?", "digit = 7")], "Somebody wrote the digit 7 by hand."),
        ("words", [("Which word?", "It reads leaf")], 'The word "leaf" stands in the picture.'),
        (
            "shapes",
            [(f"What color is the circle?{IN_WORDS}", "teal"), (f"Is there a red shape?{IN_WORDS}", "no")],
            "The picture shows a teal circle.",
        ),
        ("shapes", [(f"Is there a red shape?{IN_WORDS}", "no")], None),
        ("shapes", [(f"What color is the shape?{IN_WORDS}", "red")], None),
        ("shapes", [(f"What shape is present?{IN_WORDS}", "circle")], None),
        ("choice", [("Which text fits?", "B")], None),
    ],
)
def test_sentences(task: str, asked: list[tuple[str, str]], sentence: str | None) -> None:
    assert picture_sentence(task, asked) == sentence


def test_they_are_the_sentences_that_the_stages_have(tmp_path_factory: pytest.TempPathFactory) -> None:
    find = tiny_find(tmp_path_factory.mktemp("inputs"))
    for name in SAID:
        if name == "clothes":
            continue  # the miniature inputs have none
        asked: dict[str, list[tuple[str, str]]] = {}
        sentences = {}
        for example in TASKS[name].examples(find)["test"]:
            asked.setdefault(example.picture, []).append((example.question, example.answer))
            sentences[example.picture] = example.statement
        told = {picture: picture_sentence(name, questions) for picture, questions in asked.items()}
        assert sum(sentence is not None for sentence in told.values()) >= len(told) / 2, name
        assert all(sentence in (None, sentences[picture]) for picture, sentence in told.items()), name
