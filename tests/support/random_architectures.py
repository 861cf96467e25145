"""Any architecture of transformers at a tiny size with random weights, from its configuration, and its processor.

Configurations start from transformers' defaults, of which every size is made small; processors get a tokenizer that has
every special token that any of them asks for. Nothing is read from the hub.
"""

from __future__ import annotations

import copy
import inspect
import re
from functools import cache
from typing import Any

import torch
import transformers
from support.architecture_cases import CASES
from support.tiny_mllms import SIDE, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
# Attributes of a tokenizer that processors read: <name>_token and <name>_token_id.
NAMED = (
    *("image", "video", "audio", "boi", "eoi", "boa", "eoa", "eol", "eof", "image_wrapper", "img_line_break"),
    *("image_start", "image_end", "video_start", "video_end", "start_image", "end_image", "context_image"),
    *("vision_start", "vision_end", "vision_bos", "vision_eos", "audio_bos", "audio_eos", "slice_start", "slice_end"),
    *("image_id_start", "image_id_end", "image_break", "image_boundary", "audio_start", "audio_end"),
)
# Images stand between other tokens, as in every published template: models tell neighbours apart by them.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|>IMAGE<|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "dim", "n_embd", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("out_hidden_size", "projection_dim", "text_hidden_size", "projector_hidden_size"), 32),
    **dict.fromkeys(("output_dim", "projection_hidden_dim", "merged_hidden_size", "vision_output_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "mlp_dim", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("dense_intermediate_size", "shared_intermediate_size", "moe_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers", "encoder_layers", "decoder_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "resampler_n_heads"), 4),
    **dict.fromkeys(("swa_num_attention_heads", "num_sliding_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "resampler_head_dim", "d_kv", "index_head_dim"), 8),
    **dict.fromkeys(("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts", "resampler_depth"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "mamba_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("resampler_n_latents", "num_query_tokens"), 4),
    "ssm_state_size": 8,
    "image_size": SIDE,
    "patch_size": 7,
    "max_position_embeddings": 4096,
    "mrope_section": [2, 1, 1],
}
_SMALL_ARGUMENTS = {
    "patch_size": 7,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "image_seq_length": 16,
    "image_seq_len": 4,
    "num_image_tokens": 16,
}


def build(model_type: str) -> tuple[Any, Any]:
    """The model, in eval mode and fp32, and its processor, with a chat template."""
    case = copy.deepcopy(CASES.get(model_type, {}))  # configurations change what they are given
    tokenizer = tokenizer_of_all(case.get("tokenizer", {}))
    tokenizer.add_tokens(list(case.get("extra", ())), special_tokens=True)
    processor = _processor(model_type, tokenizer, case)
    settings = _shrunk(AutoConfig.for_model(model_type).to_dict(), SIZES | case.get("sizes", {}))
    settings = _with_tokens(settings, tokenizer, processor, case)
    for path, value in case.get("config", {}).items():
        _put(settings, path, value)
    del settings["model_type"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **settings)
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval(), processor


def tokenizer_of_all(changed: dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer with every special token of every processor; ``changed`` names some otherwise."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()),
        **SPECIAL,
        sep_token="<sep>",
        extra_special_tokens=_named_tokens() | changed,
        model_max_length=4096,
    )


def _named_tokens() -> dict[str, str]:
    return {f"{name}_token": f"<|{name}|>" for name in NAMED} | {"image_token": "<image>"}


@cache
def _vocabulary() -> str:
    found = {"<sep>", *_named_tokens().values()}
    for name in PROCESSOR_MAPPING_NAMES.values():
        module = inspect.getmodule(getattr(transformers, name, None))
        source = inspect.getsource(module) if module is not None else ""  # of an optional package that is missing
        found |= set(re.findall(r"[\"'](<\|?[a-zA-Z_0-9:]+\|?>)[\"']", source))
    return tiny_tokenizer(SPECIAL, tuple(sorted(found - set(SPECIAL.values())))).backend_tokenizer.to_str()


# -- configurations ------------------------------------------------------------------------------------------------


def _shrunk(settings: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """The settings with every known size made small, and as many layers as there are kinds of them, at least two."""
    dropped = ("id2label", "label2id", "per_layer_config", "transformers_version", "architectures")
    result = {key: value for key, value in settings.items() if key not in dropped}
    depth = next((settings[key] for key in ("num_hidden_layers", "n_layers") if settings.get(key)), None)
    per_layer = {key: v for key, v in result.items() if depth and isinstance(v, list) and len(v) == depth}
    kinds: dict[str, int] = {}
    for index in range(depth or 0):
        kinds.setdefault(str([value[index] for value in per_layer.values()]), index)
    chosen = sorted(kinds.values())[:4]
    chosen = chosen * 2 if len(chosen) == 1 else chosen
    for key, value in result.items():
        if key in per_layer:
            result[key] = [value[index] for index in chosen]
        elif isinstance(value, dict):
            result[key] = _shrunk(value, sizes)
        elif key == "num_key_value_heads" and value is not None and value == settings.get("num_attention_heads"):
            result[key] = 4
        elif key in sizes and isinstance(value, int) and not isinstance(value, bool):
            result[key] = sizes[key]
        elif key in sizes and isinstance(value, list):
            result[key] = sizes[key] if isinstance(sizes[key], list) else [sizes[key]] * len(value)
    for key in ("num_hidden_layers", "n_layers"):
        if per_layer and key in result:
            result[key] = len(chosen)
    return result


def _with_tokens(settings: dict[str, Any], tokenizer: Any, processor: Any, case: dict[str, Any]) -> dict[str, Any]:
    image = getattr(processor, "image_token_id", None) or tokenizer.image_token_id
    if "image_token" in case:
        image = tokenizer.convert_tokens_to_ids(case["image_token"])
    for key, value in settings.items():
        match = re.fullmatch(r"(\w+_token)_(id|index)", str(key))
        if isinstance(value, dict):
            settings[key] = _with_tokens(value, tokenizer, processor, case)
        elif key in ("vocab_size", "unpadded_vocab_size"):
            settings[key] = len(tokenizer)
        elif key in ("image_token_id", "image_token_index", "image_patch_id"):
            settings[key] = image
        elif match and isinstance(value, int):
            token = getattr(processor, match[1], None) or getattr(tokenizer, match[1], None)
            settings[key] = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else 5
    return settings


def _put(settings: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
    settings[last] = value


# -- processors ----------------------------------------------------------------------------------------------------


def _processor(model_type: str, tokenizer: Any, case: dict[str, Any]) -> Any:
    kind = getattr(transformers, case.get("processor_class") or PROCESSOR_MAPPING_NAMES[model_type])
    parameters = inspect.signature(kind.__init__).parameters
    arguments: dict[str, Any] = {"tokenizer": tokenizer}
    images = _class_of(IMAGE_PROCESSOR_MAPPING_NAMES, case.get("image_processor_of", model_type))
    videos = _class_of(VIDEO_PROCESSOR_MAPPING_NAMES, case.get("video_processor_of", model_type))
    audio = _class_of(FEATURE_EXTRACTOR_MAPPING_NAMES, model_type) or getattr(transformers, case.get("audio", ""), None)
    if images is not None:
        arguments["image_processor"] = images(**_small_images(images) | case.get("image", {}))
    if videos is not None and "video_processor" in parameters:
        arguments["video_processor"] = videos()
    if audio is not None and "feature_extractor" in parameters:
        arguments["feature_extractor"] = audio()
    arguments |= {key: value for key, value in _SMALL_ARGUMENTS.items() if key in parameters}
    if model_type == "smolvlm":  # an optional package, which videos alone need
        inspect.getmodule(kind).num2words = str  # type: ignore[union-attr]
    processor = kind(**arguments | case.get("processor", {}))
    for key, value in case.get("processor_settings", {}).items():
        setattr(processor, key, value)
    token = case.get("image_text") or getattr(processor, "image_token", None) or "<image>"
    processor.chat_template = TEMPLATE.replace("IMAGE", token)
    return processor


def _class_of(mapping: Any, model_type: str) -> Any:
    found = mapping.get(model_type)
    if isinstance(found, dict):
        found = found.get("pil") or found["torchvision"]
    return getattr(transformers, found) if found else None


def _small_images(kind: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    size = getattr(kind, "size", None)
    if isinstance(size, dict):
        found["size"] = dict.fromkeys(size, SIDE)
        if set(size) == {"shortest_edge", "longest_edge"} and size["longest_edge"] > 5000:  # counted in pixels
            found["size"] = {"shortest_edge": SIDE**2, "longest_edge": 4 * SIDE**2}
    if isinstance(getattr(kind, "crop_size", None), dict):
        found["crop_size"] = {"height": SIDE, "width": SIDE}
    if isinstance(getattr(kind, "patch_size", None), int):
        found["patch_size"] = 7
    return found
