"""Records, file formats, collation, safety sets and the stream of tasks."""

from hpa_lightning.data.benchmarks import BenchmarkDataModule, CaptionedImages, ScienceQA, TextVQA
from hpa_lightning.data.collator import MLLMCollator
from hpa_lightning.data.datamodule import CVITDataModule
from hpa_lightning.data.evaluations import EVALUATIONS, Evaluation
from hpa_lightning.data.helpfulness import MME, MMBench, SEEDBench
from hpa_lightning.data.hub import HubDataset
from hpa_lightning.data.images import EncodedImage
from hpa_lightning.data.mixed import DataPart, MixedData
from hpa_lightning.data.pairs import NumberedRecords
from hpa_lightning.data.readers import DataWarning, open_records, read_records
from hpa_lightning.data.record import Record
from hpa_lightning.data.record_set import RecordSet
from hpa_lightning.data.reply_openings import ReplyOpenings
from hpa_lightning.data.safety_sets import (
    SIUO,
    SPAVL,
    FigStep,
    HarmBench,
    MMSafetyBench,
    MultipleChoice,
    PreferenceFile,
    PromptFile,
    SafeRLHF,
    SafetyCalibration,
    SORRYBench,
    VLGuard,
    XSTest,
    build_safety_calibration,
)
from hpa_lightning.data.tasks import EvaluationSet, HarmfulInjection, Replay, SafetyReplay, Task, TaskSpan

__all__ = [
    "EVALUATIONS",
    "MME",
    "SIUO",
    "SPAVL",
    "BenchmarkDataModule",
    "CVITDataModule",
    "CaptionedImages",
    "DataPart",
    "DataWarning",
    "EncodedImage",
    "Evaluation",
    "EvaluationSet",
    "FigStep",
    "HarmBench",
    "HarmfulInjection",
    "HubDataset",
    "MLLMCollator",
    "MMBench",
    "MMSafetyBench",
    "MixedData",
    "MultipleChoice",
    "NumberedRecords",
    "PreferenceFile",
    "PromptFile",
    "Record",
    "RecordSet",
    "Replay",
    "ReplyOpenings",
    "SEEDBench",
    "SORRYBench",
    "SafeRLHF",
    "SafetyCalibration",
    "SafetyReplay",
    "ScienceQA",
    "Task",
    "TaskSpan",
    "TextVQA",
    "VLGuard",
    "XSTest",
    "build_safety_calibration",
    "open_records",
    "read_records",
]
