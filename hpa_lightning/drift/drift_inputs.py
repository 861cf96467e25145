"""What `drift` reads beside the two models: the prompts, and which columns HPA kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from hpa_lightning.data.protocols import EvaluationData
from hpa_lightning.data.readers import as_records
from hpa_lightning.data.record import Record
from hpa_lightning.declarations import instantiate, load_yaml
from hpa_lightning.fuse.checkpoint import read_json
from hpa_lightning.fuse.output import AUDIT_FILE
from hpa_lightning.members import conforming
from hpa_lightning.parsing import read_text
from hpa_lightning.report.drift_plots import kept_share
from hpa_lightning.results.events import RetentionEvent
from hpa_lightning.results.result_file import RESULT_FILE
from hpa_lightning.results.run_results import RunResults
from hpa_lightning.values import names


def read_prompts(
    evaluation: str | Path | None, prompts: Mapping[str, str] | None, most: int, image_folder: str | None = None
) -> dict[str, Sequence[Record]]:
    """Read the prompts of a comparison.

    Args:
        evaluation: YAML file of `fit` or `test`, whose datamodule has evaluation sets.
        prompts: name -> an evaluation set of it, or a file of records; without them every evaluation set under its own
            name.
        most: most prompts of each, the first ones.
        image_folder: where relative image paths of files start from; the file's own folder when ``None``.

    Returns:
        Name -> records; nothing where neither is given.

    Raises:
        ValueError: no evaluation set and no file of that name, no records, or what the datamodule refuses.
    """
    sets = {} if evaluation is None else {item.name: item for item in _datamodule(evaluation).evaluation_sets()}
    found: dict[str, Sequence[Record]] = {}
    for name, source in (prompts or {name: name for name in sets}).items():
        if source in sets:
            item = sets[source]
            records = as_records(item.data, item.image_folder, source, item.image_place or "front")
        elif Path(source).exists():
            records = as_records(source, image_folder, source)
        else:
            known = f"; the evaluation sets of {evaluation} are {names(list(sets))}" if evaluation else ""
            raise ValueError(f"prompts {name!r}: there is no file {source!r}{known}.")
        found[name] = list(records[:most])
    return found


def _datamodule(path: str | Path) -> EvaluationData:
    content = load_yaml(read_text(path), str(path))
    if not isinstance(content, Mapping) or not isinstance(content.get("data"), Mapping | str):
        raise ValueError(f"{path} has no section data; expected a configuration of fit or test.")
    from lightning.pytorch import LightningDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    made: Any = instantiate(parser, {"data": content["data"]}, str(path)).data
    found: EvaluationData | None = conforming(made, EvaluationData)
    if found is None:
        raise ValueError(f"{path}: {type(made).__name__} has no evaluation sets; name files of prompts instead.")
    return found


def read_kept(path: str | Path, blocks: int) -> list[float]:
    """Percent of each block's columns that HPA kept.

    Args:
        path: a run's folder or its results.jsonl; the audit.json that `fuse` writes, or its folder.
        blocks: number of decoder blocks.

    Raises:
        ValueError: no such file, or nothing was kept by a method there.
    """
    path = Path(path)
    audit = path / AUDIT_FILE if (path / AUDIT_FILE).is_file() else path
    if audit.suffix == ".json":
        layers = read_json(audit).get("layers")
        entries = [entry for entry in layers or () if isinstance(entry, Mapping) and "retained" in entry]
        events = [RetentionEvent.from_record({**entry, "event": "retention"}, str(audit)) for entry in entries]
    elif path.name == RESULT_FILE or (path / RESULT_FILE).is_file():
        events = RunResults.from_file(path).events(RetentionEvent)
    else:
        raise ValueError(f"{path} is neither a run's folder or {RESULT_FILE} nor an {AUDIT_FILE} of fuse.")
    found = kept_share(events, blocks)
    if found is None:
        raise ValueError(
            f"{path} says of no layer which columns were kept; expected a run of HPA, or an audit of fuse."
        )
    return found
