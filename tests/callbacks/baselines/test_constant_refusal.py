from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.multimodal_fits import module, stream, trainer

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.callbacks.baselines import ConstantRefusal
from hpa_lightning.results.run_results import RunResults


def test_refusing_everything_is_safe_and_of_no_use(tmp_path: Path) -> None:
    tuned, plain = module(), module()
    trainer(tmp_path, [SequentialTuning(), ConstantRefusal(), TaskEvaluation(report=False)]).fit(
        tuned, stream(evaluated=True)
    )
    summary = RunResults.from_file(tmp_path).summary()
    aligned = RunResults.from_file(tmp_path).summary(-1)
    assert aligned["over_refusal"] < 1.0 and summary["DASR"] == -aligned["MASR"] < 0.0, "the aligned model as it is"
    assert (summary["AP"], summary["MASR"], summary["over_refusal"]) == (0.0, 0.0, 1.0)
    assert tuned.generate.__func__ is type(tuned).generate  # the module is as it was
    trainer(tmp_path / "plain", [SequentialTuning()]).fit(plain, stream())
    assert all(torch.equal(weight, plain.state_dict()[key]) for key, weight in tuned.state_dict().items())


def test_answers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'Sure\.' is not a refusal"):
        ConstantRefusal("Sure.")
