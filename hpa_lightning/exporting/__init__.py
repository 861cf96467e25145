"""From a Lightning checkpoint to a Hugging Face folder or a peft adapter, with a model card written from the run."""

from hpa_lightning.exporting.adapter import write_adapter
from hpa_lightning.exporting.card import model_card
from hpa_lightning.exporting.checkpoint_export import export_checkpoint
from hpa_lightning.exporting.source import TunedCheckpoint

__all__ = ["TunedCheckpoint", "export_checkpoint", "model_card", "write_adapter"]
