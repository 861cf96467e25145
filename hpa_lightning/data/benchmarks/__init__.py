"""Published benchmarks of continual visual instruction tuning, described by one YAML file each."""

from hpa_lightning.data.benchmarks.benchmark_datamodule import BenchmarkDataModule
from hpa_lightning.data.benchmarks.captioned_images import CaptionedImages
from hpa_lightning.data.benchmarks.description import BENCHMARKS, read_benchmark
from hpa_lightning.data.benchmarks.scienceqa import ScienceQA
from hpa_lightning.data.benchmarks.textvqa import TextVQA

__all__ = ["BENCHMARKS", "BenchmarkDataModule", "CaptionedImages", "ScienceQA", "TextVQA", "read_benchmark"]
