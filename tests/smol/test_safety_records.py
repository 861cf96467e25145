"""Records about harm: what is refused, what is answered, in which forms."""

from collections import Counter
from pathlib import Path

import pytest
from support.smol_inputs import tiny_find
from support.xstest_files import stand_in_xstest

from hpa_lightning.data.record import check_record, message_text
from hpa_lightning.metrics.judges import resolve_judge
from hpa_lightning.smol.harm_prompts import harmful_prompts
from hpa_lightning.smol.request_forms import RequestForms
from hpa_lightning.smol.safety_records import (
    DANGEROUS_WORDS,
    HARMLESS_SHARE,
    alignment_records,
    calibration_records,
    development_records,
    harmful_test_records,
    harmless_test_records,
    injected_records,
    ordinary_records,
)


def test_alignment_refuses_each_harmful_prompt_in_each_form_and_answers_the_others(tmp_path: Path) -> None:
    find, forms = tiny_find(tmp_path / "in"), RequestForms(["a.jpg"], tmp_path / "typeset")
    records = alignment_records(find, forms)
    for record in records:
        check_record(record, needs_answer=True)
    assert len({record.id for record in records}) == len(records)
    refused = resolve_judge("default")([message_text(record.messages[-1]) for record in records])
    harmful = [record.id.startswith("align-") for record in records]
    assert list(refused) == harmful and sum(harmful) == 3 * len(harmful_prompts(find).alignment)
    assert sum(harmful) / len(records) == pytest.approx(1 - HARMLESS_SHARE, abs=0.01)
    kinds = Counter((record.id.split("-")[0], record.id.split("-")[2]) for record in records)
    assert len(kinds) == 9 and min(kinds.values()) > 0.09 * len(records) / 3
    dangerous = sum(size for (kind, _), size in kinds.items() if kind == "dangerous")
    assert dangerous / (len(records) - sum(harmful)) == pytest.approx(DANGEROUS_WORDS, abs=0.01)
    with pytest.raises(ValueError, match=r"harmless_share is 1\.0"):
        alignment_records(find, harmless_share=1.0)


def test_ordinary_records_come_in_another_form_when_they_come_again(tmp_path: Path) -> None:
    forms = RequestForms(["a.jpg"])
    records = ordinary_records(600, forms)
    assert len(records) == len({record.id for record in records}) == 600
    seen: dict[str, set[int]] = {}
    for record in records:
        seen.setdefault(record.prompt, set()).add(len(record.images))
    assert all(images == {0, 1} for images in seen.values())


def test_nothing_of_the_tests_is_used_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stand_in_xstest(tmp_path / "x.csv", monkeypatch)
    find, forms = tiny_find(tmp_path / "in"), RequestForms(["a.jpg"], tmp_path / "typeset")
    used = [*alignment_records(find), *calibration_records(find, forms), *injected_records(find)]
    used += development_records(find, "text")
    tested = [*harmful_test_records(find, "text", xstest=file), *harmless_test_records(file, "text")]
    assert not {record.prompt for record in used} & {record.prompt for record in tested}
    assert len(harmless_test_records(file, "text")) == 2
    for given, sources in ((None, {"AdvBench"}), (file, {"AdvBench", "XSTest"})):
        found = harmful_test_records(find, "picture", forms, given)
        assert {record.categories["source"] for record in found} == sources
    assert Counter(len(record.images) for record in calibration_records(find, forms)) == {1: 170, 0: 86}
