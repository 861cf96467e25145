"""Harm filters for instruction data: parts that combine, and the run over a file."""

from hpa_lightning.filtering.assessment import Assessment, Finding, HarmFilter, worst
from hpa_lightning.filtering.decision import FilterRule
from hpa_lightning.filtering.declared_parts import declared_parts
from hpa_lightning.filtering.filter_counts import FilterCounts
from hpa_lightning.filtering.filter_run import FilterOutcome, filter_data, preview_filter
from hpa_lightning.filtering.guard_filter import GuardFilter
from hpa_lightning.filtering.image_classifier import ImageClassifier
from hpa_lightning.filtering.nsfw_detectors import NudeNetFilter, OpenNSFWFilter
from hpa_lightning.filtering.string_rules import PhraseFilter, RefusalFilter
from hpa_lightning.filtering.text_classifier import TextClassifier

__all__ = [
    "Assessment",
    "FilterCounts",
    "FilterOutcome",
    "FilterRule",
    "Finding",
    "GuardFilter",
    "HarmFilter",
    "ImageClassifier",
    "NudeNetFilter",
    "OpenNSFWFilter",
    "PhraseFilter",
    "RefusalFilter",
    "TextClassifier",
    "declared_parts",
    "filter_data",
    "preview_filter",
    "worst",
]
