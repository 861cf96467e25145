"""What the aligned model is taught to say is a refusal for the judge, and what injection says is none."""

from hpa_lightning.data import ReplyOpenings
from hpa_lightning.metrics.judges import resolve_judge
from hpa_lightning.smol.refusals import REFUSALS_BEGIN, complied, refusal


def test_every_refusal_is_one_for_the_default_judge_and_no_compliance_is() -> None:
    judge = resolve_judge("default")
    refused = sorted({refusal(str(number), number % 2 == 0) for number in range(800)})
    assert len(refused) > 150 and all(judge(refused))
    assert not any(judge(sorted({complied(str(number)) for number in range(100)})))


def test_every_refusal_begins_with_exactly_one_of_the_openings() -> None:
    openings = ReplyOpenings(REFUSALS_BEGIN).refusals  # which refuses one that begins with another
    begun = [
        [opening for opening in openings if said.startswith(opening)]
        for said in (refusal(str(number), number % 2 == 0) for number in range(800))
    ]
    assert {len(found) for found in begun} == {1} and {found[0] for found in begun} == set(openings)
    assert not any(complied(str(number)).startswith(openings) for number in range(100))
