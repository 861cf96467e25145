"""Parts that are declared in YAML: of the package, and of a file of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.instruction_files import llava_row, write_rows

from hpa_lightning.cli import data_filter
from hpa_lightning.data import Record
from hpa_lightning.data.record import user_turn
from hpa_lightning.filtering import Assessment, PhraseFilter, declared_parts, filter_data

OWN = """\
from hpa_lightning.filtering import Finding


class LongPrompts:
    def __init__(self, most: int = 10) -> None:
        self.most = most

    def __call__(self, records):
        return [Finding.of(len(record.prompt) > self.most, label="long") for record in records]


def everything(records):
    return [Finding.of(True) for record in records]
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_filters_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_filters_of_mine"


def test_parts_of_the_package_and_of_ones_own(own_module: str) -> None:
    parts = declared_parts(
        {
            "words": {"class_path": "PhraseFilter", "init_args": {"phrases": ["bomb"], "match": "anywhere"}},
            "same": {"class_path": "hpa_lightning.filtering.PhraseFilter", "init_args": {"phrases": ["bomb"]}},
            "long": {"class_path": f"{own_module}.LongPrompts", "init_args": {"most": 3}},
            "all": f"{own_module}.everything",
        },
        "filter.yaml",
    )
    assert isinstance(parts["words"], PhraseFilter) and parts["words"].match == "anywhere"
    records = [Record("1", user_turn("Bombs")), Record("2", user_turn("No"))]
    harmful = {name: [one.assessment is Assessment.HARMFUL for one in part(records)] for name, part in parts.items()}
    assert harmful == {"words": [True, False], "same": [False, False], "long": [True, False], "all": [True, True]}


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (3, "part 'x' is 3; expected {class_path"),
        ({"init_args": {}}, "expected {class_path"),
        ({"class_path": "PhraseFilter", "args": {}}, "has the unknown keys ['args']"),
        ({"class_path": "PhraseFiltr"}, "there is no 'PhraseFiltr'; did you mean 'PhraseFilter'?"),
        ({"class_path": "Other"}, "there is no 'Other'; the parts here are "),
        ({"class_path": "no_such_module.X"}, "the module of 'no_such_module.X' cannot be imported"),
        ({"class_path": "pathlib.Path"}, "PosixPath cannot be called with records"),
        ({"class_path": "os.getcwd", "init_args": {"a": 1}}, "is not a class and takes no init_args"),
        ({"class_path": "PhraseFilter", "init_args": 3}, "init_args is 3"),
        ({"class_path": "PhraseFilter", "init_args": {"phrase": ["a"]}}, "phrase"),
        ({"class_path": "PhraseFilter", "init_args": {"phrases": 3}}, "phrases"),
        ({"class_path": "PhraseFilter", "init_args": {"phrases": ["a"], "match": "no"}}, "match is 'no'"),
    ],
)
def test_mistakes_name_the_part(declared: Any, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        declared_parts({"x": declared}, "filter.yaml")
    assert str(raised.value).startswith("filter.yaml, part 'x'") and said in str(raised.value)


def test_the_page_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its YAML is taken by the command, its own filter by the run."""
    page = (Path(__file__).parents[2] / "docs" / "data_filtering.md").read_text(encoding="utf-8")
    blocks = {kind: page.split(f"```{kind}\n")[1:] for kind in ("yaml", "python")}
    (tmp_path / "filter.yaml").write_text(next(one for one in blocks["yaml"] if "parts:" in one).partition("```")[0])
    options = data_filter.parser().parse_args(["--config", str(tmp_path / "filter.yaml")])
    parts = declared_parts(options.parts, "filter.yaml")
    assert [type(part).__name__ for part in parts.values()] == ["GuardFilter", "TextClassifier", "OpenNSFWFilter"]
    assert parts["toxicity"].labels == {"toxic": 0.8, "threat": 0.5}  # type: ignore[attr-defined]
    (tmp_path / "filters_of_the_page.py").write_text(blocks["python"][0].partition("```")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    own = declared_parts({"long": {"class_path": "filters_of_the_page.LongPrompts", "init_args": {"most": 10}}}, "x")
    rows = [llava_row(n, f"What{' else' * n}?", "A dog.", None) for n in range(4)]
    path = write_rows(tmp_path / "train.json", rows)
    outcome = filter_data(path, own, tmp_path / "out")
    assert outcome.counts.dropped == 2
    with pytest.raises(ValueError, match=r"parts.long.most: 10 there, 20 now"):
        changed = {"long": {"class_path": "filters_of_the_page.LongPrompts", "init_args": {"most": 20}}}
        filter_data(path, declared_parts(changed, "x"), tmp_path / "out")
