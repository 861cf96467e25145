"""HarmBench: harmful behaviours as instructions, some with a context that belongs to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from hpa_lightning.data.published_files import categories_of, conversation, find_file, text_of
from hpa_lightning.data.readers.row_fields import DataWarning
from hpa_lightning.data.readers.table_files import read_table
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.safety_sets.prompts import in_context
from hpa_lightning.values import shown

FUNCTIONAL = ("standard", "contextual", "copyright")
"""Values of ``FunctionalCategory``: 200, 100 and 100 of the 400 textual behaviours."""


@dataclass(frozen=True)
class HarmBench(RecordSet):
    """The textual behaviours of HarmBench (Mazeika et al., ICML 2024, arXiv 2402.04249) as direct requests.

    A contextual behaviour is asked after its context, separated by ``---``, as upstream's direct requests are. The
    categories are ``functional`` and ``semantic``.

    Args:
        file: upstream's ``harmbench_behaviors_text_*.csv``: ``Behavior``, ``FunctionalCategory``,
            ``SemanticCategory``, ``Tags``, ``ContextString``, ``BehaviorID``.
        functional: which behaviours. Upstream scores copyright by comparing the answer with the protected text, which
            no judge of refusals does: with ``"copyright"`` among them a warning says so.

    Raises:
        ValueError: an unknown functional category; when read: a missing file, a broken row, a contextual behaviour
            without a context, no behaviour.
    """

    file: str
    functional: tuple[Literal["standard", "contextual", "copyright"], ...] = ("standard", "contextual")

    def __post_init__(self) -> None:
        unknown = [name for name in self.functional if name not in FUNCTIONAL]
        if unknown or not self.functional:
            raise ValueError(f"HarmBench: functional is {list(self.functional)}; expected some of {list(FUNCTIONAL)}.")

    def read(self) -> list[Record]:
        """Read the records, in the order of the file."""
        path = find_file([Path(self.file)], "HarmBench file")
        records = []
        for where, row in read_table(path):
            functional = text_of(row, "FunctionalCategory", where)
            if functional not in FUNCTIONAL:
                raise ValueError(f"{where}: FunctionalCategory is {shown(functional)}; expected one of {FUNCTIONAL}.")
            if functional not in self.functional:
                continue
            if functional == "contextual":
                text_of(row, "ContextString", where)
            prompt = in_context(text_of(row, "Behavior", where), row, "ContextString", where)
            schemes = {"functional": "FunctionalCategory", "semantic": "SemanticCategory"}
            record = conversation(text_of(row, "BehaviorID", where), prompt, where=where)
            records.append(replace(record, categories=categories_of(row, schemes, where)))
        if not records:
            raise ValueError(f"{path.name} holds no behaviours of {' or '.join(self.functional)}.")
        if copyrighted := sum(record.categories["functional"] == "copyright" for record in records):
            rank_zero_warn(
                f"{path.name}: {copyrighted} behaviours ask for copyrighted text. HarmBench scores them by comparing "
                "the answer with that text; here whatever is not refused counts as an attack that succeeded.",
                category=DataWarning,
            )
        return records
