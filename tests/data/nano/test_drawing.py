"""Drawn digits are real ones."""

import random

import numpy as np
from sklearn.datasets import load_digits

from hpa_lightning.data.nano.drawing import draw_digit, real_digits


def test_the_digits_are_those_of_scikit_learn() -> None:
    digits = load_digits()
    pictures, labels = real_digits()
    assert np.array_equal(pictures, digits.images)
    assert np.array_equal(labels, digits.target)
    # Every third pixel of the enlarged digit is one of the original's, its brightness grows with the ink.
    drawn = draw_digit(random.Random(0), 5)[4:28:3, 4:28:3].astype(float).mean(-1)
    assert np.corrcoef(drawn.ravel(), digits.images[5].ravel())[0, 1] > 0.999
