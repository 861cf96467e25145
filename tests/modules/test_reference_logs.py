"""The log-probabilities of the reference model: computed, stored, and refused for other data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.pairs import pairs, quiet, stream_with_pairs
from support.preference_fits import assert_equal, fit, module, weights
from support.tiny_mllms import tiny_llava
from torch.utils.data import DataLoader

from hpa_lightning.data import MLLMCollator, NumberedRecords
from hpa_lightning.modules import PreferenceSettings


def test_weights_outside_the_adapters_need_a_reference(tmp_path: Path) -> None:
    full = {"lora": None, "train_modules": ["model.language_model"]}
    tuned = module(**full)
    with pytest.raises(MisconfigurationException, match=r"parameters outside the adapters are tuned, 'model.language"):
        fit(tmp_path, tuned, stream_with_pairs(tuned.processor))
    beside = module(train_modules=["model.multi_modal_projector"])
    with pytest.raises(MisconfigurationException, match=r"Set preference.reference_cache"):
        fit(tmp_path, beside, stream_with_pairs(beside.processor))


def test_full_tuning_with_a_stored_or_a_second_reference(tmp_path: Path) -> None:
    """Both are the model before its first step; and a resume cannot make another one of it."""
    full = {"lora": None, "train_modules": ["model.language_model"]}
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "reference")
    collate, records = MLLMCollator(processor).pairs, NumberedRecords(pairs(8))
    found = []
    for settings in (
        PreferenceSettings(reference_cache=str(tmp_path / "cache")),
        PreferenceSettings(reference=str(tmp_path / "reference")),
    ):
        tuned = module(preference=settings, **full)
        trainer = quiet(tmp_path, [], max_epochs=2)
        trainer.fit(tuned, DataLoader(records, batch_size=4, collate_fn=collate))
        found.append(weights(tuned))
        assert not any("reference" in name for name in found[-1])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)
    moved = found[0]["model.model.language_model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(moved, model.state_dict()["model.language_model.layers.0.mlp.up_proj.weight"])
    again = module(preference=PreferenceSettings(reference_cache=str(tmp_path / "cache")), **full)
    with torch.no_grad():
        next(iter(again.model.parameters())).add_(1.0)
    with pytest.raises(MisconfigurationException, match=r"of something else.*model: "):
        quiet(tmp_path, [], max_epochs=1).fit(again, DataLoader(records, batch_size=4, collate_fn=collate))


def test_a_cache_is_gone_on_with_and_refused_for_other_data(tmp_path: Path) -> None:
    settings = PreferenceSettings(reference_cache=str(tmp_path / "cache"))
    plain = module()
    fit(tmp_path, plain, stream_with_pairs(plain.processor))
    cached = module(preference=settings)
    fit(tmp_path, cached, stream_with_pairs(cached.processor))
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(cached)[name], value, rtol=1e-3, atol=1e-4)
    file = tmp_path / "cache" / "safety.jsonl"
    whole = file.read_text()
    file.write_text(whole[: int(len(whole) * 0.6)])  # cut within a line
    calls: list[int] = []
    resumed = module(preference=settings)
    computed = resumed._compute
    resumed._compute = lambda batch: calls.append(len(batch["pair_numbers"])) or computed(batch)
    fit(tmp_path, resumed, stream_with_pairs(resumed.processor))
    assert 0 < sum(calls) < 12 and sorted(file.read_text().splitlines()) == sorted(whole.splitlines())
    assert_equal(weights(resumed), weights(cached))
    other = module(preference=settings)
    data = stream_with_pairs(other.processor)
    data.tasks[1].train = pairs(12, seed=5)
    with pytest.raises(MisconfigurationException, match=r"log-probabilities of something else \(data: "):
        fit(tmp_path, other, data)
    file.write_text("nonsense\n")
    with pytest.raises(MisconfigurationException, match="does not begin with a line"):
        fit(tmp_path, module(preference=settings), stream_with_pairs(other.processor))
