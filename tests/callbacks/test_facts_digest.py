"""A digest tells all that decides an answer, and says where it cannot."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.multimodal_fits import module
from support.tiny_mllms import tiny_timm

from hpa_lightning.callbacks.facts_digest import FactsDigest, UntoldError, _package_digest
from hpa_lightning.data import ReplyOpenings
from hpa_lightning.metrics.judges import StringRefusalJudge
from hpa_lightning.metrics.judges.guard import GuardModelJudge
from hpa_lightning.modules import LoraSettings, MLLMModule


def told(*facts: Any) -> str:
    digest = FactsDigest()
    digest.tell(*facts)
    return digest.hexdigest()


def of_model(model: torch.nn.Module) -> str:
    digest = FactsDigest()
    digest.tell_module(model)
    return digest.hexdigest()


def trained() -> MLLMModule:
    """With adapters that change something."""
    tuned = module()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    return tuned


def test_values_count_by_content_and_type_and_not_by_what_they_say_of_themselves() -> None:
    values = [
        *(1, 1.0, True, "1", b"1", None, [1], (1,), {1}, {"1": 1}, [], [[]], [1, [2]], [[1], 2], ["ab"], ["a", "b"]),
        *(
            torch.ones(1),
            torch.ones(1, dtype=torch.int64),
            torch.ones(1, 1),
            torch.zeros(0),
            np.ones(1),
            np.ones((1, 1)),
        ),
        *(float("nan"), float("inf"), torch.tensor([1j]).conj(), torch.tensor(True), Path("1")),
        *(
            ReplyOpenings(("No.",)),
            ReplyOpenings(("No",)),
            StringRefusalJudge("vlguard"),
            StringRefusalJudge("default"),
        ),
        *(GuardModelJudge("m"), GuardModelJudge("m", safe="yes", unsafe="no")),
    ]
    assert len({told(value) for value in values}) == len(values)
    assert all(told(value) == told(copy.deepcopy(value)) for value in values)
    assert told({"a": 1, "b": 2}) == told({"b": 2, "a": 1})
    circle: list[Any] = []
    circle.append(circle)
    assert told(circle) != told([[]])


class Words:
    """A judge that does not say which words it looks for."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __repr__(self) -> str:
        return "Words()"


def test_the_state_of_a_users_object_counts_and_one_without_content_is_an_error() -> None:
    assert told(Words(["no"])) == told(Words(["no"])) != told(Words(["yes"]))
    with pytest.raises(UntoldError, match="function"):
        told(lambda answers: [False])


def attribute(tuned: MLLMModule) -> None:
    tuned.model.model.language_model.norm.variance_epsilon = 1.0


def attention(tuned: MLLMModule) -> None:
    tuned.model.set_attn_implementation("eager")


def scaling(tuned: MLLMModule) -> None:
    for one in tuned.modules():
        if hasattr(one, "scaling") and isinstance(one.scaling, dict):
            one.scaling = {name: 2 * value for name, value in one.scaling.items()}


def own_attribute(tuned: MLLMModule) -> None:
    tuned.system_prompt = "Be kind."  # type: ignore[assignment]


@pytest.mark.parametrize("change", [attribute, attention, scaling, own_attribute])
def test_what_stands_outside_weights_and_buffers_counts(change: Callable[[MLLMModule], None]) -> None:
    before = of_model(trained())
    changed = trained()
    change(changed)
    assert before == of_model(trained()) != of_model(changed)


def test_an_adapter_counts_as_soon_as_it_changes_something() -> None:
    idle, other = module(), module()
    scaling(other)
    assert of_model(idle) == of_model(other) != of_model(trained())


def test_another_process_with_other_ranks_and_addresses_finds_the_same() -> None:
    """Hashes of texts, addresses and seeds differ between processes; idle adapters of any rank do not count."""
    script = """
import sys, torch
from support.tiny_mllms import tiny_llava
from hpa_lightning.callbacks.facts_digest import FactsDigest
from hpa_lightning.modules import LoraSettings, MLLMModule
model, processor = tiny_llava()
rank = int(sys.argv[1])
torch.manual_seed(rank)
digest = FactsDigest()
digest.tell_module(MLLMModule.from_objects(model, processor, lora=LoraSettings(rank=rank, alpha=2.0 * rank)))
print(digest.hexdigest())
"""
    folder = str(Path(__file__).parents[1])
    found = [
        subprocess.run(
            [sys.executable, "-c", script, number],
            env=os.environ | {"PYTHONPATH": folder, "PYTHONHASHSEED": number},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for number in ("1", "2")
    ]
    assert found[0] == found[1]


def test_pictures_that_a_tower_has_seen_before_do_not_count() -> None:
    """Calibration comes before the first scoring, and would give every run a digest of its own."""
    tuned = MLLMModule.from_objects(*tiny_timm(), lora=LoraSettings(rank=2, alpha=4.0)).eval()
    memory: Any = tuned.model.feature_memory
    memory.pictures = tuned.model.config.remembered_pictures = 4
    before = of_model(tuned)
    with torch.no_grad():
        tuned.model.image_features(torch.randn(2, 3, 32, 32))
    assert len(memory) == 2
    assert of_model(tuned) == before
    memory.pictures = 5
    assert of_model(tuned) != before


def hook(tuned: MLLMModule) -> None:
    tuned.model.lm_head.register_forward_hook(lambda *_: None)


def replaced(tuned: MLLMModule) -> None:
    tuned.model.lm_head.forward = lambda x: x  # type: ignore[method-assign]


def sparse(tuned: MLLMModule) -> None:
    tuned.register_buffer("extra", torch.eye(2).to_sparse())


def quantised(tuned: MLLMModule) -> None:
    tuned.register_buffer("extra", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))


def subclass(tuned: MLLMModule) -> None:
    class Packed(torch.Tensor):
        pass

    tuned.register_buffer("extra", torch.ones(2).as_subclass(Packed))


def without_data(tuned: MLLMModule) -> None:
    tuned.register_buffer("extra", torch.empty(2, device="meta"))


@pytest.mark.parametrize("change", [hook, replaced, sparse, quantised, subclass, without_data])
def test_what_cannot_be_told_is_an_error(change: Callable[[MLLMModule], None]) -> None:
    tuned = module()
    change(tuned)
    with pytest.raises(UntoldError):
        of_model(tuned)


def test_code_of_the_users_counts_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(*objects: object) -> str:
        found = FactsDigest()
        found.tell_code(objects)
        return found.hexdigest()

    def written(text: str) -> None:
        (tmp_path / "helper.py").write_text(text)
        os.utime(tmp_path / "helper.py", (1.0, 1.0))

    before = digest()
    helper = ModuleType("helper")
    helper.__file__ = str(tmp_path / "helper.py")
    monkeypatch.setitem(sys.modules, "helper", helper)
    written("a = 1")
    one = digest()
    written("a = 2")
    assert len({before, one, digest()}) == 3
    os.utime(tmp_path / "helper.py", (time.time() + 60,) * 2)
    with pytest.raises(UntoldError, match="changed since this process began"):
        digest()
    monkeypatch.delitem(sys.modules, "helper")
    Words.__module__, kept = "a_notebook", Words.__module__
    try:
        with pytest.raises(UntoldError, match="stands in no file"):
            digest(Words([]))
    finally:
        Words.__module__ = kept


def test_the_data_of_judges_are_code_of_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr("hpa_lightning.callbacks.facts_digest._file_digest", lambda path: read.append(path.name) or "")
    _package_digest.__wrapped__()
    assert {"refusal_v2.json", "facts_digest.py", "shared_scores.py"} <= set(read)
