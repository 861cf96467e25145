"""What a step and an answer of the benchmark `smol`'s model cost on one core.

    python benchmarks/smol.py --model smol/model

Processor seconds of one thread, so that other work on the machine counts little. A step is forward, backward and AdamW
of 12 samples with rank-8 adapters on all linear layers; `plain` has the head on all tokens, the others on the answers
alone, as training has. Answers are generated greedily in batches with a key-value cache, to their full length; the
second judge reads how replies to a request may begin, and generates nothing.
`emulated` computes products of bfloat16 by way of float32, as fits do on a processor that has no instructions for it;
there `--precisions float32 bf16-mixed-emulated bfloat16-emulated` leaves out what takes minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image

from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.data.record import user_turn
from hpa_lightning.float32_products import float32_products
from hpa_lightning.modules import LoraSettings, MLLMModule
from hpa_lightning.modules.lora import add_lora
from hpa_lightning.modules.timm_mllm import TimmMLLM
from hpa_lightning.smol.refusals import REFUSALS_BEGIN

_EMULATED = "-emulated"
PRECISIONS = ("float32", "bf16-mixed", "bf16-mixed-emulated", "bfloat16", "bfloat16-emulated")
ANSWER = 24
"""Tokens that are learnt of each sample."""


def products(precision: str) -> AbstractContextManager[None]:
    """What matrix products are computed in."""
    return float32_products() if precision.endswith(_EMULATED) else nullcontext()


def dtype_of(precision: str) -> str:
    """Of the weights."""
    return precision.removesuffix(_EMULATED) if precision.startswith("bfloat16") else "float32"


def seconds(act: Callable[[], object], repeats: int = 2) -> float:
    """Processor seconds of the fastest of a few calls, the first left out."""
    act()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        act()
        found.append(time.process_time() - began)
    return min(found)


def text_tokens(model: TimmMLLM, samples: int, tokens: int) -> torch.Tensor:
    """Random ids ``(samples, tokens)``, none of them that of the image token."""
    ids = torch.randint(model.config.text_config.vocab_size - 1, (samples, tokens))
    return ids + (ids >= model.config.image_token_id)


def step(model: TimmMLLM, words: int, samples: int, precision: str, plain: bool) -> float:
    """Seconds of an optimizer step on random tokens behind a picture.

    Args:
        model: with adapters.
        words: tokens of a sample beside the picture's.
        samples: of the step.
        precision: one of ``PRECISIONS``.
        plain: apply the head to all tokens.
    """
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5)
    config = model.config
    ids = text_tokens(model, samples, config.image_tokens + words)
    ids[:, : config.image_tokens] = config.image_token_id
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    pixels = torch.rand(samples, 3, 224, 224, dtype=next(model.parameters()).dtype)

    def act() -> None:
        with products(precision):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("bf16-mixed")):
                loss = model(ids, pixel_values=pixels, labels=labels, use_cache=False, loss_alone=not plain).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return seconds(act)


def answers(model: TimmMLLM, words: int, batch: int, new: int, precision: str) -> float:
    """Seconds of one answer of ``new`` tokens in a batch."""
    ids = text_tokens(model, batch, words)
    mask = torch.ones_like(ids)
    limits = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    with products(precision):
        return seconds(lambda: model.generate(ids, mask, **limits), 1) / batch


def judged(module: MLLMModule, words: int, batch: int, precision: str) -> float:
    """Seconds that the second judge takes for one request of as many words: how likely each taught refusal begins."""
    records = [Record(f"request-{number}", user_turn(" ".join(["how"] * words))) for number in range(batch)]
    collator = MLLMCollator(module.processor)
    with products(precision):
        return seconds(lambda: module.opening_likelihoods(records, REFUSALS_BEGIN, collator, batch), 1) / batch


def picture(module: MLLMModule) -> float:
    """Seconds to prepare a picture and to see it for the first time; the second time it is remembered."""
    made = Image.effect_noise((224, 224), 80).convert("RGB")

    def act() -> None:
        pixels = module.processor(["<image>"], [[made]], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            module.model._tower_features(pixels)

    return seconds(act)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model, or its parts' of another size")
    parser.add_argument("--words", type=int, nargs="+", default=[48, 100], help="tokens of a sample beside the picture")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--new", type=int, nargs="+", default=[8, 24], help="tokens of an answer")
    parser.add_argument("--batch", type=int, default=48, help="answers generated together")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| precision | head | tokens | seconds a step |\n|---|---|---|---|")
    for precision in options.precisions:
        module = MLLMModule(model=options.model, dtype=dtype_of(precision))
        model = module.model
        if precision == "float32":
            print(f"(a picture, the first time: {picture(module):.3f} seconds)")
        add_lora(model, LoraSettings(rank=8))
        model.vision_tower.eval()
        for words in options.words:
            for plain in (True, False):
                found = step(model, words, options.samples, precision, plain)
                head = "all tokens" if plain else "answers"
                print(f"| {precision} | {head} | {model.config.image_tokens} + {words} | {found:.2f} |", flush=True)
    print("\n| precision | prompt | new tokens | batch | seconds an answer |\n|---|---|---|---|---|")
    for precision in options.precisions:
        if precision.startswith("bf16-mixed"):
            continue  # its answers are those of rounded weights, too
        module = MLLMModule(model=options.model, dtype=dtype_of(precision)).eval()
        words, batch = options.words[0], options.batch
        for new in options.new:
            found = answers(module.model, words, batch, new, precision)
            print(f"| {precision} | {words} | {new} | {batch} | {found:.3f} |", flush=True)
        found = judged(module, words, batch, precision)
        print(f"| {precision} | {words} | the second judge | {batch} | {found:.3f} |", flush=True)


if __name__ == "__main__":
    main()
