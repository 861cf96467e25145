"""Scenes and charts of the general skills."""

from __future__ import annotations

import random

from hpa_lightning.data.nano.lexicon import COLOURS, SHAPES
from hpa_lightning.data.nano.skills import random_bars, random_scene


def test_scenes_and_charts_do_not_repeat_what_tells_their_parts_apart() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        scene, bars = random_scene(rng), random_bars(rng)
        for parts in zip(*scene.values(), strict=True):
            assert len(set(parts)) == len(scene)
        assert {colour for colour, _ in scene.values()} <= COLOURS.keys() and len(scene) <= 4
        assert {shape for _, shape in scene.values()} <= set(SHAPES)
        for parts in zip(*bars, strict=True):
            assert len(set(parts)) == len(bars)
