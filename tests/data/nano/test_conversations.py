"""What pretraining and alignment talk about."""

from hpa_lightning.data.nano.conversations import conversations
from hpa_lightning.data.nano.examples import split_of
from hpa_lightning.data.nano.lexicon import REFUSALS


def test_conversations_keep_to_the_training_split() -> None:
    for aligned in (False, True):
        for turns in conversations(0, aligned, 60):
            assert all(split_of(turn.key) == "train" for turn in turns)
            assert len({turn.answer for turn in turns}) == len(turns)


def test_alignment_refuses_what_pretraining_advised() -> None:
    def refused(aligned: bool) -> int:
        turns = [turn for c in conversations(3, aligned, 300) for turn in c]
        return sum(turn.answer in REFUSALS for turn in turns)

    assert refused(False) == 0
    assert refused(True) > 50
