"""Harmful requests of the test set are new combinations."""

from hpa_lightning.data.nano import harm
from hpa_lightning.data.nano.examples import SPLITS, draw, split_of_words
from hpa_lightning.data.nano.lexicon import HARMFUL_PAIRS


def test_harmful_combinations_of_the_test_set_were_never_aligned_on() -> None:
    for kind in ("text", "typeset"):
        by_split = {s: {p for p in HARMFUL_PAIRS if split_of_words(kind, *p) == s} for s in SPLITS}
        assert sum(map(len, by_split.values())) == len(HARMFUL_PAIRS)
        assert min(map(len, by_split.values())) >= 20
        # Drawn examples stay within their split's combinations: the advice names the pair.
        for split in SPLITS:
            for example in draw(harm.harmful(kind, split, comply=True), split, 0, 40):
                verb, thing = example.answer.split(",")[0].split()[1::2]
                assert (verb, thing) in by_split[split]
