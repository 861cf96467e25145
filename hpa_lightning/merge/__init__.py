"""`hpa-lightning merge`: the weights of a safety-tuned and a task-tuned model in one."""

from hpa_lightning.merge.checkpoint_merge import merge_checkpoints
from hpa_lightning.merge.merge_settings import MergeSettings

__all__ = ["MergeSettings", "merge_checkpoints"]
