"""Mistakes in YAML are told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_errors import told


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"trainer": {"max_epoch": 3}}, "no setting 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ({"modle": "NanoModule"}, "no setting 'modle'; did you mean 'model'?"),
        (
            {"model": {"class_path": "hpa_lightning.modules.NanoModul"}},
            "model: no class 'hpa_lightning.modules.NanoModul'; did you mean 'hpa_lightning.modules.NanoModule'?",
        ),
        (
            {"model": {"class_path": "hpa_lightnin.modules.NanoModule"}},
            "No module named 'hpa_lightnin'; did you mean 'hpa_lightning.modules.NanoModule'?",
        ),
        (
            {"model": {"class_path": "NanoModule", "init_args": {"learning_rat": 1}}},
            "model: hpa_lightning.modules.NanoModule has no setting 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (
            {"model": {"class_path": "NanoModule", "init_args": {"lora": {"rnk": 8}}}},
            "model.lora: hpa_lightning.modules.LoraSettings has no setting 'rnk'; did you mean 'rank'?",
        ),
        (
            {"model": {"class_path": "NanoModule", "init_args": {"zzz": 8}}},
            "has no setting 'zzz'; it has learning_rate, lora, osf, steps",
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "hpa_lightning.callbacks.HarmonicFusion"}]}},
            "trainer.callbacks: no class 'hpa_lightning.callbacks.HarmonicFusion'; did you mean "
            "'hpa_lightning.callbacks.HarmoniousFusion'?",
        ),
        (
            {
                "trainer": {
                    "callbacks": [
                        {
                            "class_path": "hpa_lightning.callbacks.HarmoniousFusion",
                            "init_args": {"retention": {"p_mim": 5}},
                        }
                    ]
                }
            },
            "RetentionSettings has no setting 'p_mim'; did you mean 'p_min'?",
        ),
        (
            {
                "model": "NanoModule",
                "data": "hpa_lightning.data.nano.NanoDataModule",
                "trainer": {
                    "callbacks": [
                        {
                            "class_path": "hpa_lightning.callbacks.HarmoniousFusion",
                            "init_args": {"retention": {"p_min": 50.0}},
                        }
                    ]
                },
            },
            "p_min, p_max are 50.0, 15.0; expected 0 <= p_min <= p_max <= 100",
        ),
    ],
)
def test_mistakes_in_a_fits_yaml(
    config: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    assert expected in told(["fit", "--config", str(tmp_path / "fit.yaml")], capsys)
