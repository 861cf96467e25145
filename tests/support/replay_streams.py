"""Streams of tasks of other sizes, and the ids that one trains on."""

from __future__ import annotations

from typing import Any

from support.tiny_mllms import evaluation_records, training_records

from hpa_lightning.data import CVITDataModule, Task

SIZES = {"a": 10, "b": 7, "c": 20}


def tasks(**length: Any) -> list[Task]:
    return [
        Task(name, training_records(size, seed=i, name=name), evaluation_records(2, seed=50 + i), **length)
        for i, (name, size) in enumerate(SIZES.items(), start=1)
    ]


def stream(**settings: Any) -> CVITDataModule:
    data = CVITDataModule(tasks(), **{"train_batch_size": 4, **settings})
    data.setup("fit")
    return data


def trained(data: CVITDataModule, name: str) -> list[str]:
    return [r.id for r in data._source.training(next(task for task in data.tasks if task.name == name))]
