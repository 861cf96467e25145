"""The model card of an exported checkpoint: what was tuned, on which data, how, and what it did to safety."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hpa_lightning.exporting.source import TunedCheckpoint
from hpa_lightning.redaction import masked_values
from hpa_lightning.results.events import ScoreEvent
from hpa_lightning.table import Table

_TITLES = {"task": "task", "safety": "safety", "over_refusal": "over-refusal", "helpfulness": "helpfulness"}
_MEASURES = {"task": "score", "safety": "attack success", "over_refusal": "refused", "helpfulness": "score"}
_NOT_OF_THE_METHOD = ("TaskEvaluation", "ModelCheckpoint", "LearningRateMonitor", "SaveRunConfig", "RichProgressBar")
_PATH = re.compile(r"^(?:~|\.{0,2}/|/|[A-Za-z]:\\)\S*$")


def model_card(source: TunedCheckpoint, base: str | None, model_type: str, adapter: bool, sees_images: bool) -> str:
    """Write the card as Markdown with the header that the Hugging Face hub reads.

    Secrets of the configuration are masked, and of paths on this machine the last part is left.

    Args:
        source: the checkpoint and its run.
        base: name or folder of the model that was tuned, if it is known.
        model_type: as in the model's configuration.
        adapter: the folder holds a peft adapter, not a whole model.
        sees_images: whether the model reads images.
    """
    hub_name = base if base and not Path(base).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None
    header: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text" if sees_images else "text-generation",
        "tags": ["hpa-lightning", "continual-learning", "safety"] + (["lora"] if adapter else []),
    }
    if hub_name:
        header["base_model"] = hub_name
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {_title(source, base, model_type)}",
        _what(source, base, model_type, adapter),
        "## Safety and tasks, before and after\n\n" + _scores(source),
        "## Data\n\n" + _data(source),
        "## Method and settings\n\n" + _settings(source),
        "## Limits\n\n" + _limits(source),
    ]
    return "\n\n".join(parts) + "\n"


def _title(source: TunedCheckpoint, base: str | None, model_type: str) -> str:
    name = Path(base).name if base else model_type
    return f"{name}, tuned with {source.results.about.method or 'hpa-lightning'}" if source.results else name


def _what(source: TunedCheckpoint, base: str | None, model_type: str, adapter: bool) -> str:
    kind = "A LoRA adapter (peft)" if adapter else "A whole model (transformers)"
    of = f" on `{_short(base)}`" if base else ""
    text = f"{kind} of the architecture `{model_type}`{of}, tuned with hpa-lightning"
    state = source.state
    if state is None:
        return f"{text}. Its checkpoint does not say how much of the task stream it has seen."
    tasks = f"{state['finished_tasks']} of {state['tasks']}" if state["tasks"] else str(state["finished_tasks"])
    text += f" on a stream of tasks: {tasks} tasks are finished."
    if state["open_task"] is not None:
        text += f" It was saved within task {state['open_task']} ({state['task']!r})."
    if source.unfinished:
        text += (
            f" **These weights are not the method's result**: what {', '.join(state['pending'])} does to them at the "
            "task's end has not been done."
        )
    return text


def _scores(source: TunedCheckpoint) -> str:
    run = source.results
    if run is None or not run.steps:
        return "Nothing was measured in this run. What the tuning did to safety is not known: measure it before use."
    step = max(run.steps) if source.step is None else source.step
    if step not in run.steps:
        return (
            f"Nothing was measured after task {step} of this run; the steps that were are {run.steps}. What the tuning "
            "did to safety is not known: measure it before use."
        )
    counts = {(event.step, event.set): event.n for event in run.events(ScoreEvent)}
    rows: list[list[Any]] = []
    for item in run.sets:
        kind, name = item["kind"], item["name"]
        before, after = (100 * run.scores(at, kind)[name] for at in (-1, step))
        rows.append([name, _TITLES[kind], _MEASURES[kind], before, after, after - before, counts.get((step, name))])
    rows = [[*row[:-1], "not recorded" if row[-1] is None else int(row[-1])] for row in rows]
    table = Table(["Set", "Kind", "Measure", "Before %", "After %", "Change", "n"], rows).markdown()
    judges = sorted({event.judge for event in run.events(ScoreEvent) if event.judge} or {run.about.judge or ""})
    judged = f" Refusals were judged by {', '.join(filter(None, judges))}." if any(judges) else ""
    measured = "the last score"
    if source.step is not None:
        measured = f"task {step} ({run.tasks[step]!r})" if step >= 0 else "no task"
    note = " The weights were tuned further after this was measured." if source.state and _open(source) else ""
    return (
        f"{table}\n\nBefore: the aligned model, before the first task. After: {measured}. Of attack success and "
        f"refused lower is better, of scores higher.{judged}{note}"
    )


def _open(source: TunedCheckpoint) -> bool:
    return source.state is not None and source.state["open_task"] is not None


def _data(source: TunedCheckpoint) -> str:
    run, data = source.results, source.config.get("data")
    lines = []
    if run is not None:
        done = None if source.step is None else source.step + 1
        lines.append("Tasks, in order: " + ", ".join(f"`{name}`" for name in run.tasks[:done]) + ".")
    if data:
        lines.append(_yaml(data))
    return "\n\n".join(lines) or "The run left no record of its data."


def _settings(source: TunedCheckpoint) -> str:
    callbacks = (source.config.get("trainer") or {}).get("callbacks") or []
    found = [item for item in callbacks if isinstance(item, Mapping) and not _name(item).endswith(_NOT_OF_THE_METHOD)]
    lines = []
    if found:
        lines.append("Method: " + ", ".join(f"`{_name(item)}`" for item in found) + ".")
    kept = {"seed_everything": source.config.get("seed_everything"), "model": source.config.get("model")}
    settings = {key: value for key, value in kept.items() if value is not None}
    if found:
        settings["callbacks"] = found
    if source.config:
        lines.append(_yaml(settings))
    elif hyperparameters := source.content.get("hyper_parameters"):
        lines.append(_yaml(json.loads(json.dumps(dict(hyperparameters), default=str))))
    if source.results is not None:
        versions = source.results.about.versions or {}
        commits = ", ".join(source.results.commits)
        named = ", ".join(f"{name} {value}" for name, value in versions.items())
        lines.append(f"Made with {named or 'versions that were not recorded'}; commit {commits}.")
    return "\n\n".join(lines) or "The run left no record of its settings."


def _limits(source: TunedCheckpoint) -> str:
    run = source.results
    kept = "No safety set was scored, so this card says nothing on safety."
    if run is not None and run.names("safety"):
        kept = (
            "The safety sets above are samples: a low rate of attack success on them is no promise for other attacks, "
            "languages or pictures."
        )
    return f"{kept} The license and the limits of the base model and of the data hold for this one too."


def _name(callback: Mapping[str, Any]) -> str:
    return str(callback.get("class_path", "")).rpartition(".")[2]


def _short(text: str) -> str:
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if _PATH.match(text) or Path(text).exists() else text


def _without_places(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_places(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_places(item) for item in node]
    return _short(node) if isinstance(node, str) and len(node) < 4096 and "\n" not in node else node


def _yaml(node: Any) -> str:
    text = yaml.safe_dump(masked_values(_without_places(node)), sort_keys=False, allow_unicode=True)
    return f"```yaml\n{text}```"
