"""`hpa-lightning drift` against a plain computation on the whole models of transformers."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from support.exported_runs import EVALUATION, SEQUENTIAL, fitted
from support.merged_checkpoints import changed, tiny_llama
from support.model_folders import load, tuned, write
from support.tiny_mllms import evaluation_records, tiny_llava, training_records, write_llava_json
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from hpa_lightning.cli import main
from hpa_lightning.data import MLLMCollator, Record
from hpa_lightning.drift import ModelDrift, compare_models

BLOCKS = "model.language_model.layers"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LLaVA with two blocks, in shards, before and after every weight has moved; block 2's up_proj has not."""
    root = tmp_path_factory.mktemp("drift")
    before, processor = tiny_llava(2)
    after: Any = tuned(tiny_llava(2)[0], seed=1, size=0.3)
    with torch.no_grad():
        kept = after.model.language_model.layers[1].mlp.up_proj.weight
        kept.copy_(before.model.language_model.layers[1].mlp.up_proj.weight)
    return {"before": write(root / "before", before, processor), "after": write(root / "after", after, processor)}


def states_by_hand(folder: Path, records: list[Record], processor: Any) -> Tensor:
    """What both blocks put out at the last token, prompt by prompt, in one whole model."""
    model = load(folder).float()
    found = []
    for record in records:
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any, seen: list[Tensor] = seen) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        hooks = [block.register_forward_hook(keep) for block in model.model.language_model.layers]
        with torch.no_grad():
            model(**MLLMCollator(processor).generate([record])["inputs"])
        for hook in hooks:
            hook.remove()
        found.append(torch.stack([hidden[0, -1] for hidden in seen]))
    return torch.stack(found)


def test_a_plain_computation_gives_the_same(folders: dict[str, Path]) -> None:
    prompts = {"harmful": evaluation_records(3, seed=4), "harmless": evaluation_records(5, seed=9)}
    found = compare_models(folders["before"], folders["after"], prompts=prompts, batch_size=2)
    processor = AutoProcessor.from_pretrained(folders["before"])
    for name, records in prompts.items():
        one, two = (states_by_hand(folders[side], records, processor) for side in ("before", "after"))
        expected = nn.functional.cosine_similarity(one.double(), two.double(), dim=-1).mean(dim=0)
        assert found.cosines[name] == pytest.approx(expected.tolist(), abs=1e-5) and found.sets[name] == len(records)
    assert found.gap_degrees is not None and len(found.gap_degrees) == 2

    old, new = (dict(load(folders[side]).named_parameters()) for side in ("before", "after"))
    linears = [name for name in old if name.startswith(BLOCKS) and "proj.weight" in name]

    def share(names: list[str]) -> float:
        change = sum(float((new[name] - old[name]).double().square().sum()) for name in names)
        size = sum(float(old[name].double().square().sum()) for name in names)
        return float((change / size) ** 0.5)

    for block in range(2):
        assert found.weights[block] == pytest.approx(share([n for n in linears if n.startswith(f"{BLOCKS}.{block}.")]))
    assert found.modules["q_proj"] == pytest.approx(share([n for n in linears if "q_proj" in n]))
    assert found.layers[f"{BLOCKS}.1.mlp.up_proj"] == 0.0 and found.layers[f"{BLOCKS}.0.mlp.up_proj"] > 0.1
    assert found.elsewhere["projector"] == pytest.approx(share([n for n in old if "multi_modal_projector" in n]))
    assert found.elsewhere["vision tower"] == pytest.approx(share([n for n in old if "vision_tower" in n]))
    assert found.elsewhere["norms and biases of the blocks"] == pytest.approx(
        share([n for n in old if n.startswith(BLOCKS) and n not in linears])
    )
    widths = {name: old[name].shape[1] for name in linears if name.startswith(f"{BLOCKS}.1.")}
    still = 100 * widths[f"{BLOCKS}.1.mlp.up_proj.weight"] / sum(widths.values())
    assert found.unmoved == pytest.approx([0.0, still])


def test_an_adapter_is_compared_as_peft_merges_it(folders: dict[str, Path], tmp_path: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(folders["before"])
    torch.manual_seed(0)
    targets = r".*language_model.*(q_proj|down_proj)"
    adapted = get_peft_model(base, LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    write(tmp_path / "merged", adapted.merge_and_unload(), AutoProcessor.from_pretrained(folders["before"]))
    prompts = {"harmful": evaluation_records(2, seed=4)}
    mine = compare_models(folders["before"], tmp_path / "adapter", folders["before"], prompts)
    merged = compare_models(folders["before"], tmp_path / "merged", prompts=prompts)
    assert mine.cosines["harmful"] == pytest.approx(merged.cosines["harmful"], abs=1e-5)
    assert mine.weights == pytest.approx(merged.weights) and min(mine.weights) > 0.01
    assert mine.modules["up_proj"] == 0.0 and mine.modules["q_proj"] > 0.01
    with pytest.raises(ValueError, match=r"holds a peft adapter; expected the model that it belongs to"):
        compare_models(folders["before"], tmp_path / "adapter")


@pytest.mark.parametrize("model", [{"lora": {"rank": 2}}, {}], ids=["lora", "full"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_of_lightning_is_what_its_export_is(
    model: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One from the middle of a task, adapters and all; and the command on the last one."""
    config = fitted(tmp_path, model, [SEQUENTIAL, EVALUATION])
    main(["fit", "--config", str(config)])
    middle, last = (tmp_path / "run" / "checkpoints" / name for name in ("step=2.ckpt", "last.ckpt"))
    main(["export", str(middle), str(tmp_path / "middle"), "--unfinished"])
    capsys.readouterr()
    same = compare_models(middle, tmp_path / "middle", prompts={"some": evaluation_records(2)})
    assert same.weights == pytest.approx([0.0] * len(same.weights), abs=1e-6)
    assert same.cosines["some"] == pytest.approx([1.0] * len(same.weights), abs=1e-6)
    by_file = compare_models(tmp_path / "model", middle)
    by_folder = compare_models(tmp_path / "model", tmp_path / "middle")
    assert by_file.weights == pytest.approx(by_folder.weights, rel=1e-4) and max(by_file.weights) > 0
    assert by_file.elsewhere == pytest.approx(by_folder.elsewhere, rel=1e-4)

    command = [
        "drift",
        str(tmp_path / "model"),
        str(last),
        "--evaluation",
        str(config),
        "--output",
        str(tmp_path / "d"),
    ]
    main([*command, "--prompts", "{harmful: harm, harmless: fine}", "--most", "2"])
    told = capsys.readouterr().out
    assert "1 - cosine, harmful" in told and "q_proj" in told
    content = json.loads((tmp_path / "d" / "drift.json").read_text())
    assert content["sets"] == {"harmful": 2, "harmless": 2} and content["kept"] is None
    rows = list(csv.DictReader((tmp_path / "d" / "drift.csv").open()))
    assert len(rows) == len(content["weights"]) and (tmp_path / "d" / "drift.png").stat().st_size > 1000
    main(command)
    assert "1 - cosine, harm " in capsys.readouterr().out, "without --prompts every set stands under its own name"


def test_columns_that_hpa_kept(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("harm", 3), ("task", 5)):
        write_llava_json(tmp_path / f"{name}.json", training_records(2, seed=seed), tmp_path / "images")
    fused = tmp_path / "fused"
    command = ["fuse", "--before", str(folders["before"]), "--after", str(folders["after"]), "--output", str(fused)]
    command += ["--safety-data", str(tmp_path / "harm.json"), "--task-data", str(tmp_path / "task.json")]
    main([*command, "--image-folder", str(tmp_path / "images"), "--p-min", "30", "--p-max", "50"])
    capsys.readouterr()
    command = ["drift", str(folders["before"]), str(fused)]
    main([*command, "--columns", str(fused), "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "drift.json").read_text())
    audit = json.loads((fused / "audit.json").read_text())["layers"]
    for block in (1, 2):
        chosen = [entry for entry in audit if entry["layer"] == block and "retained" in entry]
        kept = 100 * sum(e["retained"] for e in chosen) / sum(e["columns"] for e in chosen)
        assert found["kept"][block - 1] == pytest.approx(kept)
    assert found["unmoved"][0] == pytest.approx(found["kept"][0]), "what was kept is equal in both, and nothing else"
    with pytest.raises(SystemExit, match=r"neither a run's folder or results.jsonl nor an audit.json of fuse"):
        main([*command, "--columns", str(folders["after"]), "--output", str(tmp_path / "no")])


def test_what_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other", *tiny_llava(3))
    text = tmp_path / "text"
    tiny_llama().save_pretrained(text)
    before = str(folders["before"])
    for arguments, message in (
        ([before, str(other)], r"differ in their decoder blocks: 2 and 3; expected one architecture"),
        ([before, str(text)], r"differ in their linear layers in them: \d+ are in one alone"),
        ([before, str(tmp_path / "nothing")], "there is no folder .*nothing"),
        ([before, str(tmp_path / "no.ckpt")], "there is no checkpoint .*no.ckpt"),
        ([before, before, "--prompts", "{harmful: no.json}"], "prompts 'harmful': there is no file 'no.json'"),
        ([before, before, "--base", before], "base is .*before, and neither .* nor .* is a peft adapter's folder"),
        ([before, before, "--most", "0"], "--most is 0; expected at least 1"),
    ):
        with pytest.raises(SystemExit, match=f"hpa-lightning drift: .*{message}"):
            main(["drift", *arguments, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_no_longer_tied_counts(tmp_path: Path) -> None:
    """It was compared the other way round alone: before, it is stored as the embedding."""
    tied, untied = tiny_llama(tied=True), tiny_llama()
    weights = dict(tied.state_dict())
    untied.load_state_dict(weights | {"lm_head.weight": 3 * weights["lm_head.weight"]})
    tied.save_pretrained(tmp_path / "tied")
    untied.save_pretrained(tmp_path / "untied")
    found = compare_models(tmp_path / "tied", tmp_path / "untied").elsewhere
    assert found["embeddings and head"] == pytest.approx(2**0.5)  # of two equal weights the one has moved by twice
    found = compare_models(tmp_path / "untied", tmp_path / "tied").elsewhere
    assert found["embeddings and head"] == pytest.approx(2 / 10**0.5)


def test_what_is_not_compared_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    more = lambda tensors: tensors.update({"mtp.layers.0.up_proj.weight": torch.ones(4, 4)})  # noqa: E731
    after = changed(folders["after"], tmp_path / "after", more)
    (after / "pytorch_model.bin").touch()
    with (
        pytest.warns(UserWarning, match=r"after: 1 stored matrices belong to no layer .*mtp.*they are not compared"),
        pytest.warns(UserWarning, match=r"not read, as transformers .*pytorch_model.bin"),
    ):
        compare_models(folders["before"], after)
    key = next(key for key in load_file(after / "model.safetensors") if key.endswith("lm_head.weight"))
    headless = [changed(folders[name], tmp_path / f"no {name}", lambda tensors: tensors.pop(key)) for name in folders]
    with pytest.raises(ValueError, match=r"no before holds no tensor for \['lm_head.weight'\]"):
        compare_models(*headless)


@pytest.mark.parametrize("without", ["before", "after"])
def test_one_processor_is_enough(without: str, folders: dict[str, Path], tmp_path: Path) -> None:
    bare = {**folders, without: tmp_path / "bare"}
    load(folders[without]).save_pretrained(bare[without])
    prompts = {"harmful": evaluation_records(2, seed=4)}
    expected = compare_models(folders["before"], folders["after"], prompts=prompts)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = compare_models(bare["before"], bare["after"], prompts=prompts)
    assert found.cosines == expected.cosines
    taken = [str(one.message) for one in told if "the prompts are written by that of" in str(one.message)]
    assert len(taken) == (without == "before")
    with pytest.raises(ValueError, match=r"neither .*bare nor .*bare holds a processor, which prompts need"):
        compare_models(bare[without], bare[without], prompts=prompts)


def test_the_figures_of_a_comparison_are_json() -> None:
    drift = ModelDrift("a", "b", {}, {}, None, None, None, [0.1], {}, {}, {}, [0.0])
    assert json.loads(json.dumps(drift.record()))["weights"] == [0.1]


def test_a_folder_without_columns_is_told_first(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpa_lightning.drift.two_models._compare_weights", lambda *_: pytest.fail("compared already"))
    with pytest.raises(ValueError, match="neither a run's folder"):
        compare_models(folders["before"], folders["after"], kept_from=tmp_path)
