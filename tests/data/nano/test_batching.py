"""The fast way from examples to tensors equals the processor's."""

import pytest
import torch

from hpa_lightning.data.nano import harm, nano_tasks, skills
from hpa_lightning.data.nano.batching import Encoder, answer_loss
from hpa_lightning.data.nano.construction import IMAGE_TOKENS, build_model, build_processor, nano_vocabulary
from hpa_lightning.data.nano.conversations import conversations
from hpa_lightning.data.nano.examples import draw


@pytest.fixture(scope="module")
def processor():
    return build_processor(nano_vocabulary())


def test_prompts_and_pixels_equal_those_of_the_processor(processor) -> None:
    encoder = Encoder(processor)
    for example in draw(skills.general("test"), "test", 0, 20) + draw(harm.harmful("text", "test"), "test", 0, 10):
        image = [{"type": "image"}] if example.image is not None else []
        messages = [{"role": "user", "content": [*image, {"type": "text", "text": example.question}]}]
        answered = [*messages, {"role": "assistant", "content": [{"type": "text", "text": example.answer}]}]
        pictures = {"images": [example.image]} if image else {}
        for turns, ids in (
            (messages, encoder.prompt(example)),
            (answered, encoder.prompt(example) + encoder.answer(example)),
        ):
            text = processor.apply_chat_template(turns, add_generation_prompt=turns is messages)
            expected = processor(text=[text], return_tensors="pt", **pictures)
            assert expected["input_ids"][0].tolist() == ids
        if image:
            torch.testing.assert_close(encoder.pixels([example]), expected["pixel_values"], atol=1e-6, rtol=0)
            assert ids.count(encoder.ids["<image>"]) == IMAGE_TOKENS


def test_the_loss_is_that_of_the_model_with_the_same_labels(processor) -> None:
    model = build_model(len(processor.tokenizer)).eval()
    batch = Encoder(processor).train_batch([[e] for e in draw(nano_tasks.task("captions", "train"), "train", 0, 5)])
    torch.testing.assert_close(answer_loss(model, batch), model(**batch).loss)


def test_a_conversation_has_one_picture_and_its_answers_as_labels(processor) -> None:
    encoder = Encoder(processor)
    turns = next(c for c in conversations(0, aligned=True, count=50) if len(c) > 2 and c[0].image is not None)
    batch = encoder.train_batch([turns, turns[:1]])
    ids, labels = batch["input_ids"], batch["labels"]
    assert (ids == encoder.ids["<image>"]).sum(1).tolist() == [IMAGE_TOKENS] * 2
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    answers = processor.tokenizer.decode(ids[0][labels[0] != -100]).split("</s>")
    assert [a.strip() for a in answers if a] == [turn.answer for turn in turns]
    assert torch.equal(labels[labels != -100], ids[labels != -100])
