"""A multimodal model built from any vision tower of timm or Hugging Face and any causal language model."""

from __future__ import annotations

from typing import Any, cast

import torch
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

from hpa_lightning.modules.feature_memory import FeatureMemory
from hpa_lightning.modules.timm_processor import TimmProcessor
from hpa_lightning.modules.vision_towers import (
    FeatureSelect,
    build_timm_tower,
    check_features,
    check_image_grid,
    image_processor_of,
    is_hugging_face,
    load_hugging_face_tower,
    pool_features,
    probe_pixels,
    spatial_features,
    timm_data_config,
    tower_class,
    tower_features,
    vision_config_of,
)

__all__ = ["TimmMLLM", "TimmMLLMConfig", "build_timm_mllm", "spatial_features"]


class TimmMLLMConfig(PretrainedConfig):
    """Configuration of :class:`TimmMLLM`.

    Args:
        vision_tower: name of a timm model.
        vision_arguments: further arguments of ``timm.create_model``, such as ``img_size``.
        text_config: configuration of the causal language model, as an object or a dict.
        image_token_id: id of the token that stands for one visual feature.
        feature_size: channels of the tower's features.
        image_tokens: features, and so tokens, of one image.
        vision_config: configuration of a Hugging Face vision model, instead of ``vision_tower``; ``None`` with timm.
        feature_layer: hidden states of a Hugging Face tower that become tokens, see :func:`tower_features`.
        feature_select: ``"patch"`` or ``"full"``, likewise.
        image_grid: the features are averaged to a grid of so many by so many; as they are when ``None``.
        remembered_pictures: a frozen tower's features of so many pictures are kept in memory, each seen once.
    """

    model_type = "timm_mllm"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012 - declared so by the parent

    def __init__(
        self,
        vision_tower: str = "vit_base_patch16_224",
        vision_arguments: dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        image_token_id: int = 0,
        feature_size: int = 768,
        image_tokens: int = 196,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        feature_layer: int = -2,
        feature_select: FeatureSelect = "patch",
        image_grid: int | None = None,
        remembered_pictures: int = 0,
        **kwargs: Any,
    ) -> None:
        check_features(feature_layer, feature_select)
        check_image_grid(image_grid, remembered_pictures)
        self.image_grid = image_grid
        self.remembered_pictures = remembered_pictures
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        if isinstance(vision_config, dict):
            vision_config = AutoConfig.for_model(**vision_config)
        self.vision_config = vision_config
        self.feature_layer = feature_layer
        self.feature_select: FeatureSelect = feature_select
        self.vision_tower = vision_tower
        self.vision_arguments = dict(vision_arguments or {})
        self.text_config = text_config
        self.image_token_id = image_token_id
        self.feature_size = feature_size
        self.image_tokens = image_tokens
        super().__init__(**kwargs)


class TimmMLLM(PreTrainedModel):
    """Vision tower, two-layer MLP projector (LLaVA-1.5, Liu et al., arXiv 2310.03744), causal language model.

    The tower is timm's or Hugging Face's (CLIP, SigLIP, DINOv2, ViT, ...). All its spatial features become tokens of
    the language model: the patch tokens of a ViT without its prefix tokens, the last feature map of a convolutional or
    hierarchical network.
    """

    config_class = TimmMLLMConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: TimmMLLMConfig) -> None:
        super().__init__(config)
        if config.vision_config is not None:
            self.vision_tower = tower_class(config.vision_config)(config.vision_config)
        else:
            # timm's constant buffers are not stored in checkpoints, so the tower is never made without memory.
            with torch.device("cpu"):
                self.vision_tower = build_timm_tower(config.vision_tower, config.vision_arguments, pretrained=False)
        assert config.text_config is not None
        width = config.text_config.hidden_size
        self.projector = nn.Sequential(nn.Linear(config.feature_size, width), nn.GELU(), nn.Linear(width, width))
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.feature_memory = FeatureMemory(config.remembered_pictures)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every Hugging Face model does, the tower's constant buffers included."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.vision_config is not None:
            return loaded
        # Loading leaves buffers that no checkpoint holds uninitialised; they follow from the architecture alone.
        fresh = build_timm_tower(model.config.vision_tower, model.config.vision_arguments, pretrained=False)
        for module, source in zip(model.vision_tower.modules(), fresh.modules(), strict=True):
            for name in module._non_persistent_buffers_set:
                constant = getattr(source, name)
                if constant is not None:
                    setattr(module, name, constant.to(next(model.vision_tower.parameters()).device))
        return loaded

    def get_decoder(self) -> nn.Module:
        """Return the language model without its head; its ``layers`` are the decoder blocks."""
        found: nn.Module = self.language_model.get_decoder()
        return found

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embeddings."""
        found: nn.Module = self.language_model.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        found: nn.Module = self.language_model.get_output_embeddings()
        return found

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Return projected features ``(images, image_tokens, hidden_size)`` of ``(images, 3, height, width)``."""
        if self.config.remembered_pictures:
            features = self.feature_memory.features(self.vision_tower, pixel_values, self._tower_features)
        else:
            features = self._tower_features(pixel_values)
        found: Tensor = self.projector(features)
        return found

    def _tower_features(self, pixel_values: Tensor) -> Tensor:
        config = self.config
        found = tower_features(self.vision_tower, pixel_values, config.feature_layer, config.feature_select)
        return found if config.image_grid is None else pool_features(found, config.image_grid)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        loss_alone: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the language model's output; ``loss`` over ``labels`` other than -100.

        With ``loss_alone`` the ``logits`` are those of the places from the first one that a label is predicted from:
        the head is applied to no others, which saves much of its work and memory where answers stand behind pictures.
        """
        if labels is not None and loss_alone:
            places = (labels[:, 1:] != -100).any(dim=0).nonzero()
            first = int(places[0]) if len(places) else 0
            labels = labels[:, first:]
            kwargs["logits_to_keep"] = labels.shape[1]
        found: CausalLMOutputWithPast = self.language_model(
            inputs_embeds=self._embed(input_ids, pixel_values), attention_mask=attention_mask, labels=labels, **kwargs
        )
        return found

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
            found: Tensor = embeddings
            return found
        features = self.image_features(pixel_values).to(embeddings.dtype)
        if int(places.sum()) != features.shape[0] * features.shape[1]:
            raise ValueError(
                f"{int(places.sum())} image tokens for {features.shape[0]} images of {features.shape[1]} features; "
                "the processor and the vision tower do not fit together."
            )
        placed: Tensor = embeddings.masked_scatter(places.unsqueeze(-1), features)
        return placed


def build_timm_mllm(
    vision_tower: str | dict[str, Any] | PretrainedConfig,
    language_model: str | dict[str, Any] | PretrainedConfig,
    tokenizer: Any = None,
    pretrained_vision: bool = True,
    vision_arguments: dict[str, Any] | None = None,
    image_size: int | None = None,
    image_token: str = "<image>",
    chat_template: str | None = None,
    feature_layer: int = -2,
    feature_select: FeatureSelect = "patch",
    image_processor: Any = None,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    image_grid: int | None = None,
    remembered_pictures: int = 0,
) -> tuple[TimmMLLM, TimmProcessor]:
    """Put a vision tower and a causal language model together; the projector starts untrained.

    Args:
        vision_tower: name of a timm model; or hub name (with a slash) or folder of a Hugging Face vision model, alone
            or in a model of texts and images such as CLIP's; or such a model's configuration (random weights).
        language_model: hub name or folder (pretrained weights), or a configuration (random weights).
        tokenizer: a fast tokenizer, or the name or folder of one; the language model's when ``None``.
        pretrained_vision: load the tower's pretrained weights.
        vision_arguments: timm: further arguments of ``timm.create_model``, such as ``img_size``.
        image_size: timm: height and width in pixels; ``img_size`` if that is given, else what the model was trained
            with. A Hugging Face tower's is its image processor's.
        image_token: added to the tokenizer, and to the embeddings, where it is not known.
        chat_template: the tokenizer's when ``None``. One that takes the content of a turn as text gets each image's
            token on a line before it, as LLaVA writes it.
        feature_layer, feature_select: Hugging Face: which hidden states become tokens, see :func:`tower_features`.
        image_processor: Hugging Face: an image processor, or the name or folder of one; the tower's when ``None``.
        dtype: of the weights (``"float32"``, ``"bfloat16"``, ``"auto"``: the language model's own).
        attn_implementation: of the language model.
        image_grid: average the features to a grid of so many by so many, so that an image takes fewer tokens.
        remembered_pictures: keep a frozen tower's features of so many pictures, each seen once, in memory.

    Raises:
        ValueError: no tokenizer, settings of the other kind of tower, or a tower that is none.
    """
    check_features(feature_layer, feature_select)
    foreign = is_hugging_face(vision_tower)
    if foreign and (vision_arguments or image_size):
        raise ValueError(
            f"vision_arguments and image_size are timm's; the Hugging Face tower {vision_tower!r} has its own "
            "configuration and image processor. Leave them out, or pass image_processor=."
        )
    if not foreign and image_processor is not None:
        raise ValueError(f"image_processor is for Hugging Face towers; {vision_tower!r} is timm's. Leave it out.")
    if isinstance(tokenizer, str) or (tokenizer is None and isinstance(language_model, str)):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer or language_model)
    if tokenizer is None:
        raise ValueError("a language model from a configuration brings no tokenizer; pass tokenizer=.")
    if image_token not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [image_token]}, replace_extra_special_tokens=False)
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    text_model: PreTrainedModel | None = None
    if isinstance(language_model, str):
        text_model = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype, **attention)
        text_config = text_model.config
    else:
        text_config = AutoConfig.for_model(**language_model) if isinstance(language_model, dict) else language_model
    check_image_grid(image_grid, remembered_pictures)
    settings: dict[str, Any] = {
        "feature_layer": feature_layer,
        "feature_select": feature_select,
        "image_grid": image_grid,
        "remembered_pictures": remembered_pictures,
    }
    if foreign:
        vision_config = vision_config_of(vision_tower)
        image_processor = image_processor_of(vision_tower, vision_config, image_processor)
        data_config = None
        if isinstance(vision_tower, str) and pretrained_vision:
            tower = load_hugging_face_tower(vision_tower, vision_config)
        else:
            tower = tower_class(vision_config)(vision_config)
        settings |= {"vision_tower": "", "vision_config": vision_config}
        pixels = probe_pixels(image_processor)
    else:
        tower = build_timm_tower(str(vision_tower), vision_arguments or {}, pretrained_vision)
        data_config = timm_data_config(tower, image_size or (vision_arguments or {}).get("img_size"))
        settings |= {"vision_tower": vision_tower, "vision_arguments": vision_arguments}
        pixels = torch.zeros(1, *data_config["input_size"])
    with torch.no_grad():
        features = tower_features(tower.eval(), pixels, feature_layer, feature_select)
        if image_grid is not None:
            features = pool_features(features, image_grid)
    config = TimmMLLMConfig(
        text_config=text_config,
        image_token_id=tokenizer.convert_tokens_to_ids(image_token),
        feature_size=features.shape[2],
        image_tokens=features.shape[1],
        **settings,
        **cast("dict[str, Any]", attention),
    )
    model = TimmMLLM(config)
    model.vision_tower = tower
    if text_model is not None:
        model.language_model = text_model
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        model.language_model.resize_token_embeddings(len(tokenizer))
    if dtype != "float32" and (text_model is not None or dtype != "auto"):
        wanted = text_model.dtype if text_model is not None else getattr(torch, str(dtype).removeprefix("torch."))
        nn.Module.to(model, wanted)
    return model, TimmProcessor(
        tokenizer, data_config, config.image_tokens, image_token, chat_template, image_processor
    )


AutoConfig.register(TimmMLLMConfig.model_type, TimmMLLMConfig)
AutoModelForImageTextToText.register(TimmMLLMConfig, TimmMLLM)
