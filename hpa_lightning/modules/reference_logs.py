"""Log-probabilities of pairs under the reference, in a file: made once, gone on with after a stop, never mixed up."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hpa_lightning.files import write_text
from hpa_lightning.modules.fsdp import full_tensor
from hpa_lightning.modules.lora import outside_adapters
from hpa_lightning.parsing import parse_json, read_text
from hpa_lightning.values import shown

_HEADER = "reference"


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """Say how many parameters the model has without its adapters, with a digest of their names, types and values.

    With sharded parameters all processes have to call it.
    """
    digest, count = hashlib.blake2b(digest_size=8), 0
    for name, parameter in sorted(outside_adapters(model), key=lambda item: item[0]):
        values = full_tensor(parameter.detach()).contiguous().cpu()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
        count += values.numel()
    return f"{count} parameters, {digest.hexdigest()}"


class ReferenceLogs:
    """One file of log-probabilities: a line that says what they are of, then one line for each pair.

    Lines are appended as they are made, so that a stop loses no more than the running batch; a line that was cut off is
    taken away when the file is opened again.

    Args:
        path: the file; made if there is none. Only the process with ``writes`` touches it.
        about: digests and settings that make the figures: data, model, settings. A file with others is refused.
        pairs: how many pairs there are.
        writes: whether this process writes.

    Raises:
        ValueError: the file is of other data, another model or other settings, or broken.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any], pairs: int, writes: bool = True) -> None:
        self.path = Path(path)
        self.pairs = pairs
        self._about = {**about, "pairs": pairs}
        self._writes = writes
        self._known: dict[int, tuple[float, float]] = {}
        self._table: Tensor | None = None
        if writes and self.path.is_file():
            self._known = dict(self._read())
            lines = [json.dumps({"pair": i, "chosen": c, "rejected": r}) for i, (c, r) in self._known.items()]
            write_text(self.path, "\n".join([json.dumps({_HEADER: self._about}), *lines, ""]))
        elif writes:
            write_text(self.path, json.dumps({_HEADER: self._about}) + "\n")

    @property
    def missing(self) -> list[int]:
        """The numbers of the pairs that are not known, in order."""
        return [number for number in range(self.pairs) if number not in self._known]

    def add(self, found: Iterable[tuple[int, float, float]]) -> None:
        """Append number, chosen and rejected figure of some pairs; those that are known stay as they are."""
        new = {number: (chosen, rejected) for number, chosen, rejected in found if number not in self._known}
        if self._writes:
            with self.path.open("a", encoding="utf-8") as file:
                for number, (c, r) in new.items():
                    file.write(json.dumps({"pair": number, "chosen": c, "rejected": r}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._known.update(new)
        self._table = None

    def share(self, known: Mapping[int, tuple[float, float]] | None = None) -> dict[int, tuple[float, float]]:
        """Return what is known, or take over what another process knows."""
        if known is not None:
            self._known, self._table = dict(known), None
        return self._known

    def of(self, numbers: Tensor) -> Tensor:
        """Return the figures of a batch: of the chosen answers, then of the rejected ones, ``(2 * pairs,)`` fp32.

        Raises:
            ValueError: a pair is not known.
        """
        if self._table is None:
            self._table = torch.full((self.pairs, 2), torch.nan)
            for number, values in self._known.items():
                self._table[number] = torch.tensor(values)
        places = numbers.cpu()
        known = (places >= 0) & (places < self.pairs)
        found = self._table[places.clamp(0, max(self.pairs - 1, 0))]
        if not bool(known.all()) or bool(found.isnan().any()):
            raise ValueError(
                f"{self.path} holds no log-probabilities of pair {places[~known | found.isnan().any(1)][0].item()} of "
                f"{self.pairs}; delete the file to make it again."
            )
        return found.T.flatten().to(numbers.device)

    def _read(self) -> Iterator[tuple[int, tuple[float, float]]]:
        lines = read_text(self.path).split("\n")
        try:
            about = dict(parse_json(lines[0], str(self.path))[_HEADER])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self.path} does not begin with a line {{{_HEADER!r}: ...}}; expected reference log-probabilities, "
                "or no file."
            ) from None
        differing = [key for key in {**about, **self._about} if about.get(key) != self._about.get(key)]
        if differing:
            reported = "; ".join(
                f"{k}: {shown(about.get(k))}, now {shown(self._about.get(k))}" for k in sorted(differing)
            )
            raise ValueError(
                f"{self.path} holds reference log-probabilities of something else ({reported}). Delete it, or name "
                "another reference_cache."
            )
        for number, line in enumerate(lines[1:-1], start=2):  # behind the last line break stands nothing, or a cut line
            try:
                row = parse_json(line, str(self.path))
                number_of_pair = int(row["pair"])
                if not 0 <= number_of_pair < self.pairs:
                    raise ValueError("no such pair")
                yield number_of_pair, (float(row["chosen"]), float(row["rejected"]))
            except (ValueError, KeyError, TypeError, OverflowError):
                raise ValueError(f"{self.path}, line {number}: {shown(line)} is broken; delete the file.") from None


def complete(
    logs: ReferenceLogs, compute: Callable[[list[int]], list[tuple[int, float, float]]], batch_size: int, trainer: Any
) -> None:
    """Make what is missing; the processes share the batches and all of them know all figures at the end.

    Batches are the same whatever is missing, and those that lack a pair are made whole: a figure depends in its last
    bits on the pairs beside it, and a file that was gone on with has to equal one that was made at once.

    Args:
        logs: on every process, of which rank 0 writes.
        compute: numbers of pairs -> those that could be computed, with their figures. All processes call it equally
            often; one without a number of its own repeats the first one's.
        batch_size: pairs of one process in one call.
        trainer: its processes.
    """
    rank, ranks = trainer.global_rank, trainer.world_size
    if ranks > 1:
        logs.share(trainer.strategy.broadcast(logs.share()))
    size = batch_size * ranks
    starts = sorted({number - number % size for number in logs.missing})
    groups = [list(range(start, min(start + size, logs.pairs))) for start in starts]
    total = sum(map(len, groups))
    with tqdm(total=total, desc="Reference log-probabilities", disable=rank != 0 or not groups, leave=False) as bar:
        for numbers in groups:
            shares: list[Any] = [compute(numbers[rank::ranks] or numbers[:1])]
            if ranks > 1:
                own, shares = shares[0], [None] * ranks
                torch.distributed.all_gather_object(shares, own)
            logs.add(chain.from_iterable(shares))
            bar.update(len(numbers))
