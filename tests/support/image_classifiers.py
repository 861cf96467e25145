"""Image classifiers of real architectures at a tiny size, in folders, and pictures from installed packages."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.models._hub import save_for_hf  # timm.models has it from 1.0.16 on
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

IMAGE_LABELS = ["drawings", "nude", "neutral"]


def write_vit(folder: Path, problem_type: str | None = None) -> str:
    """Write a ViT of transformers with random weights that tell pictures apart."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
        id2label=dict(enumerate(IMAGE_LABELS)),
        problem_type=problem_type,
    )
    ViTForImageClassification(config).eval().save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def write_timm(folder: Path, named: bool = True) -> str:
    """Write a ResNet of timm, as its ``push_to_hf_hub`` does, with the names of its labels or without."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=len(IMAGE_LABELS))
    torch.nn.init.normal_(model.get_classifier().weight, std=1.0)
    names = {"label_names": IMAGE_LABELS} if named else {}
    try:
        save_for_hf(model, str(folder), model_config=names)
    except RuntimeError:  # timm 1.0.15 does not know the newer hub packages
        folder.mkdir()
        own = {key: value for key, value in model.pretrained_cfg.items() if value not in (None, "")}
        config = {"architecture": "resnet10t", "num_classes": len(IMAGE_LABELS), "pretrained_cfg": own, **names}
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return str(folder)


def photographs(folder: Path) -> list[Path]:
    """Write three photographs: a temple, a flower, and Grace Hopper."""
    china, flower = (Image.fromarray(picture) for picture in load_sample_images().images)
    pictures: dict[str, Image.Image] = {"china": china, "flower": flower}
    pictures["hopper"] = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in pictures]
