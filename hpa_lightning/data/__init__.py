"""Records, file formats, collation, safety sets and the stream of tasks."""

from hpa_lightning.data.collate import MLLMCollator
from hpa_lightning.data.formats import read_records
from hpa_lightning.data.records import Record
from hpa_lightning.data.safety import SafetyCalibration, build_safety_calibration
from hpa_lightning.data.stream import CVITDataModule
from hpa_lightning.data.tasks import EvaluationSet, HarmfulInjection, Replay, SafetyReplay, Task, TaskSpan

__all__ = [
    "CVITDataModule",
    "EvaluationSet",
    "HarmfulInjection",
    "MLLMCollator",
    "Record",
    "Replay",
    "SafetyCalibration",
    "SafetyReplay",
    "Task",
    "TaskSpan",
    "build_safety_calibration",
    "read_records",
]
