"""Which architectures are refused, and why; what is supported is in docs/architectures.md."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

_ENCODER_DECODER = "an encoder-decoder: the answer does not continue the prompt"
_NO_PLACE = "its images have no place in the conversation, and every record needs exactly one"
_READS_ANSWERS = "its Q-Former reads the whole text, the answer to be learnt included, before the image is encoded"

#: ``model_type`` -> reason. Encoder-decoders that are not named here are refused all the same.
REFUSED: dict[str, str] = {
    "blip": _NO_PLACE,
    "blip-2": _NO_PLACE,
    "chameleon": "its processor writes a separator after every text, between prompt and answer too",
    "diffusion_gemma": "denoises blocks of tokens and has no next-token loss",
    "evolla": "answers questions on proteins, not on images",
    "florence2": _ENCODER_DECODER,
    "git": _NO_PLACE,
    "instructblip": _READS_ANSWERS,
    "instructblipvideo": _READS_ANSWERS,
    "kosmos-2": _NO_PLACE,
    "kosmos-2.5": _NO_PLACE,
    "paligemma": "a prefix model: it attends both ways over what is not marked as answer, and its processor writes a "
    "line break after every text, between prompt and answer too",
    "pi0": "returns the actions of a robot, not text",
    "pix2struct": _ENCODER_DECODER,
    "pp_chart2table": _NO_PLACE,
    "pp_formulanet": _ENCODER_DECODER,
    "shieldgemma2": "classifies images by policies and writes no answers",
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "vision-encoder-decoder": _ENCODER_DECODER,
}

# Their processors, for a collator that knows no model. Those that several architectures share are not among them.
_PROCESSORS = {
    "BlipProcessor": "blip",
    "Blip2Processor": "blip-2",
    "ChameleonProcessor": "chameleon",
    "EvollaProcessor": "evolla",
    "Florence2Processor": "florence2",
    "GitProcessor": "git",
    "InstructBlipProcessor": "instructblip",
    "InstructBlipVideoProcessor": "instructblipvideo",
    "Kosmos2Processor": "kosmos-2",
    "Kosmos2_5Processor": "kosmos-2.5",
    "PaliGemmaProcessor": "paligemma",
    "PI0Processor": "pi0",
    "Pix2StructProcessor": "pix2struct",
    "PPChart2TableProcessor": "pp_chart2table",
    "PPFormulaNetProcessor": "pp_formulanet",
    "ShieldGemma2Processor": "shieldgemma2",
    "UdopProcessor": "udop",
}


def check_architecture(config: Any) -> None:
    """Refuse a model by its configuration.

    Raises:
        ValueError: naming the architecture and the reason.
    """
    name = getattr(config, "model_type", None)
    reason = REFUSED.get(name or "")
    if reason is None and getattr(config, "is_encoder_decoder", False):
        reason = _ENCODER_DECODER
    if reason is not None:
        raise ValueError(f"the architecture {name!r} is not supported: {reason}. See docs/architectures.md.")


def check_processor(processor: Any) -> None:
    """Refuse a processor that belongs to a refused architecture.

    Raises:
        ValueError: naming the processor and the reason.
    """
    for kind in type(processor).__mro__:
        name = _PROCESSORS.get(kind.__name__)
        if name is not None:
            raise ValueError(
                f"{type(processor).__name__} (architecture {name!r}) is not supported: {REFUSED[name]}. See "
                "docs/architectures.md."
            )


def quantisation(config: Any) -> dict[str, Any] | None:
    """The ``quantization_config`` of a model's configuration, or of its language model's; ``None`` without one."""
    for part in (config, config.get_text_config()):  # some programs write it for the language model alone
        found = getattr(part, "quantization_config", None)
        if found is not None:
            return dict(found if isinstance(found, dict) else vars(found))
    return None


def auto_class_of(config: Any) -> Any:
    """Return ``AutoModelForImageTextToText``, or ``AutoModelForCausalLM`` for a model that reads text alone.

    Raises:
        ValueError: a refused architecture, or one that is neither.
    """
    check_architecture(config)
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            return auto
    raise ValueError(
        f"{type(config).__name__} is neither an image-text-to-text nor a causal language model's configuration; "
        "expected one of docs/architectures.md, or a causal language model."
    )
