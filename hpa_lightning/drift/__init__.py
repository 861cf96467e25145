"""`hpa-lightning drift`: two checkpoints of one model, block by block."""

from hpa_lightning.drift.two_models import ModelDrift, compare_models

__all__ = ["ModelDrift", "compare_models"]
