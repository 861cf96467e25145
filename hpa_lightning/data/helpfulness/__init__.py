"""Published benchmarks of what a multimodal model is able to do."""

from hpa_lightning.data.helpfulness.mmbench import MMBench
from hpa_lightning.data.helpfulness.mme import MME
from hpa_lightning.data.helpfulness.seed_bench import SEEDBench

__all__ = ["MME", "MMBench", "SEEDBench"]
