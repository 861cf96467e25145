"""Safety data: published sets, and the calibration set that the aligned model makes itself."""

from hpa_lightning.data.safety_sets.calibration_set import (
    SafetyCalibration,
    build_safety_calibration,
    given_safety_calibration,
)
from hpa_lightning.data.safety_sets.figstep import FigStep
from hpa_lightning.data.safety_sets.harmbench import HarmBench
from hpa_lightning.data.safety_sets.mm_safetybench import MMSafetyBench
from hpa_lightning.data.safety_sets.multiple_choice import MultipleChoice
from hpa_lightning.data.safety_sets.preference_file import PreferenceFile
from hpa_lightning.data.safety_sets.prompts import PromptFile
from hpa_lightning.data.safety_sets.safe_rlhf import SafeRLHF
from hpa_lightning.data.safety_sets.siuo import SIUO
from hpa_lightning.data.safety_sets.sorry_bench import SORRYBench
from hpa_lightning.data.safety_sets.spa_vl import SPAVL
from hpa_lightning.data.safety_sets.vlguard import VLGuard
from hpa_lightning.data.safety_sets.xstest import XSTest

__all__ = [
    "SIUO",
    "SPAVL",
    "FigStep",
    "HarmBench",
    "MMSafetyBench",
    "MultipleChoice",
    "PreferenceFile",
    "PromptFile",
    "SORRYBench",
    "SafeRLHF",
    "SafetyCalibration",
    "VLGuard",
    "XSTest",
    "build_safety_calibration",
    "given_safety_calibration",
]
