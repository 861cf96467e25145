"""The order of the house: names, imports, and where tests and their helpers stand."""

import ast
import importlib.util
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

import hpa_lightning.callbacks
import hpa_lightning.report

ROOT = Path(__file__).parents[1]
ACROSS = {
    "callbacks/test_method_guarantees.py": "what every method of the registry must do",
    "callbacks/test_plugin.py": "a method from elsewhere under the same guarantees",
    "callbacks/test_signatures.py": "constructors and docstrings of all public callbacks",
    "metrics/test_distributed.py": "every metric over several processes",
    "test_case_against.py": "studies/case_against.py and what belongs to it",
    "test_conftest.py": "what every test goes through",
    "test_cost.py": "the scripts of benchmarks/ at small sizes",
    "test_examples.py": "every file of examples/",
    "test_figures_in_pages.py": "tables of methods in README.md and docs/ against the archived runs",
    "test_forked_programs.py": "tests/support/forked_programs.py",
    "test_fuzz.py": "broken inputs for every reader",
    "test_fuzz_functional.py": "any tensors for every function of the core",
    "test_growth.py": "benchmarks/reliability: memory over records and tasks",
    "test_house.py": "this file",
    "test_kills.py": "benchmarks/reliability: killed programs",
    "test_packaging.py": "the wheel and the editable install",
    "test_studies.py": "the scripts of studies/",
}
"""Files of tests that are named after nothing in the package, and what they test."""


@pytest.fixture(scope="module")
def house() -> Any:
    """The script that counts."""
    spec = importlib.util.spec_from_file_location("house", ROOT / "benchmarks" / "house.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def found(house: Any) -> dict[str, Path]:
    return house.modules(ROOT)


def test_a_file_name_says_one_thing(house: Any, found: dict[str, Path]) -> None:
    assert house.repeated_names(found) == {}


def test_imports_run_one_way(house: Any, found: dict[str, Path]) -> None:
    assert house.cycles(house.import_graph(found)) == []


def test_a_cycle_through_the_package_around_a_module_is_one(house: Any, tmp_path: Path) -> None:
    """`b` needs `a.y`, for which `a/__init__.py` runs first, which needs `a.x`, which needs `b`."""
    package = tmp_path / "hpa_lightning"
    contents = {
        "a/__init__.py": "from hpa_lightning.a.x import X",
        "a/x.py": "from hpa_lightning.b import Y",
        "a/y.py": "Y = 1",
        "b.py": "from hpa_lightning.a.y import Y",
        "c.py": "def late():\n    from hpa_lightning.a.x import X",
        "__init__.py": "",
    }
    for name, content in contents.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    found = house.modules(tmp_path)
    assert house.cycles(house.import_graph(found)) == [["hpa_lightning.a", "hpa_lightning.a.x", "hpa_lightning.b"]]
    (package / "b.py").write_text("Y = 1")
    assert house.cycles(house.import_graph(found)) == []


def test_every_file_of_tests_is_named_after_what_it_tests(house: Any, found: dict[str, Path]) -> None:
    across = {str(file) for file in house.without_counterpart(ROOT, found)}
    assert across == ACROSS.keys(), "name it after a module or a package, alone or with a behaviour behind it"


def test_most_modules_have_tests_of_their_own(house: Any, found: dict[str, Path]) -> None:
    mirrors = house.mirrored(ROOT, found)
    assert sum(mirrors.values()) >= 0.8 * len(mirrors), [name for name, has in mirrors.items() if not has]


def test_helpers_of_tests_stand_in_one_folder() -> None:
    elsewhere = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "tests").rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts and "support" not in file.parts
        if not (file.name.startswith("test_") and file.suffix == ".py") and file.name != "conftest.py"
    ]
    assert elsewhere == [], "move them to tests/support/"


def test_no_file_of_tests_imports_another_one() -> None:
    """What two of them need is a helper; pytest would import the file twice."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                parts = (node.module or "").split(".")
                assert node.level == 0 and not any(part.startswith(("test_", "conftest")) for part in parts), file


def test_documents_and_scripts_name_files_of_tests_that_exist() -> None:
    places = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.*"), ROOT / "Makefile"]
    for place in places:
        if place.suffix in (".md", ".py", ".sh", "") and place.name != "CHANGELOG.md":
            for name in re.findall(r"\btests/[\w/]+\.py\b", place.read_text(encoding="utf-8")):
                assert (ROOT / name).is_file(), (place.name, name)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        repeated = (f"{name}-{number}" if number else name for number in itertools.count())
        found.add(next(anchor for anchor in repeated if anchor not in found))
    return found


def dead_links(page: Path) -> list[str]:
    """Links of a page, within the repository, to files and headings that are not there."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not re.match(r"[a-z]+:", link) and not (
            target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors(target))
        ):
            dead.append(link)
    return dead


def test_links_of_documents_lead_somewhere(tmp_path: Path) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert {page.name: links for page in pages if (links := dead_links(page))} == {}
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`: [c](d.md)\n## Twice\n## Twice\n[1](#a-b-c) [2](#twice-1) [3](#no) [4](no.md) [5](https://a.b)\n"
    )
    assert dead_links(page) == ["d.md", "#no", "no.md"]


def test_report_imports_no_model_code() -> None:
    own = ("report", "table", "results", "files", "redaction", "metrics", "values")
    allowed = tuple(f"hpa_lightning.{name}" for name in own)
    forbidden = ("torch", "lightning", "transformers", "peft", "timm")
    for file in Path(hpa_lightning.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split(".")[0] not in forbidden, (file.name, name)
                assert not name.startswith("hpa_lightning") or name.startswith(allowed), (file.name, name)
                assert name != "matplotlib.pyplot", file.name


def test_data_imports_no_report() -> None:
    package = Path(hpa_lightning.report.__file__).parent.parent
    for file in [*(package / "data").rglob("*.py"), package / "table.py"]:
        assert not re.search(r"^\s*(from|import) hpa_lightning\.report", file.read_text(), re.M), file
