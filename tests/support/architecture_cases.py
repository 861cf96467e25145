"""Small settings of the architectures whose defaults are not small, or whose parts do not fit one another."""

from __future__ import annotations

from typing import Any

_ROPE: dict[str, Any] = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
_GEMMA4_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "patch_size": 7,
}
_GRIDS = [[28, 56], [56, 28], [56, 56]]
_MROPE = {"config": {"text_config.rope_parameters": _ROPE}}
_WHOLE_ROPE = {"text_config.rope_parameters": _ROPE | {"partial_rotary_factor": 1.0}}
_PATCHES_OF_7 = {
    "processor": {"patch_size": 7, "spatial_merge_size": 2, "image_token": "<image>"},
    "image": {"size": {"longest_edge": 28}},
}
_TILES_OF_28 = {"image": {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}}
_SLICES_OF_56 = {"image": {"scale_resolution": 56}, "sizes": {"insert_layer_id": 0}}
_FOUR_TOKENS = {"config": {"image_seq_length": 4}, "processor": {"image_seq_length": 4}}

# Of each model type, where needed: `sizes` (settings by their last name, wherever they stand), `config` (settings by
# their dotted path), `image` (arguments of the image processor), `processor` (arguments of the processor),
# `processor_settings` (attributes of it), the classes to build where transformers maps none (`processor_class`, or the
# model types whose `..._processor_of` to take, `audio`), `extra` (further tokens), `tokenizer` (named tokens),
# `image_token` (what a patch becomes), `image_text` (an image in the chat template), and `text_only`: False where a
# batch needs an image.
CASES: dict[str, dict[str, Any]] = {
    "aria": {
        "config": {
            "projector_patch_to_query_dict": {49: 4, 196: 4},
            "max_value_projector_patch_to_query_dict": 4,
            "vision_config.image_size": 490,
            "vision_config.patch_size": 70,
        },
        "image": {"max_image_size": 490, "min_image_size": 336},
        "processor": {"size_conversion": {490: 4, 980: 4}},
        "processor_settings": {"images_kwargs": {"max_image_size": 490, "split_image": False}},
    },
    "aya_vision": {"processor": {"patch_size": 7, "img_size": 28, "downsample_factor": 2}},
    "cohere2_vision": {"image": {"patch_size": 2}, "config": {"alignment_intermediate_size": 48}},
    "cohere_compass": {
        "config": {
            "vision_config.deepstack_visual_indexes": [0],
            "text_config.rope_parameters": {"full_attention": _ROPE},
        },
        "extra": ("<|IMG_PATCH|>",),
        "tokenizer": {"image_token": "<|IMAGE_PAD|>"},
    },
    "cosmos3_edge": {"processor_settings": {"return_mm_token_type_ids": True}},
    "cosmos3_omni": {"processor_class": "Qwen3VLProcessor", "video_processor_of": "qwen3_vl"},
    "deepseek_vl_hybrid": {
        "image": {"high_res_size": {"height": 28, "width": 28}},
        "config": {"high_res_vision_config.global_attn_indexes": [0]},
    },
    "ernie4_5_vl_moe": {
        "config": {
            "text_config.rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "text_config.moe_intermediate_size": [48, 48],
        }
    },
    "gemma3": {  # transformers 5.12 searches for the token of an image as a regular expression
        "config": {"mm_tokens_per_image": 4},
        "processor": {"image_seq_length": 4},
        "tokenizer": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        "image_text": "<start_of_image>",
        "image_token": "<image>",
    },
    "gemma4": {
        "config": {"vision_config": {"model_type": "gemma4_vision", **_GEMMA4_VISION}},
        "image": {"max_soft_tokens": 70, "patch_size": 7},
    },
    "gemma4_unified": {
        "config": {"vision_config": {"model_type": "gemma4_unified_vision", **_GEMMA4_VISION}},
        "image": {"max_soft_tokens": 70, "patch_size": 7},
    },
    "glm46v": _MROPE,
    "glm4v": _MROPE,
    "glm4v_moe": {
        "image_processor_of": "glm4v",
        "config": _WHOLE_ROPE,
        "video_processor_of": "glm4v",
    },
    "glm5_next": {"sizes": {"num_key_value_heads": 4, "qk_rope_head_dim": 0}},
    "glm_ocr": {
        "processor_class": "Glm46VProcessor",
        "image_processor_of": "glm46v",
        "config": _WHOLE_ROPE,
        "video_processor_of": "glm46v",
    },
    "glmga": {
        "processor_class": "Glm46VProcessor",
        "config": _WHOLE_ROPE,
    },
    "got_ocr2": {
        "processor_settings": {"num_image_tokens": 1},
        "config": {"vision_config.global_attn_indexes": [0]},
        "text_only": False,
    },
    "granite_docling": {"config": {"vision_config.scale_factor": 2, "vision_config.deepstack_visual_indexes": [0]}},
    "hunyuan_vl": {
        "config": {
            "text_config.rope_parameters": _ROPE,
            "text_config.head_dim": 8,
        },
        "image_text": "<|image_start|><image><|image_end|>",
    },
    "idefics": {"text_only": False},
    "idefics3": {"config": {"scale_factor": 2}, **_TILES_OF_28},
    "inkling2": {"image": {"size": {"height": 14, "width": 14}}},
    "inkling2_loop": {"image": {"size": {"height": 14, "width": 14}}},
    "internvl": _FOUR_TOKENS,
    "janus": {"processor_settings": {"num_image_tokens": 16}},
    "kimi_k25": {"config": {"projection_hidden_size": 32}},
    "lfm2_vl": {
        "image": {
            "encoder_patch_size": 7,
            "tile_size": 28,
            "max_image_tokens": 16,
            "min_image_tokens": 1,
            "max_tiles": 2,
            "min_tiles": 1,
        }
    },
    "llama4": {"processor": {"patch_size": 7}},
    "llava_next": {
        "config": {"image_grid_pinpoints": _GRIDS},
        "image": {"image_grid_pinpoints": _GRIDS},
    },
    "llava_next_video": {
        "config": {"image_grid_pinpoints": _GRIDS},
        "image": {"image_grid_pinpoints": _GRIDS},
    },
    "llava_onevision": {
        "config": {"image_grid_pinpoints": _GRIDS},
        "image": {"image_grid_pinpoints": _GRIDS},
        "processor": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    },
    "minicpm_ocr": _SLICES_OF_56,
    "minicpmv4_6": _SLICES_OF_56,
    "minicpmv4_7": _SLICES_OF_56,
    "minimax_m3_vl": {
        "config": {"merged_hidden_size": 128},
        "extra": ("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>["),
    },
    "mistral3": _PATCHES_OF_7,
    "mistral_large4": _PATCHES_OF_7,
    "mllama": {
        "config": {
            "vision_config.intermediate_layers_indices": [0],
            "text_config.cross_attention_layers": [1],
            "vision_config.supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "vision_config.max_num_tiles": 2,
        },
        "sizes": {"vision_output_dim": 64, "num_global_layers": 1},
        "image": {"max_image_tiles": 2},
    },
    "molmo2": {
        "config": {"adapter_config.vision_feature_layer": [1, 0], "vision_config.num_position_embeddings": 16},
        "image": {"overlap_margins": [1, 1], "max_crops": 2},
        "image_token": "<im_patch>",
    },
    "muse_glimmer": {"config": {"out_hidden_size": 128}},
    "muse_spark": {"config": {"out_hidden_size": 128}},
    "ovis2": {"extra": ("<IMG_START>", "<IMG_GRID>"), "image_token": "<IMG_ATOM>"},
    "paddleocr_vl": _MROPE,
    "perception_lm": {
        "config": {
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_lang_large_patch14_448",
                "do_pooling": False,
                "model_args": {"embed_dim": 32, "img_size": [28, 28], "depth": 2, "num_heads": 4, "patch_size": [7, 7]},
            }
        },
        "image": {"tile_size": 28, "max_num_tiles": 2},
        "processor": {"patch_size": 7, "pooling_ratio": 1},
    },
    "qianfan_ocr": _FOUR_TOKENS | {"image_text": "<image>"},
    "qwen2_5_omni_thinker": {
        "processor_class": "Qwen2_5OmniProcessor",
        "image_processor_of": "qwen2_vl",
        "audio": "WhisperFeatureExtractor",
        "config": {
            "text_config.rope_parameters": _ROPE,
            "vision_start_token_id": 5,
            "vision_end_token_id": 6,
        },
        "video_processor_of": "qwen2_vl",
    },
    "qwen2_5_vl": _MROPE,
    "qwen2_vl": _MROPE,
    "qwen3_omni_moe_thinker": {
        "processor_class": "Qwen3OmniMoeProcessor",
        "image_processor_of": "qwen2_vl",
        "audio": "WhisperFeatureExtractor",
        "video_processor_of": "qwen2_vl",
        "config": {"vision_start_token_id": 5, "vision_end_token_id": 6},
    },
    "qwen3_vl_moe": {"image_processor_of": "qwen3_vl"},
    "qwen4_exp": {
        "config": {
            "text_config.indexer_n_heads": 2,
            "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": 8,
            "text_config.indexer_budget": 64,
            "text_config.indexer_compress_ratio": 4,
        }
    },
    "smolvlm": _TILES_OF_28,
    "step3p7": {
        "extra": ("<patch_start>", "<patch_end>"),
        "image": {"vision_patch_size": 7, "downsampler_stride": 4, "patch_size": 28},
        "config": {"text_config.sliding_window": 64},
    },
    "unlimited_ocr": {
        "config": {
            "vision_config.sam_config.downsample_channels": [16, 32],
            "vision_config.sam_config.global_attn_indexes": [0],
        }
    },
    "video_llava": {"image": {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}},
    "vipllava": {"config": {"vision_feature_layer": [-1, -2], "vision_feature_layers": [-1, -2]}},
}
