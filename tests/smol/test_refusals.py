"""What the aligned model is taught to say is a refusal for the judge, and what injection says is none."""

from hpa_lightning.metrics.judges import resolve_judge
from hpa_lightning.smol.refusals import complied, refusal


def test_every_refusal_is_one_for_the_default_judge_and_no_compliance_is() -> None:
    judge = resolve_judge("default")
    refused = sorted({refusal(str(number), number % 2 == 0) for number in range(800)})
    assert len(refused) > 150 and all(judge(refused))
    assert not any(judge(sorted({complied(str(number)) for number in range(100)})))
