"""Labels of patches are of what is drawn there."""

from __future__ import annotations

import random

import numpy as np

from hpa_lightning.data.nano.vision import HEADS, LANE_HEADS, labelled_picture


def test_every_picture_has_labels_of_known_classes_for_every_patch() -> None:
    seen: set[str] = set()
    for seed in range(150):
        image, labels = labelled_picture(random.Random(seed))
        assert image.ndim == 3 and image.dtype == np.uint8
        for name, classes in labels.items():
            assert classes.shape == (16,)
            known = 3 if name in LANE_HEADS else len(HEADS[name])
            assert classes.min() >= 0 and classes.max() < known, name
        seen |= set(labels)
    assert seen == {*HEADS, *LANE_HEADS}


def test_a_quadrant_with_a_shape_is_not_the_colour_of_one_without() -> None:
    for seed in range(60):
        image, labels = labelled_picture(random.Random(seed))
        if "quadrant colour" not in labels:
            continue
        half = image.shape[0] // 2
        for quadrant in range(4):
            rows, columns = (slice(half * part, half * (part + 1)) for part in divmod(quadrant, 2))
            patch = labels["quadrant colour"].reshape(4, 4)[2 * (quadrant // 2), 2 * (quadrant % 2)]
            spread = image[rows, columns].reshape(-1, 3).astype(float).std(axis=0).max()
            assert (spread > 20) == (patch > 0), (seed, quadrant, spread)
