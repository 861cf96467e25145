"""Vision towers of timm and of Hugging Face: built, and asked for the features that become tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, CLIPImageProcessor, PretrainedConfig

from hpa_lightning.data.record import open_image
from hpa_lightning.values import shown

FeatureSelect = Literal["patch", "full"]
_TIMM_PREFIXES = ("hf_hub:", "hf-hub:", "local-dir:")


def is_hugging_face(tower: str | dict[str, Any] | PretrainedConfig) -> bool:
    """Whether ``tower`` names a Hugging Face vision model: a configuration, a folder, or a hub name with a slash.

    A name without a slash is timm's, as is one with timm's own prefixes.

    >>> is_hugging_face("openai/clip-vit-large-patch14-336"), is_hugging_face("vit_base_patch16_224")
    (True, False)
    """
    if not isinstance(tower, str):
        return True
    return not tower.startswith(_TIMM_PREFIXES) and ("/" in tower or Path(tower).is_dir())


def vision_config_of(tower: str | dict[str, Any] | PretrainedConfig) -> PretrainedConfig:
    """The configuration of a Hugging Face vision model; of a model of texts and images, that of its vision part.

    Raises:
        ValueError: it has no vision model that transformers builds by itself.
    """
    if isinstance(tower, dict):
        if "model_type" not in tower:
            raise ValueError(f"vision_tower has the keys {sorted(tower)}; expected 'model_type' among them.")
        config = AutoConfig.for_model(**tower)
    else:
        config = AutoConfig.from_pretrained(tower) if isinstance(tower, str) else tower
    config = getattr(config, "vision_config", config)
    if type(config) not in MODEL_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"vision_tower {shown(tower)} has a {type(config).__name__}; expected a vision model such as CLIP, SigLIP, "
            "DINOv2 or ViT, or the name of a timm model."
        )
    return config


def tower_class(config: PretrainedConfig) -> Any:
    """The class of transformers that builds a vision model from its configuration."""
    return MODEL_MAPPING[type(config)]


def load_hugging_face_tower(name: str, config: PretrainedConfig, dtype: torch.dtype | str | None = None) -> nn.Module:
    """Return the pretrained vision model, which may be a part of a larger one (CLIP's beside its text model).

    Raises:
        ValueError: weights that the tower needs are not there.
    """
    kind = tower_class(config)
    tower, found = kind.from_pretrained(name, config=config, dtype=dtype or torch.float32, output_loading_info=True)
    missing = [key for key in found["missing_keys"] if "pooler" not in key and ".head." not in f".{key}"]
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of a {kind.__name__} ({', '.join(sorted(missing)[:3])}, ...); "
            "expected a pretrained vision model."
        )
    result: nn.Module = tower
    return result


def tower_features(tower: nn.Module, pixel_values: Tensor, layer: int = -2, select: FeatureSelect = "patch") -> Tensor:
    """Return the tower's spatial features as ``(images, tokens, channels)``, whatever its layout.

    Of a timm model the last features. Of a Hugging Face model the hidden states of ``layer``, as LLaVA takes them from
    CLIP (arXiv 2310.03744): -1 is the last block's output, -2 (LLaVA's) that of the block before.

    Args:
        tower: the vision model.
        pixel_values: ``(images, 3, height, width)``.
        layer: index into the hidden states (0: the embeddings). Not used with timm.
        select: ``"patch"`` leaves the class and register tokens out, ``"full"`` keeps them. Not used with timm.

    Raises:
        ValueError: the features are neither tokens nor a map, or there is no such layer.
    """
    config = getattr(tower, "config", None)
    if not isinstance(config, PretrainedConfig):
        return spatial_features(tower, pixel_values)
    states = tower(pixel_values=pixel_values, output_hidden_states=True).hidden_states
    if not -len(states) <= layer < len(states):
        raise ValueError(
            f"feature_layer is {layer}, but {type(tower).__name__} has the hidden states of {len(states) - 1} blocks; "
            f"expected {-len(states)} to {len(states) - 1}."
        )
    features = states[layer]
    if features.ndim == 4:  # ConvNeXt and its like: (images, channels, height, width)
        found: Tensor = features.flatten(2).transpose(1, 2)
        return found
    if features.ndim != 3:
        raise ValueError(
            f"{type(tower).__name__} yields features of shape {tuple(features.shape)}; expected tokens (images, "
            "tokens, channels) or a feature map."
        )
    chosen: Tensor = (
        features if select == "full" else features[:, _prefix_tokens(config, pixel_values, features.shape[1]) :]
    )
    return chosen


def _prefix_tokens(config: PretrainedConfig, pixel_values: Tensor, tokens: int) -> int:
    """Class and register tokens: what is there beyond the patches. A hierarchical tower has fewer tokens and none."""
    patch = getattr(config, "patch_size", None)
    if patch is None:
        return 0
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return max(0, tokens - (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width))


def spatial_features(tower: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return a timm tower's spatial features as ``(images, tokens, channels)``, whatever its layout.

    Raises:
        ValueError: the features are neither tokens nor a map.
    """
    features = tower.forward_features(pixel_values)  # type: ignore[operator]
    if features.ndim == 3:
        found: Tensor = features[:, getattr(tower, "num_prefix_tokens", 0) :]
        return found
    if features.ndim == 4 and getattr(tower, "output_fmt", "NCHW") == "NHWC":
        tokens: Tensor = features.flatten(1, 2)
        return tokens
    if features.ndim == 4:
        places: Tensor = features.flatten(2).transpose(1, 2)
        return places
    raise ValueError(
        f"{type(tower).__name__} yields features of shape {tuple(features.shape)}; expected tokens (images, tokens, "
        "channels) or a feature map."
    )


def pool_features(features: Tensor, side: int) -> Tensor:
    """Return features averaged to a grid of ``side`` x ``side`` places, ``(images, side * side, channels)``.

    Args:
        features: ``(images, tokens, channels)``, the places of a square grid row by row.
        side: of the new grid; where it does not divide the old one, averaged places overlap.

    Raises:
        ValueError: the places are no square, or fewer than are wanted.
    """
    images, tokens, channels = features.shape
    old = math.isqrt(tokens)
    if old * old != tokens or old < side:
        raise ValueError(
            f"image_grid is {side}, but the vision tower yields {tokens} features of an image; expected a square grid "
            f"of at least {side} x {side}. Leave class tokens out (feature_select: patch), or choose a smaller grid."
        )
    grid = features.transpose(1, 2).reshape(images, channels, old, old)
    pooled = nn.functional.adaptive_avg_pool2d(grid, side)
    return pooled.flatten(2).transpose(1, 2)


def check_features(layer: Any, select: Any) -> None:
    """Check the two settings.

    Raises:
        ValueError: a layer that is no whole number, or an unknown selection.
    """
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise ValueError(f"feature_layer is {shown(layer)}; expected the number of a hidden state, such as -2.")
    if select not in get_args(FeatureSelect):
        raise ValueError(f"feature_select is {shown(select)}; expected one of {', '.join(get_args(FeatureSelect))}.")


def check_image_grid(side: Any, pictures: Any) -> None:
    """Check the side of the grid that features are averaged to, and how many pictures' features are remembered.

    Raises:
        ValueError: no whole number of at least 1 (or ``None``), and of at least 0.
    """
    for name, value, least in (("image_grid", 1 if side is None else side, 1), ("remembered_pictures", pictures, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {shown(value)}; expected a whole number of at least {least}.")


def timm_data_config(tower: nn.Module, side: int | None) -> dict[str, Any]:
    """Arguments of timm's image transform for a tower; ``side`` in pixels, the tower's own when ``None``."""
    found: dict[str, Any] = resolve_data_config({"input_size": (3, side, side)} if side else {}, model=tower)
    return found


def image_processor_of(tower: Any, config: PretrainedConfig, given: Any) -> Any:
    """The image processor: the one that was given (or its name), the tower's own, or CLIP's for random weights."""
    if given is not None and not isinstance(given, str | Path):
        return given
    name = given or (tower if isinstance(tower, str) else None)
    if name is not None:
        return AutoImageProcessor.from_pretrained(name)
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def probe_pixels(image_processor: Any) -> Tensor:
    """What the image processor makes of a blank picture, ``(1, 3, height, width)``.

    Raises:
        ValueError: it makes several tiles, or something without a fixed size, of one picture.
    """
    import numpy as np

    blanks = [open_image(np.zeros(size, dtype=np.uint8), "a blank picture") for size in ((64, 96, 3), (96, 64, 3))]
    shapes = [tuple(image_processor(images=[blank], return_tensors="pt")["pixel_values"].shape) for blank in blanks]
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][0] != 1:
        raise ValueError(
            f"{type(image_processor).__name__} makes pixel values of shapes {shapes} of pictures of two forms; "
            "expected (1, 3, height, width) of a fixed size, as the processors of CLIP, SigLIP and DINOv2 make them."
        )
    return torch.zeros(shapes[0])


def build_timm_tower(name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
    """Return a timm model without its classifier."""
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
