"""LayerDrift: agrees with transformers' own hidden states, changes no training, survives a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support.multimodal_fits import method, module, stream, trainer
from support.tiny_mllms import training_records

from hpa_lightning.callbacks import LayerDrift, SequentialTuning
from hpa_lightning.callbacks.baselines import SafetyLayerFreezing
from hpa_lightning.data import CVITDataModule, MLLMCollator, Record
from hpa_lightning.modules import MLLMModule
from hpa_lightning.modules.tuned_linear import find_tuned_linears
from hpa_lightning.results.result_file import read_results

HARMFUL = training_records(5, seed=43)
PROMPTS = {"harmless": training_records(4, seed=7), "harmful": HARMFUL}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_results(folder / "results.jsonl") if event["event"] == kind]


def hidden(module: MLLMModule, records: list[Record]) -> torch.Tensor:
    """What transformers says the hidden states are, one prompt at a time; the last block's is normalised there."""
    collator = MLLMCollator(module.processor)
    rows = []
    module.model.eval()
    for record in records:
        inputs = collator.generate([record])["inputs"]
        with torch.no_grad():
            states = module.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        rows.append(torch.stack([state[0, -1] for state in states[1:]]))
    module.model.train()
    return torch.stack(rows)


def fit(
    module: MLLMModule, folder: Path, callbacks: list[Any], data: CVITDataModule | None = None, **options: Any
) -> None:
    ckpt = options.pop("ckpt_path", None)
    trainer(folder, callbacks, **options).fit(module, data or stream(), ckpt_path=ckpt)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_cosines_are_those_of_transformers_hidden_states(lora: bool, tmp_path: Path) -> None:
    tuned = module(lora)
    before = {name: hidden(tuned, records) for name, records in PROMPTS.items()}
    weights = dense_blocks(tuned)
    fit(tuned, tmp_path, [SequentialTuning(), LayerDrift(PROMPTS, weights=True, batch_size=3)])
    found = events(tmp_path, "drift")
    assert [(event["step"], event["phase"]) for event in found] == [(0, "end")] * 2 + [(1, "end")] * 2
    for event in found[2:]:
        after = hidden(tuned, PROMPTS[event["set"]])
        expected = torch.nn.functional.cosine_similarity(before[event["set"]], after, dim=-1).mean(dim=0)
        assert event["n"] == len(PROMPTS[event["set"]]) and len(event["cosine"]) == 2
        assert event["cosine"][0] == pytest.approx(float(expected[0]), abs=1e-4)
        assert 1 - event["cosine"][1] > 0 and event["at"] == 9
    now = dense_blocks(tuned)
    for index, share in enumerate(events(tmp_path, "weight_drift")[-1]["blocks"]):
        names = [name for name in weights if f"layers.{index}." in name]
        change = torch.cat([(now[name] - weights[name]).flatten() for name in names]).norm()
        assert share == pytest.approx(
            float(change / torch.cat([weights[name].flatten() for name in names]).norm()), rel=1e-4
        )
        assert share > 0


def dense_blocks(tuned: MLLMModule) -> dict[str, torch.Tensor]:
    return {linear.name: linear.dense_after().clone() for linear in find_tuned_linears(tuned)[1]}


@pytest.mark.parametrize("name", ["in_training", "post_training"])
def test_measuring_changes_no_training(name: str, tmp_path: Path) -> None:
    plain, watched = module(), module()
    fit(plain, tmp_path / "plain", [SequentialTuning(), *method(name)])
    fit(watched, tmp_path / "watched", [LayerDrift(PROMPTS, every_n_steps=2), SequentialTuning(), *method(name)])
    for (key, expected), actual in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(expected, actual), key
    found = events(tmp_path / "watched", "drift")
    assert {(event["step"], event["phase"], event["at"]) for event in found} == {
        (0, "train", 2), (0, "end", 3), (1, "train", 4), (1, "train", 6), (1, "train", 8), (1, "end", 9)
    }  # fmt: skip
    assert len(found) == 12


@pytest.mark.parametrize("step", [2, 5])
def test_a_resume_writes_the_same_events(step: int, tmp_path: Path) -> None:
    callbacks = lambda: [SequentialTuning(), LayerDrift(PROMPTS, every_n_steps=2, weights=True)]  # noqa: E731
    save = ModelCheckpoint(tmp_path, filename="cut-{step}", every_n_train_steps=step, save_top_k=-1)
    fit(module(), tmp_path / "whole", [*callbacks(), save], enable_checkpointing=True)
    fit(module(), tmp_path / "second", callbacks(), ckpt_path=tmp_path / f"cut-step={step}.ckpt")
    for kind in ("drift_prompts", "drift", "weight_drift"):
        assert events(tmp_path / "whole", kind) == events(tmp_path / "second", kind) != []


def test_a_checkpoint_without_it_is_refused(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="cut-{step}", every_n_train_steps=2, save_top_k=-1)
    fit(module(), tmp_path / "whole", [SequentialTuning(), save], enable_checkpointing=True)
    with pytest.raises(ValueError, match="model before the first task, and this fit continues in task 0"):
        fit(module(), tmp_path / "b", [SequentialTuning(), LayerDrift(PROMPTS)], ckpt_path=tmp_path / "cut-step=2.ckpt")


def test_frozen_blocks_do_not_move(tmp_path: Path) -> None:
    tuned = module(lora=False)
    fit(tuned, tmp_path, [SafetyLayerFreezing((1, 1)), SequentialTuning(), LayerDrift(PROMPTS, weights=True)])
    for event in events(tmp_path, "weight_drift"):
        assert event["blocks"][0] == 0.0 < event["blocks"][1]


def test_layers_that_are_tuned_later_are_told(tmp_path: Path) -> None:
    tuned = module(lora=False)
    drift = LayerDrift(PROMPTS, weights=True)
    fit(tuned, tmp_path, [SequentialTuning(), drift])
    left_out = next(iter(drift._weights))
    drift._weights.pop(left_out)
    with pytest.warns(UserWarning, match=f"1 linear layers, '{left_out}' among them, are tuned now"):
        drift._weight_drift(find_tuned_linears(tuned)[1])


def test_prompts_of_the_datamodule_and_the_safety_layers(tmp_path: Path) -> None:
    data = stream()
    data.harmful_calibration = training_records(6, seed=43)
    fit(module(), tmp_path / "a", [SequentialTuning(), LayerDrift(most=6)], data)
    (told,) = events(tmp_path / "a", "drift_prompts")
    assert told["sets"] == {"harmless": 6, "harmful": 6}
    assert (told["first"], told["last"]) == (1, 1) and len(told["gap_degrees"]) == 2
    fit(module(), tmp_path / "b", [SequentialTuning(), LayerDrift({"asked": "harmful"})], stream(evaluated=True))
    (told,) = events(tmp_path / "b", "drift_prompts")
    assert told["sets"] == {"asked": 3} and told["first"] is None
    with pytest.warns(UserWarning, match="finds no safety layers: no layer separates"):
        fit(module(), tmp_path / "c", [SequentialTuning(), LayerDrift({"harmless": HARMFUL, "harmful": HARMFUL})])


def test_misuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="most is 0; expected at least 1"):
        LayerDrift(most=0)
    with pytest.raises(ValueError, match="prompts is empty"):
        LayerDrift({})
    with pytest.raises(MisconfigurationException, match=r"'harmfull'.*evaluation sets are \['first', 'harmful'"):
        fit(module(), tmp_path, [SequentialTuning(), LayerDrift({"a": "harmfull"})], stream(evaluated=True))
