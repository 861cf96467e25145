"""The picture of two checkpoints: a panel for what there is to see, and none for what there is not."""

from __future__ import annotations

from typing import Any

import pytest

from hpa_lightning.drift.two_models import ModelDrift
from hpa_lightning.report.two_models_page import block_table, plot_two_models


def drift(**fields: Any) -> ModelDrift:
    of_none = {"sets": {}, "cosines": {}, "first": None, "last": None, "gap_degrees": None}
    measured = {"weights": [0.1, 0.3], "modules": {"q_proj": 0.2}, "layers": {}, "elsewhere": {}, "unmoved": [0.0, 0.0]}
    return ModelDrift(**{"before": "a", "after": "b", **of_none, **measured, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "titles"),
    [
        ({}, ["Weights of the linear layers"]),
        ({"unmoved": [0.0, 12.5]}, ["Weights of the linear layers", "Input columns"]),
        ({"kept": [0.0, 0.0]}, ["Weights of the linear layers", "Input columns"]),
        (
            {"cosines": {"harmful": [0.9, 0.8]}, "sets": {"harmful": 4}, "first": 1, "last": 1},
            ["Hidden states at the prompts' last token", "Weights of the linear layers"],
        ),
    ],
)
def test_a_panel_for_what_there_is(fields: dict[str, Any], titles: list[str]) -> None:
    figure = plot_two_models(drift(**fields))
    assert [ax.get_title(loc="left") for ax in figure.axes] == titles
    for ax in figure.axes:
        for line in ax.get_lines():
            assert max(line.get_ydata(), default=0) < ax.get_ylim()[1] and ax.get_ylim()[0] == 0


def test_the_table_names_the_safety_layers_and_the_columns() -> None:
    found = drift(cosines={"harmful": [0.9, 0.75]}, sets={"harmful": 4}, first=1, last=1, unmoved=[0.0, 12.5])
    assert block_table(found).columns == ["Block", "1 - cosine, harmful", "Weights", "Unmoved columns %"]
    assert block_table(found).rows == [["1 (safety)", "0.1000", "0.1000", "0.0"], ["2", "0.2500", "0.3000", "12.5"]]
