"""`callbacks/` at the top of the repository installs as `hpa_lightning.callbacks`, editable and as a wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(code: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_editable_install(tmp_path: Path) -> None:
    import hpa_lightning.callbacks

    location = Path(hpa_lightning.callbacks.__file__).resolve()
    assert location == (ROOT / "callbacks" / "__init__.py").resolve()
    code = "import importlib.util as u; print(u.find_spec('hpa_lightning.callbacks').origin)"
    assert Path(run(code, tmp_path)).resolve() == location


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    _copy_sources(source)  # setuptools writes build/ and *.egg-info beside the sources
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    return path


def _copy_sources(target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("hpa_lightning", "callbacks"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored, symlinks=True)
    (target / "studies").mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "studies/smol.yaml"):
        shutil.copy(ROOT / name, target / name)


def test_wheel_holds_every_module_and_the_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in (("hpa_lightning", ROOT / "hpa_lightning"), ("hpa_lightning/callbacks", ROOT / "callbacks")):
        for path in folder.rglob("*.py"):
            assert f"{package}/{path.relative_to(folder).as_posix()}" in names
    for path in (ROOT / "hpa_lightning/data/nano/weights").iterdir():
        assert f"hpa_lightning/data/nano/weights/{path.name}" in names
    for path in (ROOT / "hpa_lightning/smol").rglob("*.*"):
        if "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in names
    for path in (ROOT / "hpa_lightning/data/benchmarks").glob("*.yaml"):
        assert f"hpa_lightning/data/benchmarks/{path.name}" in names
    for path in (ROOT / "hpa_lightning/report/templates").iterdir():
        assert f"hpa_lightning/report/templates/{path.name}" in names
    assert any(name.endswith(".data/data/share/hpa_lightning/smol.yaml") for name in names)
    assert "hpa_lightning/py.typed" in names
    assert not any(name.startswith("callbacks/") for name in names)


def test_wheel_imports_and_makes_pages(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
import hpa_lightning.callbacks as c
from hpa_lightning.report import render_page
from hpa_lightning.results.run_results import RunResults
print(c.__file__)
print(c.FocusPartition.__module__)
page = render_page([RunResults([{"event": "run", "method": "M", "tasks": ["a"], "sets": []}])], {})
print(page.count("<table"), "prefers-color-scheme" in page)
"""
    where, module, found = run(code, tmp_path, PYTHONPATH=str(tmp_path / "site")).splitlines()
    assert Path(where).is_relative_to(tmp_path / "site") and module == "hpa_lightning.callbacks.focus_partition"
    assert found == "3 True"


SKIPPED = (
    "torch",
    "lightning",
    "torchmetrics",
    "transformers",
    "timm",
    "peft",
    "numpy",
    "PIL",
    "matplotlib",
    "tokenizers",
)
"""Libraries that mypy does not follow here: their types are not what is tested, and reading them takes a minute."""
WRONG = """
HarmoniousFusion(retention=3)  # type: ignore[arg-type]
CVITDataModule(tasks="a")  # type: ignore[arg-type]
LoraSettings(ranks=8)  # type: ignore[call-arg]
"""
"""Calls that are errors only where the package's types are seen; with `warn_unused_ignores`, the ignores are, else."""


def test_a_users_file_is_checked_against_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """Plain mypy in an environment of its own: no missing stubs, and the types are those of the package."""
    pytest.importorskip("mypy")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=300)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    (site,) = (tmp_path / "venv").rglob("site-packages")
    zipfile.ZipFile(wheel).extractall(site)  # which is what an installation of it without dependencies does
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(others))
    user = (ROOT / "tests/support/typed_plugin.py").read_text()
    (tmp_path / "user.py").write_text(f"{user}\n\nfrom hpa_lightning.modules import LoraSettings\n{WRONG}")
    skipped = ",".join(f"{name}.*" for name in SKIPPED)
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\npython_executable = {python}\nwarn_unused_ignores = true\ncheck_untyped_defs = true\n"
        f"[mypy-{skipped}]\nfollow_imports = skip\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--verbose", "user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert "stubs" not in done.stdout and "py.typed" not in done.stdout
    callbacks = site / "hpa_lightning" / "callbacks" / "__init__.py"
    assert callbacks.is_file() and str(callbacks) in done.stderr  # it is the wheel that was read
