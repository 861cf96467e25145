"""A part of a filter that asks an image classifier of transformers or timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hpa_lightning.data.record import Record
from hpa_lightning.filtering.assessment import Finding
from hpa_lightning.filtering.class_scores import check_activation, class_scores, label_finding, wanted_labels
from hpa_lightning.filtering.model_loading import naming_model
from hpa_lightning.filtering.picture_findings import check_sizes, picture_findings
from hpa_lightning.parsing import json_object
from hpa_lightning.whole_model import load_whole

_PART = "ImageClassifier"


class ImageClassifier:
    """Calls a record harmful where an image classifier gives one of its pictures a label of harm.

    Pictures are prepared as the model's own processor or timm configuration says. The model is loaded at the first
    call, or by :meth:`load`.

    Args:
        model: of transformers: a folder or hub name; of timm: a folder in timm's format, a hub name that begins with
            ``timm/`` or ``hf-hub:``, or the name of a pretrained model.
        labels: the model's labels that mean harm, or label -> threshold.
        threshold: least score of a label that counts, for those without their own.
        label_names: of a timm model that does not bring the names of its labels, all of them in order.
        activation: see :class:`~hpa_lightning.filtering.TextClassifier`; ``"auto"`` is softmax for timm.
        batch_size: pictures in one forward pass.
        workers: threads that open pictures.
        dtype: of the weights.
        device: where it runs; a CUDA device if there is one when ``None``.

    Raises:
        ValueError: an unknown activation, a threshold outside (0, 1]. When loaded: no such model, one whose head is not
            in its file, a label that it does not have, or no names of labels.
    """

    reads_images = True

    def __init__(
        self,
        model: str,
        labels: list[str] | dict[str, float],
        threshold: float = 0.5,
        label_names: list[str] | None = None,
        activation: str = "auto",
        batch_size: int = 32,
        workers: int = 4,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        check_sizes(_PART, batch_size, workers)
        self.model = str(model)
        self.labels = wanted_labels(_PART, labels, threshold)
        self.label_names = label_names
        self.activation = check_activation(_PART, activation)
        self.batch_size = batch_size
        self._workers = workers
        self.dtype = dtype
        self.device = device
        self._loaded: tuple[Callable[[list[Image.Image]], Tensor], list[str]] | None = None

    def load(self) -> None:
        """Load the model, which otherwise happens at the first call."""
        if self._loaded is not None:
            return
        with naming_model(_PART, self.model, "an image classifier"):
            scores, known = self._timm() if _is_timm(self.model) else self._transformers()
        wanted_labels(_PART, self.labels, 1.0, known)
        self._loaded = scores, known

    def __call__(self, records: Sequence[Record]) -> list[Finding]:
        """One finding for each record: of the picture and label with the highest score."""
        return picture_findings(records, self._assess, self.batch_size, self._workers)

    def scores(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """Return label -> score of every RGB picture, for all labels of the model."""
        self.load()
        assert self._loaded is not None
        scores, known = self._loaded
        return [dict(zip(known, row, strict=True)) for row in scores(list(images)).tolist()]

    def _assess(self, images: list[Image.Image], places: list[str]) -> list[Finding]:
        pairs = zip(self.scores(images), places, strict=True)
        return [label_finding(scores, self.labels, where) for scores, where in pairs]

    def _transformers(self) -> tuple[Callable[[list[Image.Image]], Tensor], list[str]]:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        classifier = load_whole(AutoModelForImageClassification.from_pretrained, self.model, self.dtype, self.device)
        processor = AutoImageProcessor.from_pretrained(self.model)
        several = classifier.config.problem_type == "multi_label_classification"

        @torch.no_grad()
        def scores(images: list[Image.Image]) -> Tensor:
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            logits = classifier(pixel_values=pixels.to(classifier.device, classifier.dtype)).logits
            return class_scores(logits, self.activation, several)

        names = classifier.config.id2label
        return scores, self.label_names or [names[index] for index in range(len(names))]

    def _timm(self) -> tuple[Callable[[list[Image.Image]], Tensor], list[str]]:
        import timm
        from timm.data import create_transform, resolve_model_data_config

        classifier: Any
        if Path(self.model).is_dir():
            classifier = _of_timm_folder(Path(self.model))
        else:
            name = f"hf-hub:{self.model}" if self.model.startswith("timm/") else self.model
            classifier = timm.create_model(name, pretrained=True)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, self.dtype)
        classifier = classifier.to(device, dtype).eval()
        transform: Any = create_transform(**resolve_model_data_config(classifier), is_training=False)

        @torch.no_grad()
        def scores(images: list[Image.Image]) -> Tensor:
            pixels = torch.stack([transform(image) for image in images]).to(device, dtype)
            return class_scores(classifier(pixels), self.activation, several=False)

        known = self.label_names or _timm_labels(classifier)
        if len(known) != classifier.num_classes:
            raise ValueError(
                f"it has {classifier.num_classes} labels, and {len(known)} names are known; give label_names."
            )
        return scores, known


def _is_timm(model: str) -> bool:
    folder = Path(model)
    if folder.is_dir():
        return (folder / "config.json").is_file() and "architecture" in json_object(folder / "config.json")
    return "/" not in model or model.startswith(("timm/", "hf-hub:"))


def _of_timm_folder(folder: Path) -> Any:
    """The model of a folder that timm wrote for the hub; timm itself reads such folders from 1.0.16 on."""
    import timm

    config = json_object(folder / "config.json")
    weights = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not weights:
        raise ValueError("the folder holds neither model.safetensors nor pytorch_model.bin.")
    described = {**config.get("pretrained_cfg", {}), "file": str(weights[0]), "source": "file"}
    described |= {key: config[key] for key in ("num_classes", "label_names") if key in config}
    sizes = {key: config[key] for key in ("num_classes", "global_pool") if config.get(key) is not None}
    arguments = {**sizes, **config.get("model_args", {})}
    return timm.create_model(config["architecture"], pretrained=True, pretrained_cfg=described, **arguments)


def _timm_labels(classifier: Any) -> list[str]:
    """Names of the labels: of the configuration, else of ImageNet where it was trained on that."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if found := classifier.pretrained_cfg.get("label_names"):
        return list(map(str, found))
    subset = infer_imagenet_subset(classifier)
    if subset is None:
        return []
    info = ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(classifier.num_classes)]
