"""No digit is in two splits."""

from hpa_lightning.data.nano.examples import SPLITS
from hpa_lightning.data.nano.splits import digit_indices


def test_no_digit_is_in_two_splits() -> None:
    groups = [digit_indices("skills", "train"), *(digit_indices("task", split) for split in SPLITS)]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 1797
    assert digit_indices("skills", "test") == digit_indices("task", "test")
