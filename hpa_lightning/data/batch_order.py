"""Batches in an order that depends on seed, task and epoch alone, sharded over ranks, resumable in mid-epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from hpa_lightning.data.record import Record

_AT_ONCE = 4096
"""Indices that are made into Python's integers together."""


def named_generator(*parts: object) -> torch.Generator:
    """Return a CPU generator whose seed depends on the text of ``parts`` alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class TaskBatchSampler(Sampler[list[int]]):
    """Yields this rank's batches of indices for one epoch of a task.

    The order of an epoch is a permutation drawn from ``(seed, task name, epoch within the task)``, the same on all
    ranks and whatever the order of the tasks. A global batch of ``batch_size * world_size`` indices is dealt out
    round-robin. Decision: if the last one does not divide evenly, it is filled up from the start of the epoch's order,
    as ``DistributedSampler`` does; on one rank nothing is repeated.

    Args:
        size: number of records.
        batch_size: records of one rank in one batch.
        seed: of the datamodule.
        task: name of the task.
        batches: length of the epoch in batches, for a task that is measured in steps: passes over the data, each in
            its own order, follow one another without a partial batch between them. ``None``: one pass.
        first_epoch: the trainer's epoch with which the task starts.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        task: str,
        batches: int | None = None,
        first_epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.task = task
        self.batches = batches
        self.first_epoch = first_epoch
        self.rank = rank
        self.world_size = world_size
        self.epoch = first_epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the trainer's epoch; Lightning calls it at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches if self.batches is not None else -(-self.size // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        stream = self._indices()
        for _ in range(len(self)):
            together = [index for _, index in zip(range(self.batch_size * self.world_size), stream, strict=False)]
            yield together[self.rank :: self.world_size]

    def _indices(self) -> Iterator[int]:
        passed, epoch = 0, self.epoch - self.first_epoch
        while self.batches is not None or passed == 0:
            order = self._order(epoch, passed)
            for some in order.split(_AT_ONCE):
                yield from some.tolist()
            passed += 1
        missing = -self.size % self.world_size
        yield from (int(order[index % self.size]) for index in range(missing))

    def _order(self, epoch: int, passed: int) -> Tensor:
        """One pass's permutation, int64; as Python's integers it would take five times the memory."""
        generator = named_generator(self.seed, "order", self.task, epoch, passed)
        return torch.randperm(self.size, generator=generator)


class _Remaining(Sampler[list[int]]):
    """The batches of a sampler from a position on."""

    def __init__(self, sampler: TaskBatchSampler, start: int) -> None:
        self._sampler = sampler
        self._start = start

    def __len__(self) -> int:
        return max(len(self._sampler) - self._start, 0)

    def __iter__(self) -> Iterator[list[int]]:
        return islice(iter(self._sampler), self._start, None)


class TaskLoader:
    """Training batches of one task; a stateful loader that resumes where a checkpoint was written.

    Not a ``DataLoader``, so that Lightning leaves its sampler alone on several devices. Iterating starts nothing until
    the first batch is asked for, since Lightning iterates a loader up to three times before it uses it.

    Args:
        records: the task's training records.
        sampler: which records form which batch.
        collate: records -> batch, or with ``skipped`` a :class:`SkippingCollate`.
        num_workers: worker processes.
        batches_seen: returns the number of this epoch's batches that were trained on (those that a worker has
            prefetched do not count).
        skipped: takes the problems of the records of an epoch that were left out, when its last batch is handed over.
    """

    def __init__(
        self,
        records: Sequence[Record],
        sampler: TaskBatchSampler,
        collate: Callable[[list[Record]], Any],
        num_workers: int = 0,
        batches_seen: Callable[[], int] = lambda: 0,
        skipped: Callable[[list[str]], None] | None = None,
    ) -> None:
        self.dataset = records
        self.sampler = sampler
        self.batch_size = sampler.batch_size
        self._collate = collate
        self._num_workers = num_workers
        self._batches_seen = batches_seen
        self._skipped = skipped
        self._resume: tuple[int, int] | None = None  # epoch, batches of it that were trained on before

    def __len__(self) -> int:
        """Batches of the whole epoch, those before a resume included: Lightning counts from them."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        skipped = 0
        if self._resume is not None and self._resume[0] == self.sampler.epoch:
            skipped = self._resume[1]
        remaining = _Remaining(self.sampler, skipped)
        if not len(remaining):
            return
        loader: DataLoader[Any] = DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=remaining,
            collate_fn=self._collate,
            num_workers=self._num_workers,
            generator=torch.Generator(),  # seeds workers; the global random state must not depend on them
        )
        if self._skipped is None:
            yield from loader
            return
        left_out: dict[str, str] = {}
        for number, (batch, bad) in enumerate(loader, start=1):
            left_out |= bad
            if number == len(remaining):
                self._skipped(list(left_out.values()))
            yield batch

    @property
    def task(self) -> str:
        """The task's name."""
        return self.sampler.task

    def names(self, batch: int) -> list[str]:
        """The names of the records of a batch of this epoch."""
        indices = next(islice(self.sampler, batch, None), [])
        return [self.dataset[index].where for index in indices]

    def state_dict(self) -> dict[str, Any]:
        """Return the position: epoch, batches trained on, and what it was counted in."""
        return {
            "epoch": self.sampler.epoch,
            "batches_seen": self._batches_seen(),
            "batch_size": self.sampler.batch_size,
            "world_size": self.sampler.world_size,
            "records": self.sampler.size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that were trained on.

        Raises:
            ValueError: in the middle of an epoch, with another batch size, number of devices or number of records.
        """
        now = self.state_dict()
        changed = [key for key in ("batch_size", "world_size", "records") if state[key] != now[key]]
        if changed and state["epoch"] == now["epoch"] and state["batches_seen"] > 0:
            differences = ", ".join(f"{key} {state[key]} -> {now[key]}" for key in changed)
            raise ValueError(
                f"the checkpoint was written in the middle of an epoch and {differences}; which records are "
                "left is unknown. Resume with the same settings, or from a checkpoint written at an epoch's end."
            )
        self._resume = (state["epoch"], state["batches_seen"])
