"""What is installed, what the machine has, and what a configuration needs: `hpa-lightning doctor` in Python."""

from hpa_lightning.doctor.environment import devices, versions
from hpa_lightning.doctor.fit_plan import FitPlan
from hpa_lightning.doctor.memory import Need, estimate_memory
from hpa_lightning.doctor.support import Verdict, supported

__all__ = ["FitPlan", "Need", "Verdict", "devices", "estimate_memory", "supported", "versions"]
