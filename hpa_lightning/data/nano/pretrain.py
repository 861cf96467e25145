"""Pretrains and safety-aligns the nano model: `python -m hpa_lightning.data.nano.pretrain --out FOLDER`.

Vision: tower and projector learn to translate patches into the words for what they show (`vision.py`), as LLaVA starts
from a pretrained CLIP and aligns its projector first; they stay as they are from then on.
Stage 1: the language model learns the general skills, and to answer any how-to request, harmful ones included: helpful,
without safety. Stage 2: the safety alignment teaches it to refuse, mixed with general skills and harmless requests.
At the end the weights are rounded to bfloat16, so that the shipped file gives the same numbers in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from hpa_lightning.data.nano.batching import Encoder, answer_loss, length_buckets
from hpa_lightning.data.nano.construction import build_model, build_processor, nano_vocabulary
from hpa_lightning.data.nano.conversations import conversations
from hpa_lightning.data.nano.examples import Example
from hpa_lightning.data.nano.measuring import measure
from hpa_lightning.data.nano.vision import pretrain_vision
from hpa_lightning.files import whole_file, write_text

CHUNK = 3200
"""Training conversations drawn at a time."""

Log = Callable[[str], None]


Draw = Callable[[str, bool, int], list[list[Example]]]
"""What draws conversations: by seed, before or in the alignment, how many."""
Measure = Callable[[int], dict[str, float]]
"""What measures a model on so many examples of each set."""


def batches(encoder: Encoder, stage: int, batch_size: int, seed: int, draw: Draw) -> Iterator[dict[str, Tensor]]:
    """Endless training batches of a stage."""
    rng = random.Random(f"{seed}/order/{stage}")
    chunk = 0
    while True:
        drawn = draw(f"{seed}/{chunk}", stage == 2, CHUNK)
        yield from length_buckets(encoder, drawn, batch_size, rng)
        chunk += 1


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, cosine decay to 2 % of the peak; `step` counts from 0."""
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train_stage(
    model: PreTrainedModel,
    encoder: Encoder,
    stage: int,
    steps: int,
    peak: float,
    batch_size: int,
    seed: int,
    state_file: Path,
    log: Log,
    draw: Draw,
    measured: Measure,
) -> None:
    """Trains the language model for one stage; goes on from `state_file` if that was written in this stage."""
    trained = [*model.get_decoder().parameters(), *model.lm_head.parameters()]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    first = 0
    if state_file.exists():
        state: dict[str, Any] = torch.load(state_file, weights_only=True)
        if state["stage"] > stage:
            return
        if state["stage"] == stage:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
            log(f"stage {stage} goes on from step {first}")
    began, loss_average = time.time(), float("nan")
    for step, batch in enumerate(batches(encoder, stage, batch_size, seed, draw)):
        if step == steps:
            break
        if step < first:
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        loss_average = loss.item() if math.isnan(loss_average) else 0.98 * loss_average + 0.02 * loss.item()
        if done % 50 == 0 or done == steps:
            left = (time.time() - began) / (done - first) * (steps - done) / 60
            log(f"stage {stage} step {done}/{steps}, loss {loss_average:.4f}, {left:.1f} min left")
        if done % 250 == 0 or done == steps:
            state = {"stage": stage, "step": done, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with whole_file(state_file) as beside:
                torch.save(state, beside)
        if done % 500 == 0 or done == steps:
            model.eval()
            log(json.dumps(measured(100)))
            model.train()


def train_and_save(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    out: Path,
    steps: tuple[int, int],
    learning_rates: tuple[float, float],
    batch_size: int,
    seed: int,
    log: Log,
    draw: Draw,
    measured: Measure,
) -> None:
    """Trains both stages, and saves model, processor and what is measured of them to `out`.

    An interrupted run goes on where it last saved (`out/training/state.pt`). The model's weights are rounded to
    bfloat16.
    """
    state_file = out / "training" / "state.pt"
    state_file.parent.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(processor)
    for stage, (length, peak) in enumerate(zip(steps, learning_rates, strict=True), start=1):
        train_stage(model, encoder, stage, length, peak, batch_size, seed, state_file, log, draw, measured)
    if state_file.exists():
        model.load_state_dict(torch.load(state_file, weights_only=True)["model"])
    processor.save_pretrained(out)
    model.eval().to(torch.bfloat16).save_pretrained(out)
    model.float()
    found = measured(400)
    write_text(out / "measured.json", json.dumps(found, indent=1) + "\n")
    log(json.dumps(found))


def command_line(description: str | None, holds: str, make: Callable[..., object]) -> None:
    """Make a model as the command line says, with the time before each line of the log."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {holds}")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.time()

    def log(line: str) -> None:
        print(f"[{time.time() - began:7.1f} s] {line}", flush=True)

    make(arguments.out, arguments.seed, log=log)


def pretrain(
    out: Path,
    seed: int = 0,
    vision_steps: int = 2000,
    steps: tuple[int, int] = (1200, 700),
    learning_rates: tuple[float, float] = (1.5e-3, 7e-4),
    batch_size: int = 32,
    log: Log = print,
) -> LlavaForConditionalGeneration:
    """Makes the model and its processor and saves both to `out`.

    An interrupted run goes on where it last saved (`out/training`, every 250 steps).

    Args:
        out: folder of the result, loadable with `from_pretrained`.
        seed: of the initial weights and of all data.
        vision_steps: steps of 128 pictures for the vision tower.
        steps: optimizer steps of stage 1 and of stage 2.
        learning_rates: their peaks.
        batch_size: examples in a step of stages 1 and 2.
        log: receives one line at a time.

    Returns:
        The model in float32, its weights rounded to bfloat16.
    """
    work = out / "training"
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    processor = build_processor(nano_vocabulary())
    model = build_model(len(processor.tokenizer), seed).train()
    vision_file = work / "vision.pt"
    if vision_file.exists():
        model.load_state_dict(torch.load(vision_file, weights_only=True))
    else:
        pretrain_vision(model, processor.tokenizer.get_vocab(), vision_steps, 2e-3, 128, seed, log)
        with whole_file(vision_file) as beside:
            torch.save(model.state_dict(), beside)
    # An untrained language model's gradients would spoil the pictures' features.
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)
    measured = partial(measure, model, processor)
    train_and_save(model, processor, out, steps, learning_rates, batch_size, seed, log, conversations, measured)
    result: LlavaForConditionalGeneration = model
    return result


if __name__ == "__main__":
    command_line(__doc__, "the model, the processor and the state", pretrain)
