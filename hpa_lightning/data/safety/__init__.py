"""Safety data: the calibration set that the aligned model makes itself."""

from hpa_lightning.data.safety.calibration import SafetyCalibration, build_safety_calibration

__all__ = ["SafetyCalibration", "build_safety_calibration"]
