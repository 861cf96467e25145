"""How hard the code is to read and to extend, in figures.

    python benchmarks/house.py                  # of this working tree
    python benchmarks/house.py --tree FOLDER    # of another one, for example `git archive COMMIT | tar -x -C FOLDER`

- Files and lines from a method's task end to its weights, for `HarmoniousFusion` on a small model, with LoRA and with
  full tuning: those that stand on the stack between `on_task_end` and the functions that compute a step of Algorithm 1
  (what a reader follows), and all of which some function runs there, calibration apart, with the lines of code in
  these functions.
- Places outside `functional/` that compute one of HPA's steps.
- Classes of the package in the MRO of each public callback; constructors that hide their arguments.
- Abstract methods of the handle on a tuned layer: what a new method might have to implement twice.
- Import cycles at import time, the packages around a module counted; file names that occur more than once.
- Modules of which `tests/` has a mirror: a file of tests in the same folder under the same name. Not counted are
  modules that define no function and no class with a method, such as tables of words.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEPS = {
    *("column_energy", "lora_column_energy", "column_focus"),
    *("partition_columns", "retained_columns", "balance_coefficient"),
    *("projection_scale", "fuse", "lora_fuse_"),
}
"""What `functional/` calls the parts of Algorithm 1."""
CALIBRATION = (
    *("calibrat", "hessian", "input_recorder", "block_calls", "packed_triangle", "inverse_", "arena"),
    *("batches", "running", "safety_data"),
    *("_panels", "_inverse", "_shelf"),  # names of older trees
)
"""Beginnings of the names of files that calibrate."""


def modules(tree: Path) -> dict[str, Path]:
    """Dotted name -> file, of the package and of `callbacks/`, which installs as `hpa_lightning.callbacks`."""
    found = {}
    for folder, prefix in ((tree / "hpa_lightning", "hpa_lightning"), (tree / "callbacks", "hpa_lightning.callbacks")):
        for file in sorted(folder.rglob("*.py")):
            inner = file.relative_to(folder).with_suffix("").parts
            found[".".join((prefix, *inner)).removesuffix(".__init__")] = file
    return found


def imports(name: str, file: Path, known: set[str]) -> Iterator[str]:
    """Modules of the package that are imported when this one is; not those for type checkers or inside functions."""
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = inner if inner in known else node.module
                if target in known and target != name:
                    yield target
        waiting.extend(ast.iter_child_nodes(node))


def import_graph(found: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> what runs when it is imported, next to it: the modules that it names, and the packages around them.

    Importing `a.b.c` runs `a` and `a.b` first. The packages around the importing module itself have begun to run
    already, so that a package may import its modules, and they each other.
    """
    graph = {}
    for name, file in found.items():
        named = set(imports(name, file, set(found)))
        around = {parent for other in named for parent in parents(other) if parent in found}
        graph[name] = (named | (around - set(parents(name)))) - {name}
    return graph


def parents(name: str) -> list[str]:
    """The packages around a module, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def repeated_names(found: dict[str, Path]) -> dict[str, int]:
    """File names that occur more than once in the package -> how often; `__init__.py` apart."""
    names = Counter(file.name for file in found.values() if file.name != "__init__.py")
    return {name: count for name, count in names.items() if count > 1}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another (strongly connected, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in index:
            visit(node)
    return groups


def mirror(name: str) -> Path:
    """Where the tests of a module stand, from `tests/` on."""
    *folders, last = name.removeprefix("hpa_lightning.").split(".")
    return Path(*folders, f"test_{last.lstrip('_')}.py")


def has_behaviour(file: Path) -> bool:
    """Whether a module does anything: it defines a function, or a class with a method."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in ast.walk(tree))


def mirrored(tree: Path, found: dict[str, Path]) -> dict[str, bool]:
    """Module -> whether it has a mirror in `tests/`; of all that have a behaviour of their own."""
    wanted = [name for name, file in found.items() if file.stem not in ("__init__", "__main__") and has_behaviour(file)]
    return {name: (tree / "tests" / mirror(name)).is_file() for name in wanted}


def without_counterpart(tree: Path, found: dict[str, Path]) -> list[Path]:
    """Files of tests that are named after nothing in the package, from `tests/` on.

    One is named after a module or a package, alone or with a behaviour behind it: `test_projection.py` and
    `test_projection_in_the_step.py` test `projection.py`.
    """
    known = {folder: [] for folder in {mirror(name).parent for name in found}}  # type: dict[Path, list[str]]
    for name in found:
        known[mirror(name).parent].append(mirror(name).stem)
    files = sorted(file.relative_to(tree / "tests") for file in (tree / "tests").rglob("test_*.py"))
    return [
        file
        for file in files
        if not any(file.stem == name or file.stem.startswith(f"{name}_") for name in known.get(file.parent, ()))
    ]


def steps_outside(found: dict[str, Path]) -> list[str]:
    """Modules outside `functional/` that call a step of HPA by its name."""
    outside = []
    for name, file in found.items():
        if ".functional" in name:
            continue
        calls = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        for call in calls:
            function = call.func
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            owner = getattr(function.value, "id", "") if isinstance(function, ast.Attribute) else ""
            named = isinstance(function, ast.Attribute)
            if called in STEPS and (owner == "F" if named else called != "fuse"):
                outside.append(name)
                break
    return outside


# -- what only a run can tell, in a process of its own ---------------------------------------------------------------


def first_of(*names: str) -> Any:
    """The first of these modules that there is; the last ones are names of older trees."""
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ModuleNotFoundError(f"none of {names}")


def trace() -> None:
    """Print, as lines `key value`, what the package on `sys.path` says of itself."""
    import lightning as L
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader

    import hpa_lightning.callbacks as package
    from hpa_lightning.callbacks import baselines

    adapters = first_of("hpa_lightning.modules.lora", "hpa_lightning.modules.adapters")

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + self.down_proj(torch.relu(self.up_proj(hidden)))

    class Module(L.LightningModule):
        def __init__(self, lora: bool) -> None:
            super().__init__()
            self.model = nn.Module()
            self.blocks = self.model.layers = nn.ModuleList(Block() for _ in range(2))
            if lora:
                adapters.add_lora(self.model, adapters.LoraSettings(rank=2))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            for block in self.blocks:
                batch = block(batch)
            return batch.square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)

    ran: dict[str, set[int]] = {}
    path: set[str] = set()
    computing: set[str] = set()

    class Traced(package.HarmoniousFusion):
        def on_task_end(self, *arguments: Any) -> None:
            def see(frame: Any, event: str, _: Any) -> None:
                if event != "call":
                    return
                file = frame.f_code.co_filename
                ran.setdefault(file, set()).update(line for *_, line in frame.f_code.co_lines() if line)
                if frame.f_code.co_name in STEPS and "functional" in file:
                    computing.add(file)
                    caller = frame.f_back
                    while caller is not None and caller.f_code is not Traced.on_task_end.__code__:
                        path.add(caller.f_code.co_filename)
                        caller = caller.f_back

            sys.setprofile(see)
            try:
                super().on_task_end(*arguments)
            finally:
                sys.setprofile(None)

    for lora in (True, False):
        data: Any = DataLoader(torch.randn(12, 5, 8), batch_size=4)  # type: ignore[arg-type]
        fusion = Traced(safety_data=data, calibration=package.CalibrationSettings(safety_samples=4, task_samples=4))
        with tempfile.TemporaryDirectory() as folder:
            quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
            trainer = L.Trainer(
                accelerator="cpu",
                max_epochs=1,
                callbacks=[fusion],
                default_root_dir=folder,
                enable_model_summary=False,
                **quiet,  # type: ignore[arg-type]
            )
            trainer.fit(Module(lora), data)
    here = Path(inspect.getfile(package)).parent
    for key, found in (("path", path - computing), ("file", set(ran))):
        for file in map(Path, sorted(found)):
            known = (here in file.parents or "hpa_lightning" in file.parts) and file.suffix == ".py"
            if known and not file.name.startswith(CALIBRATION) and "site-packages" not in file.parts:
                whole = len(file.read_text(encoding="utf-8").splitlines())
                print(key, file.name, whole if key == "path" else len(ran[str(file)]))
    for owner in (package, baselines):
        for name in owner.__all__:
            kind = getattr(owner, name)
            if inspect.isclass(kind) and issubclass(kind, L.Callback):
                parameters = inspect.signature(kind).parameters.values()
                hidden = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
                ours = [base for base in kind.__mro__ if base.__module__.startswith("hpa_lightning")]
                print("mro", name, len(ours), int(hidden))
    handles = first_of("hpa_lightning.modules.tuned_linear", "hpa_lightning.modules.linears")
    print("abstract", *sorted(handles.TunedLinear.__abstractmethods__))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="root of a source tree")
    parser.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trace:
        trace()
        return
    found = modules(options.tree)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "hpa_lightning"
        package.mkdir()
        for item in (options.tree / "hpa_lightning").iterdir():
            (package / item.name).symlink_to(item.resolve())
        if not (package / "callbacks").exists():
            (package / "callbacks").symlink_to((options.tree / "callbacks").resolve())
        told = subprocess.run(
            [sys.executable, __file__, "--trace"],
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    lines = [line.split() for line in told.splitlines()]
    path, run = ([(line[1], int(line[2])) for line in lines if line[0] == key] for key in ("path", "file"))
    mro = {line[1]: int(line[2]) for line in lines if line[0] == "mro"}
    hidden = [line[1] for line in lines if line[0] == "mro" and line[3] == "1"]
    (abstract,) = [line[1:] for line in lines if line[0] == "abstract"]
    mirrors = mirrored(options.tree, found)
    has, of = sum(mirrors.values()), len(mirrors)
    twice = repeated_names(found)
    outside = steps_outside(found)
    print("| | |\n|---|---|")
    print(
        "| files, lines from the task end of `HarmoniousFusion` to the functions that compute its steps | "
        f"{len(path)}, {sum(length for _, length in path)} |"
    )
    print(
        "| files of which some function runs between its task end and its weights, calibration apart; lines of these "
        "functions | "
        f"{len(run)}, {sum(length for _, length in run)} |"
    )
    print(f"| places outside `functional/` that compute a step of HPA | {len(outside)} |")
    print(f"| classes in the MRO of `HarmoniousFusion` | {mro['HarmoniousFusion']} |")
    print(f"| most in the MRO of a public callback | {max(mro.values())} ({max(mro, key=mro.__getitem__)}) |")
    print(f"| constructors that hide their arguments | {len(hidden)} |")
    print(f"| abstract methods of a tuned layer's handle | {len(abstract)} |")
    print(f"| import cycles | {len(cycles(import_graph(found)))} |")
    print(f"| modules with a behaviour of their own, mirrored by tests | {has} of {of} |")
    print(f"| file names that occur more than once | {len(twice)} |")
    print(f"\npath: {', '.join(name for name, _ in path)}\nruns: {', '.join(name for name, _ in run)}")
    print(f"steps outside: {', '.join(outside) or 'none'}")
    print(f"abstract: {', '.join(abstract)}\ntwice: {', '.join(sorted(twice)) or 'none'}")
    print(f"without a mirror: {', '.join(name for name, has_one in mirrors.items() if not has_one) or 'none'}")


if __name__ == "__main__":
    main()
