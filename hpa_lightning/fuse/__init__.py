"""`hpa-lightning fuse`: post-training HPA on two checkpoints, whoever trained them."""

from hpa_lightning.fuse.checkpoint_fusion import fuse_checkpoints

__all__ = ["fuse_checkpoints"]
