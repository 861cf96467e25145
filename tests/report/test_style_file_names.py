"""Names that make one file name: every figure has a file of its own, and the page shows the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.study_cells import StudyCell, cell, two_tasks

import hpa_lightning.report.write as write
from hpa_lightning.report.study_page import Block, write_page
from hpa_lightning.report.study_report import StudyGroup, write_study_report
from hpa_lightning.report.style import slugs
from hpa_lightning.report.templating import Image


def test_equal_parts_of_file_names_are_numbered_until_all_differ() -> None:
    assert slugs(["HPA", "HPA+", "b"]) == ["1-hpa", "2-hpa", "b"] and slugs([]) == []
    for labels in (["a", "a", "1-a"], ["2-a", "a", "a", "1 a"], ["方法一", "方法二", "run", "1-run"]):
        assert len(set(slugs(labels))) == len(labels)


def test_every_run_of_a_report_has_its_own_figures(write_run: Any, tmp_path: Path) -> None:
    names = ["DARE (0.1)", "DARE 0.1", "方法一", "方法二"]
    folders = [write_run(f"run{number}", name, harm=0.02 * number) for number, name in enumerate(names)]
    kept: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "save_figure", lambda figure, path: (kept.update({path.stem: figure}), path.touch()))
        paths = write.write_report(folders, tmp_path / "report")
    matrices = [name for name in paths if name.endswith("-matrix")]
    assert matrices == ["1-dare-0-1-matrix", "2-dare-0-1-matrix", "3-run-matrix", "4-run-matrix"]
    texts = [[text.get_text() for text in kept[name].axes[0].texts] for name in matrices]
    assert all(texts.count(one) == 1 for one in texts)
    assert "Dashed: the models that the runs started with, which differ." in paths["html"].read_text()


def cells(*conditions: str) -> list[StudyCell]:
    return [cell("a", seed, two_tasks(0.9, 0.8, 0.5, 0.4), one) for one in conditions for seed in (1, 2)]


def test_every_group_and_condition_of_a_study_has_its_own_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []

    def keep(figure: Any, path: Path) -> None:
        saved.append(path.name)
        path.touch()

    monkeypatch.setattr("hpa_lightning.report.study_report.save_figure", keep)
    groups = [
        StudyGroup("main", "M", "", cells("clean", "injected")),
        StudyGroup("main-injected", "I", "", cells("clean")),
        StudyGroup("条件", "C", "", cells("甲", "乙")),
        StudyGroup("方法", "D", "", cells("clean")),
    ]
    write_study_report(groups, tmp_path)
    assert len(saved) == len(set(saved)) and "main-clean-steps.png" in saved and "3-main-injected-steps.png" in saved


def test_two_figures_of_one_name_are_refused(tmp_path: Path) -> None:
    def blocks(figures: Path) -> list[Block]:
        return [Image(figures / "a.png", "", ""), Image(figures / "a.png", "", "")]

    with pytest.raises(ValueError, match=r"two figures of the page would be called a\.png"):
        write_page(blocks, tmp_path, "page", "Page", "")
