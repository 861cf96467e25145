"""The front of safety and helpfulness over merging ratios: merge, evaluate, compare, pick."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from hpa_lightning.files import write_text
from hpa_lightning.fuse.adapted import is_adapter
from hpa_lightning.fuse.opening import stamps
from hpa_lightning.fuse.output import check_or_begin
from hpa_lightning.merge.checkpoint_merge import merge_checkpoints, open_models
from hpa_lightning.merge.folder_evaluation import FolderEvaluation
from hpa_lightning.merge.front_figures import Front, front_of
from hpa_lightning.merge.merge_settings import MergeSettings
from hpa_lightning.merge.question_scores import QuestionScores

TASK, SAFETY = "task", "safety"
_MOST = 1001


def parse_ratios(text: str) -> list[float]:
    """Read ``start:stop:step`` (both ends belong to it) or a list with commas.

    Raises:
        ValueError: anything else, or a ratio outside [0, 1].

    Example:
        >>> parse_ratios("0:1:0.25"), parse_ratios("0.1,0.3")
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0.1, 0.3])
    """
    try:
        parts = [Decimal(part) for part in text.replace(",", ":").split(":")]
        ratios = parts
        if ":" in text:
            start, stop, step = parts
            count = int((stop - start) / step) + 1 if step > 0 else 0
            ratios = [start + number * step for number in range(min(count, _MOST + 1))]
    except (InvalidOperation, ValueError, OverflowError):
        ratios = []
    if not ratios or len(ratios) > _MOST or not all(0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(
            f"--front is {text!r}; expected start:stop:step such as 0:1:0.1, or ratios in [0, 1] as 0.2,0.4."
        )
    return sorted({float(ratio) for ratio in ratios})


def merge_front(
    task: str | Path,
    safety: str | Path,
    output: str | Path,
    base: str | Path | None,
    ratios: Sequence[float],
    evaluation: str | Path,
    *,
    settings: MergeSettings,
    keep: Sequence[str] = (),
    budget: float | None = None,
    resamples: int = 10_000,
    keep_merged: bool = False,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> Front:
    """Merge and evaluate every ratio and both models, and write the front.

    ``OUTPUT/points`` gets the results and answers of each model, as `test` writes them; a point that is there is not
    evaluated again, so that an interrupted run continues, and a finer grid adds to a coarse one. Merged weights are
    removed after their evaluation. ``front.json``, ``front.html`` and ``front.png`` are written at the end, and with a
    budget the weights of the ratio picked, ``OUTPUT/merged-RATIO``.

    Args:
        task, safety, base, settings, keep, device: see :func:`merge_checkpoints`; the ratio is that of each point.
        output: folder to be made, or of the same merge, to continue.
        ratios: of the safety-tuned model.
        evaluation: YAML file of a `fit` or `test`.
        budget: highest mean attack success rate, a fraction.
        resamples: of the bootstrap.
        keep_merged: keep the weights of every ratio.
        say: gets the lines of progress.

    Raises:
        ValueError: what merging or the evaluation refuses; an output of another merge; a budget outside [0, 1].
    """
    if settings.weights is not None:
        raise ValueError("--weights fixes the share of both models; with --front the ratios set it.")
    if budget is not None and not 0.0 <= budget <= 1.0:
        raise ValueError(f"--budget is {budget}; expected the highest mean attack success rate, a fraction in [0, 1].")
    scoring = FolderEvaluation(evaluation)
    output = Path(output)
    models = open_models(task, safety, base, settings, keep)
    described = {key: value for key, value in dataclasses.asdict(settings).items() if key != "ratio"}
    files = [file for checkpoint in (models.task, *models.others.values()) for file in checkpoint.inputs()]
    run = {**described, "keep": list(keep), "version": version("hpa-lightning"), "inputs": stamps(files)}
    run |= {"evaluation": json.loads(json.dumps(scoring.config, default=str))}
    if output.exists() and any(output.iterdir()) and not (output / "run.json").is_file():
        raise ValueError(f"{output} exists and holds no front; choose another output, or remove it.")
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{output} is being worked on by another process; wait for it.") from error
    with lock:
        check_or_begin(output / "run.json", run, output)

        def merged(ratio: float, folder: Path, of: MergeSettings = settings) -> Path:
            if not folder.exists():
                needed = base if of.needs_base or is_adapter(task) or is_adapter(safety) else None
                given = dataclasses.replace(of, ratio=ratio)
                merge_checkpoints(task, safety, folder, needed, settings=given, keep=keep, device=device)
            return folder

        names = {TASK: 0.0, SAFETY: 1.0} | {f"{ratio:g}": ratio for ratio in ratios if not _is_end(settings, ratio)}
        todo = [name for name in names if not (output / "points" / name).is_dir()]
        say(f"{len(names)} models to compare, {len(names) - len(todo)} evaluated already.")
        started = time.monotonic()
        for number, name in enumerate(todo):
            plain = {TASK: Path(task), SAFETY: Path(safety)}.get(name)
            temporary = output / f"merged-{names[name]:g}" if plain is None else output / f"whole-{name}"
            if plain is None:
                folder = merged(names[name], temporary)
            elif is_adapter(plain):
                folder = merged(names[name], temporary, MergeSettings("linear"))
            else:
                folder = plain
            scoring.run(folder, output / "points" / name)
            QuestionScores.from_folder(output / "points" / name)  # what cannot be compared is reported at once
            if folder == temporary and not (keep_merged and plain is None):
                shutil.rmtree(temporary)
            spent = time.monotonic() - started
            left = spent / (number + 1) * (len(todo) - number - 1)
            say(f"{name}: evaluated. {number + 1} of {len(todo)} done, about {left / 60:.0f} min left.")
        scores = {name: QuestionScores.from_folder(output / "points" / name) for name in names}
        front = front_of(scores, names, budget, resamples)
        if front.picked is not None and front.picked not in (TASK, SAFETY):
            merged(names[front.picked], output / f"merged-{names[front.picked]:g}")
        write_text(output / "front.json", json.dumps(front.as_json(run), indent=1) + "\n")
        from hpa_lightning.report.front_page import write_front_page  # matplotlib

        write_front_page(front, settings.method, output)
        return front


def _is_end(settings: MergeSettings, ratio: float) -> bool:
    return dataclasses.replace(settings, ratio=ratio).is_endpoint()
