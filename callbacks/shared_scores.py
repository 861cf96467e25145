"""What the model that all fits of a study start from scores: measured by the first of them, read by the others."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import hpa_lightning
from hpa_lightning.callbacks.running import evaluation_mode
from hpa_lightning.data.digests import records_digest
from hpa_lightning.data.needs import records_of
from hpa_lightning.data.protocols import EvaluationData
from hpa_lightning.data.tasks import EvaluationSet
from hpa_lightning.decoding import decoding_of
from hpa_lightning.evaluation import ScoredSet
from hpa_lightning.files import write_text
from hpa_lightning.modules.fsdp import is_sharded
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.results.run_results import run_origin
from hpa_lightning.run_folder import INITIAL_SCORES
from hpa_lightning.trainer_attributes import is_dev_run


class SharedScores:
    """One model's scores of one list of sets, in a file that is named by a digest of all that decides them.

    Args:
        file: where they are, or will be.
        sets: names of the sets, in their order.
    """

    def __init__(self, file: Path, sets: Sequence[str]) -> None:
        self.file = file
        self._sets = list(sets)

    def read(self) -> list[ScoredSet] | None:
        """The scores and answers of each set; ``None`` if no fit has measured them yet.

        Raises:
            ValueError: the file is not one that :meth:`write` has written.
        """
        if not self.file.is_file():
            return None
        found = parse_json(read_text(self.file), str(self.file))
        entries = found.get("sets") if isinstance(found, dict) else None
        if not isinstance(entries, list) or [_name(entry) for entry in entries] != self._sets:
            raise ValueError(
                f"{self.file} does not hold the scores of the sets {self._sets}; remove it, "
                "and they are measured again."
            )
        return [ScoredSet(entry["fields"], entry["rows"]) for entry in entries]

    def write(self, scored: Iterable[ScoredSet]) -> None:
        """Keep what was measured for the other fits; a file is whole or not there."""
        entries = [{"fields": one.fields, "rows": one.rows} for one in scored]
        write_text(self.file, json.dumps({"sets": entries}, default=str) + "\n")  # as predictions are written


def shared_scores(
    trainer: L.Trainer, pl_module: L.LightningModule, data: EvaluationData, sets: Sequence[EvaluationSet]
) -> SharedScores | None:
    """Return where the scores of the model as it is are shared; ``None`` if they are not.

    They are where a study says so (:data:`~hpa_lightning.run_folder.INITIAL_SCORES`), in a fit of one process with
    greedy answers. The digest is of the code of this package, of the module and of the datamodule, and of the versions
    of the rest; of device, threads and precision; of all weights and buffers, without LoRA adapters that change nothing
    yet (B = 0), whose A differs between seeds; of the model's configuration; and of every set: its records, its first
    batch as the model reads it, how it is judged and decoded.

    Args:
        trainer: of the fit.
        pl_module: the model.
        data: the datamodule that the sets are from.
        sets: in the order in which they are scored.
    """
    folder = os.environ.get(INITIAL_SCORES)
    if not folder or trainer.world_size > 1 or is_sharded(pl_module) or is_dev_run(trainer):
        return None
    decodings = [decoding_of(one, pl_module) for one in sets]
    known = [records_of(data.evaluation_dataloader(one)) for one in sets]
    if any(one.get("do_sample") for one in decodings) or any(records is None for records in known):
        return None
    digest = hashlib.sha256()
    _tell(digest, run_origin()["versions"], _package_digest(), _own_code(pl_module, data))
    _tell(digest, type(pl_module).__qualname__, str(pl_module.device), trainer.precision)
    _tell(digest, torch.get_num_threads(), torch.get_float32_matmul_precision())
    _tell(digest, [str(getattr(one, "config", "")) for one in pl_module.children()])
    _tell_weights(digest, pl_module)
    with evaluation_mode(pl_module):  # a loader draws a number when it is begun
        for one, records, decoding in zip(sets, known, decodings, strict=True):
            about = [one.name, one.kind, one.metric, _judge(one.judge), repr(one.openings)]
            _tell(digest, *about, decoding, records_digest(records or ()))
            _tell_batch(digest, next(iter(data.evaluation_dataloader(one)), None))
    return SharedScores(Path(folder) / f"{digest.hexdigest()[:32]}.json", [one.name for one in sets])


def _name(entry: Any) -> str | None:
    fields = entry.get("fields") if isinstance(entry, dict) and isinstance(entry.get("rows"), list) else None
    return fields.get("set") if isinstance(fields, dict) else None


def _judge(judge: object) -> str:
    """A judge by its name or what it says of itself, a file of rules by its content."""
    if isinstance(judge, str | Path) and Path(judge).is_file():
        return _files_digest([Path(judge)])
    return repr(judge)


def _tell(digest: Any, *facts: Any) -> None:
    digest.update(json.dumps(facts, default=str, sort_keys=True).encode() + b"\n")


def _tell_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    _tell(digest, name, str(tensor.dtype), list(tensor.shape))
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _tell_weights(digest: Any, module: nn.Module) -> None:
    idle: set[int] = set()
    for one in module.modules():
        if isinstance(one, LoraLayer) and not any(bool(b.any()) for b in one.lora_B.parameters()):
            idle |= {id(factor) for factor in (*one.lora_A.parameters(), *one.lora_B.parameters())}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if id(tensor) not in idle:
            _tell_tensor(digest, name.replace(".base_layer.", "."), tensor)


def _tell_batch(digest: Any, batch: Any) -> None:
    """What the model reads of a batch; its texts count by the records."""
    inputs = batch.get("inputs", batch) if isinstance(batch, dict) else {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            _tell_tensor(digest, name, value)


@cache
def _package_digest() -> str:
    """Of this package's code; ``callbacks`` may lie beside the rest, as in an editable install."""
    folders = {Path(hpa_lightning.__file__).resolve().parent, Path(__file__).resolve().parent}
    files = {path.resolve() for folder in folders for path in folder.rglob("*.py")}
    return _files_digest(sorted(files, key=lambda path: (path.parent.name, path.name)))


def _own_code(*objects: object) -> str:
    """A digest of the files that define the objects' classes and those that they inherit from."""
    classes = {kind for one in objects for kind in type(one).__mro__}
    modules = sorted({kind.__module__ for kind in classes})
    files = [getattr(sys.modules.get(name), "__file__", None) for name in modules]
    return _files_digest([Path(file) for file in files if file])


def _files_digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
