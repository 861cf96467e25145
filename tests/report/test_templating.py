"""Markup stands in templates alone, and what comes from files stays text."""

import ast
import json
import re
from pathlib import Path

from markupsafe import escape
from support.html_structure import HOSTILE, Structure

import hpa_lightning.callbacks
import hpa_lightning.report
from hpa_lightning.report import write_report
from hpa_lightning.results.result_file import ResultWriter


def with_text(run: Path, text: str) -> Path:
    """The run with a text in the place of every name, command, version and source."""
    writer = ResultWriter(run / "results.jsonl")
    lines = [json.loads(line) for line in writer.path.read_text().splitlines()]
    names = {name: f"{name} {text}" for name in ("AD", "figstep", "xstest")}
    for line in lines:
        for key in ("after", "set", "task"):
            line[key] = names.get(line.get(key), line.get(key))
        if line["event"] == "score":
            line |= {"judge": text, "decoding": {text: text}, "empty": 1, "cut": 0}
    run_event = lines[0]
    run_event["tasks"] = [names.get(task, task) for task in run_event["tasks"]]
    run_event["sets"] = [{**item, "name": names.get(item["name"], item["name"])} for item in run_event["sets"]]
    source = {"source": text, "ratio": 0.5, "indices": {text: [1]}}
    data = {"harmful_calibration": source, "harmful_injection": source}
    run_event |= {"method": text, "command": text, "commit": text, "versions": {text: text}, "data": data}
    rates = {"budget": 0.1, "attack_success_rate": 0.4, "kept_attack_success_rate": 0.1, "raised_by": None}
    lines.append({"event": "gate", "step": 0, "task": text, "action": text, **rates})
    writer.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_texts_of_result_files_change_nothing_but_the_text_of_a_page(write_run, tmp_path: Path) -> None:
    pages = {}
    for name, text in (("plain", "harmless"), ("hostile", HOSTILE)):
        runs = [with_text(write_run(f"{name}-{seed}", seed=seed), text) for seed in (0, 1)]
        pages[name] = write_report(runs, tmp_path / f"report-{name}", title=text)["html"].read_text()
    assert HOSTILE not in pages["hostile"] and pages["hostile"].count(str(escape(HOSTILE))) > 50
    plain, hostile = Structure(pages["plain"]), Structure(pages["hostile"])
    assert hostile.tags == plain.tags and ("script",) not in hostile.tags
    assert all(address.startswith("data:image/png;base64,") for address in hostile.addresses)


MARKUP = re.compile(
    r"</?(a|article|b|body|br|code|dd|details|div|dl|dt|em|figcaption|figure|form|h[1-6]|head|header|html|i|img|input|"
    r"label|li|link|main|meta|ol|option|p|script|section|select|span|strong|style|summary|table|tbody|td|th|thead|title|"
    r"tr|ul)\b[^<]*>"
)


def test_markup_is_written_in_templates_alone() -> None:
    """No HTML in Python, nothing that reaches a page unescaped, and no page without its own file."""
    package = Path(hpa_lightning.report.__file__).parent.parent
    for file in [*package.rglob("*.py"), *Path(hpa_lightning.callbacks.__file__).parent.rglob("*.py")]:
        tree = ast.parse(file.read_text())
        owners = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        documented = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, owners)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in documented:
                assert not MARKUP.search(node.value), (file, node.lineno, node.value)
            assert not (isinstance(node, ast.Name) and node.id == "Markup"), file
            assert not (isinstance(node, ast.ImportFrom) and node.module == "html" and node.names[0].name == "escape")
    templates = list((package / "report" / "templates").iterdir())
    assert len(templates) > 5
    for template in templates:
        assert not re.search(r"\|\s*safe\b|autoescape", template.read_text()), template
