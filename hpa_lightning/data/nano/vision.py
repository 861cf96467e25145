"""Pretraining of the vision tower: every patch token learns to tell what its part of the picture shows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from hpa_lightning.data.nano.drawing import (
    draw_bars,
    draw_digit,
    draw_icon,
    draw_road,
    draw_shapes,
    draw_text,
    real_digits,
)  # fmt: skip
from hpa_lightning.data.nano.lexicon import COLOURS, ICONS, NUMBERS, OBJECTS, SHAPES, VERBS, article
from hpa_lightning.data.nano.skills import random_bars, random_road, random_scene
from hpa_lightning.data.nano.splits import digit_indices

_HUES = tuple(COLOURS)
_WORDS = tuple(dict.fromkeys((*VERBS, *OBJECTS, "a", "an")))
_LANES = ("none", "left", "right")
_ROWS, _COLUMNS = np.divmod(np.arange(16), 4)
_QUADRANTS = 2 * (_ROWS // 2) + _COLUMNS // 2

_NUMBERED = tuple(NUMBERS)

HEADS: dict[str, tuple[str, ...]] = {
    "quadrant colour": ("none", *_HUES),
    "quadrant shape": ("none", *SHAPES),
    "vertical": ("top", "bottom"),
    "horizontal": ("left", "right"),
    "icon": ICONS,
    "colour": _HUES,
    "word": ("none", *_WORDS),
    "bar colour": ("none", *_HUES),
    "bar height": _NUMBERED[:8],
    "light": ("red", "green"),
    "digit": _NUMBERED,
}
"""What a patch token tells, and the words for it."""
LANE_HEADS = ("person", "car")
"""Told as well; left, right or none, but of two things at once: by linear heads that are thrown away."""


def _labels(**known: object) -> dict[str, np.ndarray]:
    return {name: np.broadcast_to(np.asarray(value), (16,)) for name, value in known.items()}


def labelled_picture(rng: random.Random) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A picture and, for the heads it has labels for, the class of every patch (16,)."""
    kind = rng.choices(range(6), (5, 2, 5, 2, 1, 2))[0]
    if kind == 0:
        scene = random_scene(rng)
        colours = [_HUES.index(scene[q][0]) + 1 if q in scene else 0 for q in range(4)]
        forms = [SHAPES.index(scene[q][1]) + 1 if q in scene else 0 for q in range(4)]
        labels = {"quadrant_colour": np.array(colours)[_QUADRANTS], "quadrant_shape": np.array(forms)[_QUADRANTS]}
        labels |= {"vertical": _ROWS // 2, "horizontal": _COLUMNS // 2}
        return draw_shapes(rng, scene), {key.replace("_", " "): value for key, value in labels.items()}
    if kind == 1:
        icon, colour = rng.choice(ICONS), rng.choice(_HUES)
        return draw_icon(rng, icon, colour), _labels(icon=ICONS.index(icon), colour=_HUES.index(colour))
    if kind == 2:
        words = [rng.choice(VERBS + OBJECTS) for _ in range(rng.choice((1, 2, 3)))]
        if rng.random() < 0.5:
            words = [rng.choice(VERBS), article(words[0]), words[0]]
        first = rng.randint(0, 4 - len(words))
        rows = [0] * first + [_WORDS.index(word) + 1 for word in words] + [0] * (4 - first - len(words))
        return draw_text(rng, words, first), {"word": np.array(rows)[_ROWS]}
    if kind == 3:
        bars = random_bars(rng)
        padded = [(_HUES.index(colour) + 1, height) for colour, height in bars] + [(0, 0)] * (4 - len(bars))
        table = np.array(padded)[_COLUMNS]
        return draw_bars(rng, bars), {"bar colour": table[:, 0], "bar height": table[:, 1]}
    if kind == 4:
        road = random_road(rng)
        labels = _labels(
            light=("red", "green").index(road["light"]),
            person=_LANES.index(road["person"]),
            car=_LANES.index(road["car"]),
        )
        return draw_road(rng, **road), labels
    index = rng.choice(digit_indices("skills", "train"))
    return draw_digit(rng, index, augment=True), _labels(digit=real_digits()[1][index])


def labelled_batch(rng: random.Random, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixel values (size, 3, 32, 32) and labels (size, 16) by head, -100 where a picture has none."""
    drawn = [labelled_picture(rng) for _ in range(size)]
    pixels = torch.from_numpy(np.stack([picture for picture, _ in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1
    none = np.full(16, -100)
    labels = {
        name: torch.from_numpy(np.stack([found.get(name, none) for _, found in drawn]))
        for name in (*HEADS, *LANE_HEADS)
    }
    return pixels, labels


def pretrain_vision(
    model: LlavaForConditionalGeneration,
    ids: dict[str, int],
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    log: Callable[[str], None],
) -> None:
    """Trains tower and projector so that a patch's projected token resembles the embeddings of the words for it.

    The words' embeddings stay as they are: pictures are translated into the language model's words, as CLIP's text
    alignment and LLaVA's first stage do.

    Args:
        model: its vision tower and projector are trained.
        ids: token id of every word.
        steps: optimizer steps.
        lr: peak learning rate.
        batch_size: pictures in a step.
        seed: of the pictures.
        log: receives one line at a time.
    """
    rng = random.Random(f"{seed}/vision")
    tower: Any = model.model.vision_tower
    projector: Any = model.model.multi_modal_projector
    weight: Any = model.get_input_embeddings().weight
    embeddings = nn.functional.normalize(weight.detach(), dim=-1)
    words = {name: embeddings[[ids[word] for word in classes]] for name, classes in HEADS.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lanes = {name: nn.Linear(embeddings.shape[1], 3) for name in LANE_HEADS}
    scale: Tensor = nn.Parameter(torch.tensor(12.0))
    heads = [parameter for lane in lanes.values() for parameter in lane.parameters()]
    parameters = [*tower.parameters(), *projector.parameters(), *heads, scale]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    began = time.time()
    for step in range(1, steps + 1):
        pixels, labels = labelled_batch(rng, batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = projector(tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:])
        tokens = nn.functional.normalize(tokens.float(), dim=-1)
        losses, right = [], {}
        for name, target in labels.items():
            known = target[:, 0] != -100
            found = tokens[known].flatten(0, 1)
            logits = lanes[name](16 * found) if name in LANE_HEADS else scale * (found @ words[name].T)
            losses.append(nn.functional.cross_entropy(logits, target[known].flatten()))
            right[name] = (logits.argmax(-1) == target[known].flatten()).float().mean()
        loss = torch.stack(losses).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            left = (time.time() - began) / step * (steps - step) / 60
            shown = ", ".join(f"{name} {value.item():.2f}" for name, value in right.items())
            log(f"vision step {step}/{steps}, loss {loss.item():.3f}, right: {shown}; {left:.1f} min left")
