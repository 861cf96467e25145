"""Two checkpoints that belong together, or what differs by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.fused_checkpoints import LAYERS, SAFETY, SETTINGS, TASK, copy
from support.model_folders import load
from transformers import AutoProcessor, CLIPImageProcessor, MixtralConfig, MixtralForCausalLM

from hpa_lightning.fuse import fuse_checkpoints
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.processor_files import borrowed_image_files, read_processor


def test_processor_is_taken_from_before_where_after_has_none(pair: tuple[Path, Path], tmp_path: Path) -> None:
    load(pair[1]).save_pretrained(tmp_path / "bare")
    fuse_checkpoints(pair[0], tmp_path / "bare", tmp_path / "out", SAFETY, TASK, **SETTINGS)
    found, expected = (AutoProcessor.from_pretrained(folder) for folder in (tmp_path / "out", pair[0]))
    assert found.chat_template == expected.chat_template
    assert found.tokenizer.get_vocab() == expected.tokenizer.get_vocab()


def test_an_image_processor_that_was_not_saved_is_taken_from_before(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Some programs save the tokenizer alone; calibration took the whole processor of the model before."""
    after = copy(pair[1], tmp_path / "after")
    (after / "processor_config.json").unlink()
    (after / "chat_template.jinja").write_text((after / "chat_template.jinja").read_text() + "{# tuned #}")
    with pytest.warns(UserWarning, match=r"after holds a tokenizer and no image processor; processor_config.json is"):
        fuse_checkpoints(pair[0], after, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    found = AutoProcessor.from_pretrained(tmp_path / "out")
    assert found.chat_template.endswith("{# tuned #}")
    before, bare = Checkpoint(pair[0]), Checkpoint(after)
    assert read_processor(bare, before).chat_template == found.chat_template
    assert borrowed_image_files(before, bare) == borrowed_image_files(bare, bare) == []


def test_a_tokenizer_that_was_not_saved_is_taken_from_before(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Some programs save the image processor alone; the output had no tokenizer."""
    after = copy(pair[1], tmp_path / "after")
    for file in (*after.glob("tokenizer*"), after / "processor_config.json", after / "chat_template.jinja"):
        file.unlink()
    size = {"height": 28, "width": 28}
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size, image_mean=[0.25] * 3).save_pretrained(after)
    with pytest.warns(UserWarning, match=r"after holds an image processor and no tokenizer; tokenizer and template"):
        fuse_checkpoints(pair[0], after, tmp_path / "out", SAFETY, TASK, **SETTINGS)
    expected = AutoProcessor.from_pretrained(pair[0])
    used = read_processor(Checkpoint(after), Checkpoint(pair[0]))
    for found in (AutoProcessor.from_pretrained(tmp_path / "out"), used):
        assert list(found.image_processor.image_mean) == [0.25] * 3
        assert found.chat_template == expected.chat_template
        assert found.tokenizer.get_vocab() == expected.tokenizer.get_vocab()


def test_models_that_do_not_belong_together_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = pair

    def refused(match: str, folder: Path) -> None:
        with pytest.raises(ValueError, match=match):
            fuse_checkpoints(before, folder, tmp_path / "out", SAFETY, TASK)

    refused("nothing to fuse", before)
    refused("no config.json", tmp_path)
    other = copy(after, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["Other"]}))
    refused("different models", other)
    (other / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    refused("quantised model: config.json has a quantization_config.*has left the entry, delete it", other)
    text = config["text_config"] | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (other / "config.json").write_text(json.dumps(config | {"text_config": text}))
    refused("quantised", other)
    text = config["text_config"] | {"intermediate_size": 64}
    (other / "config.json").write_text(json.dumps(config | {"text_config": text}))
    refused("has the shape", other)
    text = config["text_config"] | {"num_hidden_layers": LAYERS - 1}
    (other / "config.json").write_text(json.dumps(config | {"text_config": text}))
    refused("3 decoder blocks and the one after 2", other)
    text = config["text_config"] | {"hidden_act": "relu"}
    (other / "config.json").write_text(json.dumps(config | {"text_config": text}))
    refused("text_config.hidden_act .'silu' before, 'relu' after", other)

    index = copy(after, tmp_path / "index") / "model.safetensors.index.json"
    shard = Checkpoint(after).tensors.stored["language_model.model.layers.1.mlp.up_proj.weight"].file
    tensors = load_file(index.parent / shard)
    tensors.pop("language_model.model.layers.1.mlp.up_proj.weight")
    save_file(tensors, index.parent / shard)
    refused(r"no tensor for \['model.language_model.layers.1.mlp.up_proj.weight'\]", index.parent)
    (index.parent / shard).write_bytes((after / shard).read_bytes()[:-5])
    refused("cut short", index.parent)
    (index.parent / shard).unlink()
    refused("no such file", index.parent)
    index.unlink()
    refused("neither model.safetensors nor", index.parent)
    assert not list(tmp_path.glob("out*"))


def test_other_settings_of_the_model_are_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = pair[1] / "config.json"
    (tmp_path / "after").mkdir()
    for file in pair[1].iterdir():
        (tmp_path / "after" / file.name).symlink_to(file)
    (tmp_path / "after" / "config.json").unlink()
    content = json.loads(config.read_text())
    content["text_config"]["max_position_embeddings"] = 77
    (tmp_path / "after" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"is a link to .* outside its folder"):
        Checkpoint(tmp_path / "after")
    for file in pair[1].iterdir():
        if file != config:
            (tmp_path / "after" / file.name).unlink()
            (tmp_path / "after" / file.name).write_bytes(file.read_bytes())
    with pytest.warns(UserWarning, match=r"text_config.max_position_embeddings \(\d+ before, 77 after\)"):
        fuse_checkpoints(pair[0], tmp_path / "after", tmp_path / "out", SAFETY, TASK, **SETTINGS)


def test_blocks_that_are_stored_and_not_built_are_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folders = []
    for source in pair:
        folders.append(tmp_path / source.name)
        folders[-1].mkdir()
        for file in source.iterdir():
            (folders[-1] / file.name).write_bytes(file.read_bytes())
        config = json.loads((source / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] = LAYERS - 1
        (folders[-1] / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=rf"7 stored matrices belong to no layer .*layers\.{LAYERS - 1}\."):
        fuse_checkpoints(*folders, tmp_path / "out", SAFETY, TASK, **SETTINGS)


def test_weights_that_have_to_be_joined_are_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    config = MixtralConfig(num_local_experts=2, num_attention_heads=2, num_key_value_heads=2, **sizes)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"has to be split or joined.*experts"):
        fuse_checkpoints(tmp_path / "model", tmp_path / "model", tmp_path / "out", SAFETY, TASK)
