"""The nano model: a LLaVA (CLIP vision tower, MLP projector, LLaMA language model) of 4 M parameters."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)  # fmt: skip

from hpa_lightning.data.nano.drawing import SIZE
from hpa_lightning.data.nano.lexicon import PLAIN_WORDS

PATCH = 8
IMAGE_TOKENS = (SIZE // PATCH) ** 2
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>", "<unk>", "<user>", "<assistant>")
SPARE_WORDS = (")", "question")
"""In the shipped vocabulary, though no generator writes them."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant> "
    "{% generation %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}</s>"
    "{% endgeneration %}"
    "{% else %}<user> "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %} "
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def split_words(text: str) -> list[str]:
    """The tokens of `text`: lower-case words and runs of punctuation."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Special tokens, then the words of `texts`, of the text-only exercises and spare ones in alphabetical order."""
    found = {word for text in texts for word in split_words(text)}
    return [*SPECIAL_TOKENS, *sorted(found | set(PLAIN_WORDS) | set(SPARE_WORDS))]


def nano_vocabulary(samples: int = 4000) -> list[str]:
    """Every word that a generator of this benchmark writes (found by drawing from all of them)."""
    from hpa_lightning.data.nano import harm, nano_tasks, skills

    rng = random.Random("nano vocabulary")
    generators = [skills.skill(name, "train") for name in skills.SKILLS]
    generators += [nano_tasks.task(name, "train") for name in nano_tasks.TASKS]
    generators += [harm.harmful(kind, "train") for kind in harm.SAFETY_KINDS]
    generators += [harm.harmless("train", alarming=False)]
    drawn = [generator(rng) for generator in generators for _ in range(samples // 4)]
    return vocabulary(text for example in drawn for text in (example.question, example.answer))


def build_processor(words: list[str]) -> LlavaProcessor:
    """Word-level tokenizer, image processor and chat template."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        padding_side="left", model_max_length=128, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    image_processor = CLIPImageProcessor(
        do_resize=False, do_center_crop=False, do_rescale=True, do_normalize=True, do_convert_rgb=True,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE},
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build_model(vocabulary_size: int, seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained model with about 4.2 M parameters."""
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        image_size=SIZE, patch_size=PATCH, projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=vocabulary_size, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.06,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1, vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    # Not tied, but equal at first: repeating a word then needs no detour.
    model.lm_head.weight.data.copy_(model.get_input_embeddings().weight.data)
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2, do_sample=False)
    return model
