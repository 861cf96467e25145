"""A multimodal model built from any timm vision tower and any Hugging Face causal language model."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from hpa_lightning.modules.timm_processor import TimmProcessor


class TimmMLLMConfig(PretrainedConfig):
    """Configuration of :class:`TimmMLLM`.

    Args:
        vision_tower: name of a timm model.
        vision_arguments: further arguments of ``timm.create_model``, such as ``img_size``.
        text_config: configuration of the causal language model, as an object or a dict.
        image_token_id: id of the token that stands for one visual feature.
        feature_size: channels of the tower's features.
        image_tokens: features, and so tokens, of one image.
    """

    model_type = "timm_mllm"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - declared so by the parent

    def __init__(
        self,
        vision_tower: str = "vit_base_patch16_224",
        vision_arguments: dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        image_token_id: int = 0,
        feature_size: int = 768,
        image_tokens: int = 196,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.vision_tower = vision_tower
        self.vision_arguments = dict(vision_arguments or {})
        self.text_config = text_config
        self.image_token_id = image_token_id
        self.feature_size = feature_size
        self.image_tokens = image_tokens
        super().__init__(**kwargs)


class TimmMLLM(PreTrainedModel):
    """Vision tower, two-layer MLP projector (LLaVA-1.5, Liu et al., arXiv 2310.03744), causal language model.

    All spatial features of the tower become tokens of the language model: the patch tokens of a ViT without its prefix
    tokens, the last feature map of a convolutional or hierarchical network.
    """

    config_class = TimmMLLMConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: TimmMLLMConfig) -> None:
        super().__init__(config)
        # timm's constant buffers are not stored in checkpoints, so the tower is never made without memory.
        with torch.device("cpu"):
            self.vision_tower = timm.create_model(config.vision_tower, num_classes=0, **config.vision_arguments)
        assert config.text_config is not None
        width = config.text_config.hidden_size
        self.projector = nn.Sequential(nn.Linear(config.feature_size, width), nn.GELU(), nn.Linear(width, width))
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every Hugging Face model does, the tower's constant buffers included."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loading leaves buffers that no checkpoint holds uninitialised; they follow from the architecture alone.
        fresh = timm.create_model(model.config.vision_tower, num_classes=0, **model.config.vision_arguments)
        for module, source in zip(model.vision_tower.modules(), fresh.modules(), strict=True):
            for name in module._non_persistent_buffers_set:
                constant = getattr(source, name)
                if constant is not None:
                    setattr(module, name, constant.to(next(model.vision_tower.parameters()).device))
        return loaded

    def get_decoder(self) -> nn.Module:
        """Return the language model without its head; its ``layers`` are the decoder blocks."""
        return self.language_model.get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        return self.language_model.get_output_embeddings()

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Return projected features ``(images, image_tokens, hidden_size)`` of ``(images, 3, height, width)``."""
        return self.projector(spatial_features(self.vision_tower, pixel_values))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the language model's output; ``loss`` over ``labels`` other than -100."""
        return self.language_model(
            inputs_embeds=self._embed(input_ids, pixel_values), attention_mask=attention_mask, labels=labels, **kwargs
        )

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the prompts followed by the generated tokens; ``kwargs`` as in ``language_model.generate``."""
        embeddings = self._embed(input_ids, pixel_values)
        new = self.language_model.generate(inputs_embeds=embeddings, attention_mask=attention_mask, **kwargs)
        return torch.cat([input_ids, new], dim=1)

    def _embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        embeddings = self.get_input_embeddings()(input_ids)
        places = input_ids == self.config.image_token_id
        if pixel_values is None:
            if bool(places.any()):
                raise ValueError("input_ids hold image tokens but no pixel_values were given.")
            return embeddings
        features = self.image_features(pixel_values).to(embeddings.dtype)
        if int(places.sum()) != features.shape[0] * features.shape[1]:
            raise ValueError(
                f"{int(places.sum())} image tokens for {features.shape[0]} images of {features.shape[1]} features; "
                "the processor and the vision tower do not fit together."
            )
        return embeddings.masked_scatter(places.unsqueeze(-1), features)


def spatial_features(tower: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return the tower's spatial features as ``(images, tokens, channels)``, whatever its layout.

    Raises:
        ValueError: the features are neither tokens nor a map.
    """
    features = tower.forward_features(pixel_values)  # type: ignore[operator]
    if features.ndim == 3:
        return features[:, getattr(tower, "num_prefix_tokens", 0) :]
    if features.ndim == 4 and getattr(tower, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    raise ValueError(
        f"{type(tower).__name__} yields features of shape {tuple(features.shape)}; expected tokens (images, tokens, "
        "channels) or a feature map."
    )


def build_timm_mllm(
    vision_tower: str,
    language_model: str | dict[str, Any] | PretrainedConfig,
    tokenizer: Any = None,
    pretrained_vision: bool = True,
    vision_arguments: dict[str, Any] | None = None,
    image_size: int | None = None,
    image_token: str = "<image>",
    chat_template: str | None = None,
) -> tuple[TimmMLLM, TimmProcessor]:
    """Put a timm vision tower and a causal language model together; the projector starts untrained.

    Args:
        vision_tower: name of a timm model.
        language_model: hub name or folder (pretrained weights), or a configuration (random weights).
        tokenizer: a fast tokenizer, or the name or folder of one; the language model's when ``None``.
        pretrained_vision: load timm's pretrained weights.
        vision_arguments: further arguments of ``timm.create_model``, such as ``img_size``.
        image_size: height and width in pixels; ``img_size`` if that is given, else what timm's model was trained with.
        image_token: added to the tokenizer, and to the embeddings, where it is not known.
        chat_template: the tokenizer's when ``None``.

    Raises:
        ValueError: no tokenizer.
    """
    if isinstance(tokenizer, str) or (tokenizer is None and isinstance(language_model, str)):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer or language_model)
    if tokenizer is None:
        raise ValueError("a language model from a configuration brings no tokenizer; pass tokenizer=.")
    if image_token not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [image_token]}, replace_extra_special_tokens=False)
    text_model: PreTrainedModel | None = None
    if isinstance(language_model, str):
        text_model = AutoModelForCausalLM.from_pretrained(language_model)
        text_config = text_model.config
    else:
        text_config = AutoConfig.for_model(**language_model) if isinstance(language_model, dict) else language_model
    tower = timm.create_model(vision_tower, pretrained=pretrained_vision, num_classes=0, **(vision_arguments or {}))
    side = image_size or (vision_arguments or {}).get("img_size")
    data_config = resolve_data_config({"input_size": (3, side, side)} if side else {}, model=tower)
    with torch.no_grad():
        features = spatial_features(tower.eval(), torch.zeros(1, *data_config["input_size"]))
    config = TimmMLLMConfig(
        vision_tower=vision_tower,
        vision_arguments=vision_arguments,
        text_config=text_config,
        image_token_id=tokenizer.convert_tokens_to_ids(image_token),
        feature_size=features.shape[2],
        image_tokens=features.shape[1],
    )
    model = TimmMLLM(config)
    model.vision_tower = tower
    if text_model is not None:
        model.language_model = text_model
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        model.language_model.resize_token_embeddings(len(tokenizer))
    processor = TimmProcessor(tokenizer, data_config, config.image_tokens, image_token, chat_template)
    return model, processor


AutoConfig.register(TimmMLLMConfig.model_type, TimmMLLMConfig)
AutoModelForImageTextToText.register(TimmMLLMConfig, TimmMLLM)
