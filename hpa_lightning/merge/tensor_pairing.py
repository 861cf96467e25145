"""Which tensors of several checkpoints are one and the same, and which must not be merged."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpa_lightning.fuse.checkpoint import Checkpoint, tied_groups
from hpa_lightning.fuse.pairing import check_architectures, check_settings
from hpa_lightning.fuse.streaming import empty_model

_SHOWN = 4


@dataclass(frozen=True)
class PairedTensor:
    """A tensor of the model that is written, and where the other models have it.

    Args:
        name: in the model that is written.
        sources: role of each other model -> its name there; that of the weight that it is tied to where it is not
            stored itself.
    """

    name: str
    sources: Mapping[str, str]


class PairedModels:
    """The tensors of a model and of others of the same architecture, each one accounted for.

    A tensor is merged, or it is the written model's as it is because ``keep`` names it or because it cannot be averaged
    and is equal in all (integers; tensors that the configuration does not build). Everything else is refused by name.

    Args:
        task: the model whose files are written.
        others: role -> the other model.
        keep: names, or patterns with ``*``, of tensors that stay the written model's.

    Attributes:
        merged: the pairs, in the order of the written model's files.
        kept: names of the tensors that stay because of ``keep``.

    Raises:
        ValueError: other architectures, tensors that are missing (in all of them, too), beside the others, of another
            shape or kind, tied in one model and not in another, or a pattern that matches none.
    """

    def __init__(self, task: Checkpoint, others: Mapping[str, Checkpoint], keep: Sequence[str] = ()) -> None:
        self.task = task
        self.others = dict(others)
        self._keep = tuple(keep)
        self._wrong: list[str] = []
        models = {"task": task, **self.others}
        for role, other in self.others.items():
            check_architectures((task.config, other.config), ("task", role))
        built = {role: _bound(checkpoint) for role, checkpoint in models.items()}
        self._ties = {role: _ties(model) for role, model in built.items()}
        for role, other in self.others.items():
            outcome = "the merged model gets the task-tuned one's."
            check_settings((task.config, other.config), ("task", role), outcome)
        for role, checkpoint in models.items():
            self._check_ties(role, checkpoint)
        unstored = [set(checkpoint.unstored(built[role])) for role, checkpoint in models.items()]
        task.need(sorted(set.intersection(*unstored)))  # what one of them holds is told below
        self.kept = [name for name in (*task.names, *task.unbuilt) if self._stays(name)]
        self.merged = list(self._pairs())
        for role, other in self.others.items():
            self._check_beside(role, other)
        self._check_unbuilt()
        self._refuse()
        self._check_patterns()
        self._warn_of_dtypes()

    def read(self, pair: PairedTensor, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Role -> tensor, ``"task"`` first."""
        found = {"task": self.task.tensor(pair.name, device)}
        return found | {role: self.others[role].tensor(name, device) for role, name in pair.sources.items()}

    def drawn_as(self, pair: PairedTensor) -> str:
        """The name by which random entries of a tensor are drawn: one for all copies of a tied weight."""
        return min(one for one in (pair.name, *self._ties["task"].get(pair.name, ())) if one in self.task)

    def _stays(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._keep)

    def _pairs(self) -> Iterator[PairedTensor]:
        missing: dict[str, list[str]] = {role: [] for role in self.others}
        differ = []
        places = self.task.tensors.files
        for name in sorted(self.task.names, key=lambda name: _place(self.task, name, places)):
            if self._stays(name):
                continue
            sources = {role: self._source(role, name) for role in self.others}
            for role in (role for role, source in sources.items() if source is None):
                missing[role].append(name)
            pair = PairedTensor(name, {role: source for role, source in sources.items() if source is not None})
            if len(pair.sources) < len(self.others):
                continue
            if text := self._difference(pair):
                differ.append(text)
            elif self.task.stored(name).dtype.is_floating_point:
                yield pair
        for role, names in missing.items():
            self._complain(names, f"the {role} model ({self.others[role].folder}) lacks %s, which the task model holds")
        self._complain(differ, "%s")

    def _source(self, role: str, name: str) -> str | None:
        """The tensor's name in another model: its own, or that of a weight that it is tied to there."""
        checkpoint = self.others[role]
        return next((one for one in (name, *self._ties[role].get(name, ())) if one in checkpoint), None)

    def _difference(self, pair: PairedTensor) -> str | None:
        """What keeps a tensor from being merged, or ``None``."""
        mine = self.task.stored(pair.name)
        for role, name in pair.sources.items():
            theirs = self.others[role].stored(name)
            if theirs.shape != mine.shape:
                more = " (tokens were added to one of them)" if mine.shape[1:] == theirs.shape[1:] else ""
                return f"{pair.name} is {mine.shape} in the task model and {theirs.shape} in the {role} model{more}"
            if theirs.dtype.is_floating_point != mine.dtype.is_floating_point:
                return f"{pair.name} is {mine.dtype} in the task model and {theirs.dtype} in the {role} model"
            if not mine.dtype.is_floating_point:
                one, other = self.task.tensor(pair.name), self.others[role].tensor(name)
                if not torch.equal(one, other.to(one.dtype)):
                    return f"{pair.name}, {mine.dtype}, differs in the {role} model and cannot be averaged"
        return None

    def _check_ties(self, role: str, checkpoint: Checkpoint) -> None:
        """Weights that the configuration ties may be stored twice, but not with two values."""
        stored = [
            (name, other)
            for name, partners in self._ties[role].items()
            for other in partners
            if name < other and name in checkpoint and other in checkpoint
        ]
        torn = [" and ".join(both) for both in stored if not _all_equal(map(checkpoint.tensor, both))]
        self._complain(torn, f"the {role} model ({checkpoint.folder}) ties %s and stores them with different values")

    def _check_beside(self, role: str, other: Checkpoint) -> None:
        """What another model holds and the written one does not have must be a tied copy of what it has."""
        beside, untied = [], []
        for name in other.names:
            if name in self.task or self._stays(name):
                continue
            partner = next((one for one in self._ties["task"].get(name, ()) if one in self.task), None)
            if partner is None:
                beside.append(name)
            elif partner not in other or not torch.equal(other.tensor(name), other.tensor(partner)):
                untied.append(f"{name} and {partner}")
        self._complain(beside, f"the {role} model ({other.folder}) holds %s, which the task model does not have")
        self._complain(untied, f"the task model ties %s, and the {role} model ({other.folder}) has two values for them")

    def _check_unbuilt(self) -> None:
        """Tensors that the configuration does not build stay where they are equal in all models."""
        checkpoints = {"task": self.task, **self.others}
        keys = dict.fromkeys(key for checkpoint in checkpoints.values() for key in checkpoint.unbuilt)
        unknown = []
        for key in keys:
            lacking = [role for role, checkpoint in checkpoints.items() if key not in checkpoint.unbuilt]
            if self._stays(key):
                continue
            if lacking or not _all_equal(checkpoint.tensors.read(key) for checkpoint in checkpoints.values()):
                why = f"not in {' and '.join(lacking)}" if lacking else "not the same in all"
                unknown.append(f"{key} ({why})")
        self._complain(unknown, "the configuration builds no tensor for %s")

    def _complain(self, names: Sequence[str], text: str) -> None:
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            self._wrong.append(text.replace("%s", ", ".join(names[:_SHOWN]) + more))

    def _refuse(self) -> None:
        if self._wrong:
            raise ValueError(
                f"{'; '.join(self._wrong)}. Every tensor is merged or named: --keep NAME (or a pattern with *) leaves "
                "those as they are in the task model; or pass two models of one kind."
            )

    def _check_patterns(self) -> None:
        everything = {
            name
            for checkpoint in (self.task, *self.others.values())
            for name in (*checkpoint.names, *checkpoint.unbuilt)
        }
        idle = [one for one in self._keep if not any(fnmatch.fnmatchcase(name, one) for name in everything)]
        if idle:
            some = [name for name in self.task.names if name.endswith("weight")][:3]
            raise ValueError(f"--keep {idle[0]} matches no tensor; names are such as {', '.join(some)}.")

    def _warn_of_dtypes(self) -> None:
        for role, other in self.others.items():
            kinds: dict[tuple[torch.dtype, torch.dtype], int] = {}
            for pair in self.merged:
                both = self.task.stored(pair.name).dtype, other.stored(pair.sources[role]).dtype
                if both[0] != both[1]:
                    kinds[both] = kinds.get(both, 0) + 1
            if kinds:
                listed = ", ".join(
                    f"{count} tensors are {mine} in the task model and {theirs} in the {role} model"
                    for (mine, theirs), count in kinds.items()
                )
                warnings.warn(
                    f"{listed}: they are merged in float32 (float64 where one is) and written in the task model's.",
                    stacklevel=2,
                )


def _bound(checkpoint: Checkpoint) -> nn.Module:
    model = empty_model(checkpoint.config, checkpoint.dtype)
    checkpoint.bind(model)
    return model


def _ties(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of every weight that is shared -> the other names of it."""
    return {name: tuple(sorted(group - {name})) for group in tied_groups(model) for name in group}


def _place(checkpoint: Checkpoint, name: str, files: Sequence[str]) -> tuple[int, int]:
    place = checkpoint.stored(name)
    return files.index(place.file), place.start


def _all_equal(tensors: Iterable[Tensor]) -> bool:
    first, *rest = tensors
    return all(torch.equal(first, other) for other in rest)
