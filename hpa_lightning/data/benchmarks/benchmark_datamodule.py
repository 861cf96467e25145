"""A published benchmark as a stream."""

from __future__ import annotations

from typing import Any

from hpa_lightning.data.benchmarks.description import read_benchmark
from hpa_lightning.data.datamodule import CVITDataModule
from hpa_lightning.data.tasks import EvaluationSet


class BenchmarkDataModule(CVITDataModule):
    """The tasks of a whole benchmark out of its folder, in the benchmark's own order.

    What is downloaded lies as it was released; a description says where (see :func:`read_benchmark`). Safety sets and
    all else are given as to :class:`CVITDataModule`.

    Args:
        benchmark: ``"ucit"``, ``"mllm-dcl"``, ``"coin"``, ``"hpa"`` (the six tasks of the HPA paper), or the path of a
            description of your own.
        folder: the benchmark's folder.
        safety_sets: evaluation sets of kind ``"safety"``, ``"over_refusal"`` or ``"helpfulness"``.
        imports: packages beside this one whose classes a description of your own may name; importing one runs its code.
        **options: of :class:`CVITDataModule`, all but ``tasks``.

    Raises:
        ValueError: no such benchmark or folder, a broken description, or what :class:`CVITDataModule` refuses.
    """

    def __init__(
        self,
        benchmark: str,
        folder: str,
        safety_sets: list[EvaluationSet] | None = None,
        imports: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tasks=read_benchmark(benchmark, folder, imports or ()), safety_sets=safety_sets, **options)
