"""Safety data: published sets, and the calibration set that the aligned model makes itself."""

from hpa_lightning.data.safety.calibration import (
    SafetyCalibration,
    build_safety_calibration,
    given_safety_calibration,
)
from hpa_lightning.data.safety.choices import MultipleChoice
from hpa_lightning.data.safety.figstep import FigStep
from hpa_lightning.data.safety.harmbench import HarmBench
from hpa_lightning.data.safety.mm_safetybench import MMSafetyBench
from hpa_lightning.data.safety.preference_file import PreferenceFile
from hpa_lightning.data.safety.prompts import PromptFile
from hpa_lightning.data.safety.safe_rlhf import SafeRLHF
from hpa_lightning.data.safety.siuo import SIUO
from hpa_lightning.data.safety.sorry_bench import SORRYBench
from hpa_lightning.data.safety.spa_vl import SPAVL
from hpa_lightning.data.safety.vlguard import VLGuard
from hpa_lightning.data.safety.xstest import XSTest

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
