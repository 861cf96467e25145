"""What the model that all fits of a study start from scores: measured by the first of them, read by the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hpa_lightning.callbacks.facts_digest import FactsDigest, UntoldError
from hpa_lightning.callbacks.running import evaluation_mode, to_device
from hpa_lightning.data.digests import folder_digest, records_digest
from hpa_lightning.data.needs import records_of
from hpa_lightning.data.protocols import EvaluationData
from hpa_lightning.data.record import Record
from hpa_lightning.data.tasks import EvaluationSet
from hpa_lightning.data.template import tokenizer_of
from hpa_lightning.decoding import decoding_of
from hpa_lightning.evaluation import ScoredSet
from hpa_lightning.files import write_text
from hpa_lightning.modules.emulated_bfloat16 import precision_of
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

    def known(self) -> list[ScoredSet] | None:
        """As :meth:`read`; what cannot be read is warned of and measured again."""
        try:
            return self.read()
        except (OSError, ValueError) as error:
            rank_zero_warn(f"the scores of the aligned model are measured again: {error}")
            return None

    def keep(self, scored: Iterable[ScoredSet]) -> None:
        """As :meth:`write`; where nothing can be written, a warning: this fit has its scores."""
        try:
            self.write(scored)
        except OSError as error:
            rank_zero_warn(f"the scores of the aligned model are not shared with other fits: {error}")

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
        """Keep what was measured for the other fits; a file is whole or not there, however many write it at once."""
        entries = [{"fields": one.fields, "rows": one.rows} for one in scored]
        beside = self.file.with_name(f"{self.file.stem}.{uuid4().hex}")
        write_text(beside, json.dumps({"sets": entries}, default=str) + "\n")  # as predictions are written
        os.replace(beside, self.file)


def shared_scores(
    trainer: L.Trainer, pl_module: L.LightningModule, data: EvaluationData, sets: Sequence[EvaluationSet]
) -> SharedScores | None:
    """Return where the scores of the model as it is are shared; ``None`` if they are not.

    They are where a study says so (:data:`~hpa_lightning.run_folder.INITIAL_SCORES`), in a fit of one process with
    greedy answers. The digest is of the code of this package, of the user's that is loaded, and of the classes of
    module, datamodule, processor and judges; of the versions of the rest; of device, precision and the switches of
    PyTorch that change rounding; of the model (:meth:`FactsDigest.tell_module`), without LoRA adapters that change
    nothing yet (B = 0), whose A differs between seeds; of the tokenizer and the collator; and of every set: its
    records, all its batches as the model gets them, how it is judged and decoded. What of this cannot be told, a
    function as a judge or a hook on a layer, is never left out: nothing is shared then.

    Args:
        trainer: of the fit.
        pl_module: the model.
        data: the datamodule that the sets are from.
        sets: in the order in which they are scored.
    """
    folder = os.environ.get(INITIAL_SCORES)
    if not folder or trainer.world_size > 1 or is_sharded(pl_module) or is_dev_run(trainer):
        return None
    try:
        digest = _digest(trainer, pl_module, data, sets)
    except UntoldError as error:
        rank_zero_info(f"The scores of the aligned model are not shared with other fits: {error}.")
        return None
    return SharedScores(Path(folder) / f"{digest[:32]}.json", [one.name for one in sets])


def _digest(
    trainer: L.Trainer, pl_module: L.LightningModule, data: EvaluationData, sets: Sequence[EvaluationSet]
) -> str:
    if not callable(getattr(pl_module, "decoding", None)):
        raise UntoldError(f"{type(pl_module).__name__} does not say how it decodes")
    told = FactsDigest()
    collator = getattr(data, "collator", None)
    processors = [getattr(one, "processor", None) for one in (pl_module, collator)]
    judges = [one.judge for one in sets]
    told.tell_code((*pl_module.modules(), data, collator, *processors, *map(_tokenizer, processors), *judges))
    origin = run_origin(trainer.strategy.root_device, precision_of(trainer))
    told.tell(origin["versions"], version("tokenizers"), str(pl_module.device), _plugin(trainer), _rounding())
    told.tell_module(pl_module)
    for one in processors:
        told.tell(_decoder(one))
    told.tell(_settings(collator), getattr(data, "eval_batch_size", None))  # choosing and openings have it
    with evaluation_mode(pl_module):  # a loader draws a number when it is begun
        for one in sets:
            _tell_set(told, one, trainer, pl_module, data)
    return told.hexdigest()


def _tell_set(
    told: FactsDigest,
    one: EvaluationSet,
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    data: EvaluationData,
) -> None:
    loader, decoding = data.evaluation_dataloader(one), decoding_of(one, pl_module)
    records = records_of(loader)
    if decoding.get("do_sample"):
        raise UntoldError(f"the answers to {one.name!r} are sampled")
    if records is None or not all(isinstance(record, Record) for record in records):
        raise UntoldError(f"{one.name!r} does not come from records")
    told.tell(one.name, one.kind, one.metric, one.openings, decoding, records_digest(records))
    told.tell(one.judge, _files_of(one.judge))
    for batch in loader:
        told.tell(to_device(trainer, batch))


def _plugin(trainer: L.Trainer) -> str:
    """Of the precision: a user's own may round otherwise than the one whose name it has."""
    return type(trainer.precision_plugin).__qualname__


def _rounding() -> list[Any]:
    """What of PyTorch's state changes the last digits."""
    return [
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype().__repr__(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cpu.get_cpu_capability(),
        torch.backends.mkldnn.is_available(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
    ]


def _tokenizer(processor: Any) -> Any:
    return None if processor is None else tokenizer_of(processor)


def _decoder(processor: Any) -> Any:
    """What makes texts of tokens, and tokens of texts; how the last call padded and cut them does not count."""
    tokenizer = _tokenizer(processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    whole = json.loads(backend.to_str())
    kept = {key: value for key, value in whole.items() if key not in ("padding", "truncation")}
    return [kept, getattr(tokenizer, "clean_up_tokenization_spaces", None), getattr(processor, "chat_template", None)]


def _settings(collator: Any) -> dict[str, Any]:
    """The attributes of a collator, but for those that are told by themselves; none where the data have none."""
    if collator is None:
        return {}
    if not hasattr(collator, "__dict__"):
        raise UntoldError(f"a {type(collator).__name__} has no attributes that could be told")
    held = {key: value for key, value in vars(collator).items() if key not in ("processor", "template")}
    return held | {"describes": getattr(collator, "described_processor", None)} if held else {}


def _files_of(judge: object) -> list[str]:
    """The content of what a judge names: a file of rules, a folder of a guard model."""
    named = judge if isinstance(judge, str | Path) else [getattr(judge, key, None) for key in ("rules", "model")]
    found = []
    for name in [named] if isinstance(named, str | Path) else named:
        if isinstance(name, str | Path):
            path = Path(str(name).removeprefix("guard:"))
            found += [path.read_text()] if path.is_file() else [folder_digest(path)] if path.is_dir() else []
    return found


def _name(entry: Any) -> str | None:
    fields = entry.get("fields") if isinstance(entry, dict) and isinstance(entry.get("rows"), list) else None
    return fields.get("set") if isinstance(fields, dict) else None
