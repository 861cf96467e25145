"""Letters of options in answers."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hpa_lightning.metrics import option_accuracy
from hpa_lightning.metrics.tasks.options import named_options

cases = settings(deadline=None, derandomize=True, database=None, max_examples=200)

TEMPLATES = ["{}", "({})", "{}.", "{}) it", "{}. it", "The answer is {}.", "Answer: {}", "option {}"]

LETTERS = st.sampled_from("ABCDEFGH")


@cases
@given(LETTERS, LETTERS, st.sampled_from(TEMPLATES))
def test_one_letter_is_right_where_it_is_the_right_one(named: str, right: str, template: str) -> None:
    assert float(option_accuracy([template.format(named)], [(right,)])) == float(named == right)


@cases
@given(st.lists(LETTERS, min_size=2, max_size=4, unique=True), st.sampled_from([" or ", ", ", " and ", "/", "; "]))
def test_a_list_of_letters_is_never_right(letters: list[str], joint: str) -> None:
    for text in (joint.join(letters), "The answer is " + joint.join(letters), joint.join(f"({x})" for x in letters)):
        assert float(option_accuracy([text], [(letters[0],)])) == 0.0
        assert len(named_options(text)) != 1


@cases
@given(st.text(max_size=30))
def test_any_text_is_read(text: str) -> None:
    assert all(len(letter) == 1 and "A" <= letter <= "Z" for letter in named_options(text))
