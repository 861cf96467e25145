"""``smol``: a benchmark of a real language model, real pictures and real harm, put together from registry packages."""

from hpa_lightning.smol.smol_adaptation import SmolAdaptationDataModule
from hpa_lightning.smol.smol_datamodule import SIX_TASKS, SmolDataModule

__all__ = ["SIX_TASKS", "SmolAdaptationDataModule", "SmolDataModule"]
