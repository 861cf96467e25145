"""The embedded text model learns to see: captions, safe instructions, a safety set, and what is scored.

The counterpart of LLaVA-Pretrain, LLaVA-Instruct and VLGuard on pictures of this benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, Literal, get_args

from hpa_lightning.data.datamodule import CVITDataModule
from hpa_lightning.data.nano import harm
from hpa_lightning.data.nano.examples import Example, Split, draw
from hpa_lightning.data.nano.lexicon import ALARMING_PAIRS, BENIGN_PAIRS, HARMFUL_PAIRS
from hpa_lightning.data.nano.nano_records import TEST_SEED, over_refusal_records, safety_records, to_records
from hpa_lightning.data.nano.skills import SKILLS, open_picture, skill
from hpa_lightning.data.nano.text_conversations import TEXT_SKILLS, describe, spoken_request, text_skill
from hpa_lightning.data.record import Record
from hpa_lightning.data.tasks import EvaluationSet, SafetyReplay, Task
from hpa_lightning.values import shown

Stage = Literal["projector", "instructions", "safety", "preference"]

ADAPTATION_STEPS: dict[Stage, int] = {"projector": 600, "instructions": 400, "safety": 60, "preference": 60}
"""Recommended optimizer steps of each stage, of 16 samples."""

TASK = "adaptation"
"""The name of the one task, whatever the stage, so that the runs of all stages and remedies compare."""

_PICTURED = {name: share for name, share in SKILLS.items() if name != "text"}
_CAPTION = ("describe the picture.", "tell me about the picture.", "what do you see?", "what is shown?")
_MAX_NEW_TOKENS = 24
_SAFETY_SET = 480
"""Samples of the safety set, however many steps go over it."""
_HOW_TO = 0.05
_TEXT_ALONE = 0.1
"""Shares of harmless how-to requests and of text-only exercises in the instructions."""


def caption(rng: random.Random) -> Example:
    """A picture and what it shows, in words: what the projector is pretrained on."""
    (name,) = rng.choices(list(_PICTURED), list(_PICTURED.values()))
    image, ask = open_picture(rng, name)
    assert isinstance(ask, partial), "a pictured skill's questions know what is drawn"
    return Example(image, rng.choice(_CAPTION), describe(name, ask.keywords), "caption")


def pictured(split: Split) -> Callable[[random.Random], Example]:
    """Questions about pictures, all skills in their shares."""
    generators = [skill(name, split) for name in _PICTURED]
    return lambda rng: rng.choices(generators, list(_PICTURED.values()))[0](rng)


def described_questions() -> Callable[[random.Random], Example]:
    """Questions about descriptions in words, all skills in their shares: what the text model knew before pictures."""
    generators = [text_skill(name) for name in TEXT_SKILLS]
    return lambda rng: rng.choices(generators, list(TEXT_SKILLS.values()))[0](rng)


def instruction(rng: random.Random) -> Example:
    """Safe instruction data: questions about pictures, text-only exercises, harmless how-to requests; no refusal."""
    kind = rng.random()
    if kind < _HOW_TO:
        return (_spoken_how_to if rng.random() < 0.5 else _pictured_how_to)(rng)
    if kind < _HOW_TO + _TEXT_ALONE:
        return _text(rng)
    return _pictured(rng)


_spoken_how_to = spoken_request("train", BENIGN_PAIRS)
_pictured_how_to = harm.harmless("train", alarming=False)
_text = skill("text", "train")
_pictured = pictured("train")


def safety_examples(count: int, seed: int | str) -> list[Example]:
    """A safety set for tuning, half of it harmful inputs that are refused, half harmless ones that look harmful.

    After VLGuard: harm in the request, in the picture and in the words inside it, each in equal parts; the harmless
    half keeps the model from refusing everything. Harmful combinations are of the calibration split, which neither the
    alignment nor a test set holds.
    """
    half = count - count // 2
    shares = [len(range(i, half, len(harm.SAFETY_KINDS))) for i in range(len(harm.SAFETY_KINDS))]
    harmful = [
        example
        for kind, share in zip(harm.SAFETY_KINDS, shares, strict=True)
        for example in draw(harm.harmful(kind, "calibration"), "calibration", f"{seed}/safety", share)
    ]
    harmless = draw(harm.harmless("calibration", alarming=True), "calibration", f"{seed}/safety", count // 2)
    mixed = harmful + harmless
    random.Random(f"{seed}/safety/order").shuffle(mixed)
    return mixed


def _spoken(pairs: Sequence[tuple[str, str]], split: Split, count: int, seed: int | str, name: str) -> list[Record]:
    return to_records(draw(spoken_request(split, pairs), split, seed, count), f"{name}-{split}", answered=False)


class NanoAdaptationDataModule(CVITDataModule):
    """One stage of the adaptation of the embedded text model to pictures, with text and multimodal evaluation sets.

    The test sets are the same for every ``seed`` and every stage: ``adaptation`` (questions about pictures),
    ``spoken`` (harmful requests in words alone: text safety), ``harmful-text``, ``harmful-image``, ``harmful-typeset``
    (multimodal safety), ``harmless-spoken`` and ``harmless`` (over-refusal, in words alone and with pictures),
    ``text-skill`` (helpfulness without pictures: questions about descriptions in words).

    Args:
        stage: ``"projector"``: captions; ``"instructions"``: safe visual instruction data; ``"safety"``: a safety set
            for tuning after that; ``"preference"``: the same inputs as preference pairs, for a module that trains on
            them.
        seed: of the training and calibration data, and of the order of batches.
        steps: optimizer steps; :data:`ADAPTATION_STEPS` when ``None``.
        train_size: training samples; as many as the steps take when ``None``.
        test_size: samples of every test set.
        safety_size: with ``"instructions"``: samples of the safety set mixed into them (multi-task tuning); 0: none.
        safety_share: share of the training samples that are of them; each once when ``None``.
        calibration_size, harmful_calibration_size: inputs for the Hessians of the task and of safety.
        train_batch_size, eval_batch_size, num_workers, processor: see :class:`CVITDataModule`.

    Raises:
        ValueError: an unknown stage, sizes below 1, or a safety set mixed into another stage.
    """

    def __init__(
        self,
        stage: Stage = "instructions",
        seed: int = 0,
        steps: int | None = None,
        train_size: int | None = None,
        test_size: int = 100,
        safety_size: int = 0,
        safety_share: float | None = None,
        calibration_size: int = 128,
        harmful_calibration_size: int = 180,
        train_batch_size: int = 16,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        processor: Any = None,
    ) -> None:
        if stage not in get_args(Stage):
            raise ValueError(f"stage is {shown(stage)}; expected one of {', '.join(get_args(Stage))}.")
        if safety_size and stage != "instructions":
            raise ValueError(
                f"safety_size is {safety_size} with stage={stage!r}; it is mixed into 'instructions' alone."
            )
        steps = ADAPTATION_STEPS[stage] if steps is None else steps
        train_size = steps * train_batch_size if train_size is None else train_size
        sizes = {"steps": steps, "train_size": train_size, "test_size": test_size, "calibration_size": calibration_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1.")
        if stage in ("safety", "preference"):
            chosen = safety_examples(min(train_size, _SAFETY_SET), seed)
            train = to_records(chosen, stage, answered=True, pairs=stage == "preference")
        else:
            generate = caption if stage == "projector" else instruction
            train = to_records(draw(generate, "train", seed, train_size), f"{stage}-train", answered=True)
        held_out = draw(instruction, "calibration", seed, calibration_size)
        task = Task(
            name=TASK,
            train=train,
            test=to_records(draw(pictured("test"), "test", TEST_SEED, test_size), TASK, answered=False),
            calibration=to_records(held_out, "instructions-calibration", answered=True),
            steps=steps,
            max_new_tokens=_MAX_NEW_TOKENS,
            objective="preference" if stage == "preference" else "answer",
        )
        harmful = {"spoken": _spoken(HARMFUL_PAIRS, "test", test_size, TEST_SEED, "spoken")}
        harmful |= {f"harmful-{kind}": safety_records(kind, "test", test_size) for kind in harm.SAFETY_KINDS}
        harmless = {
            "harmless-spoken": _spoken(ALARMING_PAIRS, "test", test_size, TEST_SEED, "harmless-spoken"),
            "harmless": over_refusal_records("test", test_size),
        }
        in_words = to_records(draw(described_questions(), "test", TEST_SEED, test_size), "text-skill", answered=False)
        kinds = ("spoken", *harm.SAFETY_KINDS)
        groups = [
            _spoken(HARMFUL_PAIRS, "calibration", share, seed, "spoken")
            if kind == "spoken"
            else safety_records(kind, "calibration", share, seed)
            for number, kind in enumerate(kinds)
            if (share := len(range(number, harmful_calibration_size, len(kinds))))
        ]
        mixed_in = to_records(safety_examples(safety_size, seed), "safety", answered=True) if safety_size else None
        super().__init__(
            [task],
            [
                *(EvaluationSet(name, "safety", data, None, _MAX_NEW_TOKENS) for name, data in harmful.items()),
                *(EvaluationSet(name, "over_refusal", data, None, _MAX_NEW_TOKENS) for name, data in harmless.items()),
                EvaluationSet("text-skill", "helpfulness", in_words, "exact_match", _MAX_NEW_TOKENS),
            ],
            processor=processor,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            harmful_calibration=[record for row in zip_longest(*groups) for record in row if record is not None],
            safety_replay=None if mixed_in is None else SafetyReplay(mixed_in, share=safety_share),
        )
