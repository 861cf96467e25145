"""The order of the house: what imports what."""

import ast
import re
from pathlib import Path

import hpa_lightning.callbacks
import hpa_lightning.report


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
