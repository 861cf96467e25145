"""Whether loaded weights do what they should: loaded in a foreign order of keys, they are noise of the right shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sklearn.datasets
import torch
from timm.data import create_transform
from torch import Tensor, nn

from hpa_lightning.data.record import open_image
from hpa_lightning.modules.vision_towers import spatial_features, timm_data_config

SENTENCES = (
    "The cat sat on the mat and looked out of the window at the birds.",
    "Water boils at one hundred degrees Celsius at sea level.",
    "She opened the door, walked into the kitchen and made a cup of tea.",
    "In 1969, two astronauts landed on the Moon and returned safely to Earth.",
    "The quick brown fox jumps over the lazy dog.",
    "Photosynthesis is the process by which plants turn sunlight into energy.",
    "My brother plays football every Saturday with his friends from school.",
    "The capital of France is Paris, which lies on the river Seine.",
)
LARGEST_PERPLEXITY = 30.0
"""SmolLM2-135M-Instruct has 23.0 on :data:`SENTENCES`; untrained weights have the size of the vocabulary, 49,152."""
LARGEST_OF_GEMMA = 22.0
"""Gemma 3 270M has 16.7, in tokens of its own; its vocabulary has 262,144."""
_PHOTOGRAPHS = {"china.jpg": 698, "flower.jpg": 985}
"""Photographs that scikit-learn brings, and ImageNet's class of each: palace, daisy."""


@torch.no_grad()
def perplexity(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> float:
    """Return the perplexity per token over all texts together; the first token of each is given."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        tokens = ids.shape[1] - 1
        total += float(model(input_ids=ids, labels=ids).loss) * tokens
        count += tokens
    return math.exp(total / count)


def check_language_model(model: nn.Module, tokenizer: Any, at_most: float = LARGEST_PERPLEXITY) -> float:
    """Return the perplexity on :data:`SENTENCES`.

    Raises:
        ValueError: it is above ``at_most``.
    """
    found = perplexity(model, tokenizer, SENTENCES)
    if not found <= at_most:
        raise ValueError(
            f"the language model has a perplexity of {found:,.1f} on plain sentences; expected at most "
            f"{at_most:g}. Its weights were not loaded as they were stored."
        )
    return found


@torch.no_grad()
def check_classifier(model: nn.Module) -> None:
    """Check that an ImageNet classifier of timm names two photographs that scikit-learn brings.

    Raises:
        ValueError: another class is likelier.
    """
    transform: Any = create_transform(**timm_data_config(model, None), is_training=False)
    folder = Path(sklearn.datasets.__file__).parent / "images"
    for name, wanted in _PHOTOGRAPHS.items():
        scores = model(transform(open_image(folder / name, name))[None])[0]
        if (found := int(scores.argmax())) != wanted:
            raise ValueError(
                f"the vision tower takes the photograph {name} for class {found} of ImageNet; expected {wanted}. Its "
                "weights were not loaded as they were stored."
            )


@torch.no_grad()
def picture_vectors(tower: nn.Module, pictures: Sequence[Any], side: int = 224, batch_size: int = 16) -> Tensor:
    """Return the mean over the places of a timm tower's features, ``(pictures, channels)`` float32.

    Args:
        tower: of timm, without its classifier.
        pictures: paths or images.
        side: height and width in pixels at which the tower sees them.
        batch_size: pictures in one forward pass.
    """
    transform: Any = create_transform(**timm_data_config(tower, side), is_training=False)
    found = []
    for start in range(0, len(pictures), batch_size):
        pixels = torch.stack([transform(open_image(one, str(one))) for one in pictures[start : start + batch_size]])
        found.append(spatial_features(tower, pixels).mean(dim=1).float())
    return torch.cat(found)


def neighbour_accuracy(vectors: Tensor, labels: Sequence[Any]) -> float:
    """Share of the vectors whose nearest other one, by cosine, has the same label.

    >>> neighbour_accuracy(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), ["cat", "cat", "dog"])
    0.6666666666666666
    """
    unit = torch.nn.functional.normalize(vectors - vectors.mean(dim=0), dim=1)
    likeness = (unit @ unit.T).fill_diagonal_(-2.0)
    nearest = likeness.argmax(dim=1).tolist()
    same = [place for place, other in enumerate(nearest) if labels[place] == labels[other]]
    return len(same) / len(labels)


def check_tower(tower: nn.Module, pictures: Sequence[Any], labels: Sequence[Any], at_least: float) -> float:
    """Return the leave-one-out accuracy of the nearest neighbour on labelled pictures.

    Args:
        tower: of timm, without its classifier.
        pictures: paths or images.
        labels: one for each.
        at_least: the accuracy that it has to reach, a fraction.

    Raises:
        ValueError: it is lower.
    """
    found = neighbour_accuracy(picture_vectors(tower, pictures), labels)
    if found < at_least:
        raise ValueError(
            f"{found:.1%} of {len(labels)} pictures have a nearest neighbour of their own kind in the vision tower's "
            f"features; expected at least {at_least:.0%}. Its weights were not loaded as they were stored."
        )
    return found
