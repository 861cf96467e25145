"""Every word is in the vocabulary, and answers survive decoding."""

import random

import pytest

from hpa_lightning.data.nano import harm, nano_tasks, skills
from hpa_lightning.data.nano.construction import build_processor, nano_vocabulary


@pytest.fixture(scope="module")
def processor():
    return build_processor(nano_vocabulary())


def test_every_word_is_known_and_answers_survive_decoding(processor) -> None:
    rng = random.Random(1)
    generators = [skills.general("test"), *(nano_tasks.task(name, "test") for name in nano_tasks.TASKS)]
    generators += [harm.harmful(kind, "test") for kind in harm.SAFETY_KINDS] + [harm.harmless("test", False)]
    for generate in generators:
        for _ in range(60):
            example = generate(rng)
            ids = processor.tokenizer(example.question + " " + example.answer)["input_ids"]
            assert processor.tokenizer.unk_token_id not in ids
            decoded = processor.tokenizer.decode(processor.tokenizer(example.answer)["input_ids"])
            assert decoded == example.answer
