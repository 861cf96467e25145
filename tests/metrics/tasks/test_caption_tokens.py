"""The tokens of captions are the field's."""

import json
from pathlib import Path

import pytest

from hpa_lightning.metrics.tasks.caption_tokens import caption_tokens

# Made with pycocoevalcap and its Stanford tokeniser; see "made_with" in the file.
FIELD = json.loads((Path(__file__).parents[2] / "support" / "captions.json").read_text())

RECORDS = FIELD["records"]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["prediction"][:30])
def test_the_fields_tokens(record) -> None:
    texts = [record["prediction"], *record["references"]]
    assert [caption_tokens(text) for text in texts] == record["tokens"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    # What the Stanford tokeniser (CoreNLP 3.4.1, -lowerCase) gives, without punctuation.
    [
        ("A man's dog isn't running, but they're OK.", "a man 's dog is n't running but they 're ok"),
        ("Two t-shirts; one black/white and one 50% off!", "two t-shirts one black/white and one 50 % off"),
        ("The U.S. flag waves at 3:30 p.m. near St. Mary's", "the u.s. flag waves at 3:30 p.m. near st. mary 's"),
        ("\u201cHello,\u201d he said, \"it's 5 o'clock.\"", "hello he said it 's 5 o'clock"),
        ("A 3.5-inch screen costs $1,299.99 (or more)...", "a 3.5-inch screen costs $ 1,299.99 or more"),
        ("She'll say: I'd've can't won't cannot gonna", "she 'll say i 'd 've ca n't wo n't can not gon na"),
        ("A dog -- a big one - runs.", "a dog a big one runs"),
        ("the dogs' bowls", "the dogs bowls"),
        ("art [sic] {curly} #1 @home", "art sic curly # 1 @home"),
        ("em\u2014dash en\u2013dash ellipsis\u2026", "em dash en dash ellipsis"),
        ("wow!!! ok?!", "wow !!! ok ?!"),
        ("AT&T at 5pm 5 p.m. 10:45am 2:30", "at&t at 5pm 5 p.m. 10:45 am 2:30"),
        ("ain't aren't didn\u2019t it\u2019s", "ai n't are n't did n't it 's"),
        ("http://t.co/abc and x.com", "http://t.co/abc and x.com"),
        ("i.e. e.g. vs. Mr. Smith & Mrs. Jones", "i.e. e.g. vs. mr. smith & mrs. jones"),
        ("1,2,3 and 4,5 a,b", "1,2,3 and 4,5 a b"),
        ("100% $5 20\u00b0C", "100 % $ 5 20 \u00b0 c"),
        ("caf\u00e9 na\u00efve", "caf\u00e9 na\u00efve"),
        ("", ""),
        (" . , ' \" -- ", ""),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert caption_tokens(text) == tokens.split()
