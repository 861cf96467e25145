"""OSF in a stream: bit for bit what peft's own functions do, task after task; resumed, exported, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import OSFConfig, get_peft_model
from support.foreign_module import ForeignModule, LanguageModel, foreign_module, quiet_trainer, token_loader
from support.multimodal_fits import method, stream, trainer
from support.tiny_mllms import tiny_llava
from support.typed_plugin import OwnStream
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from hpa_lightning.callbacks import CurrentTask, SequentialTuning, TaskCallback
from hpa_lightning.modules import LoraSettings, MLLMModule, NanoModule, OSFSettings, add_osf, merge_osf_, restart_osf_
from hpa_lightning.modules.linear_names import linear_names
from hpa_lightning.modules.lora import add_lora, lora_factors
from hpa_lightning.modules.osf import has_osf, osf_layers, osf_weight
from hpa_lightning.modules.tuned_linear import find_tuned_linears

pytest.importorskip("peft", minversion="0.21")  # older ones keep other parts

TASKS = 3
_SAVING: dict[str, Any] = {"enable_checkpointing": True}


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01)


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel()
    for block in model.layers:
        block.dropout.p = 0.0
    return model


def train(model: nn.Module, loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]) -> None:
    optimizer = adam([parameter for parameter in model.parameters() if parameter.requires_grad])
    for batch in token_loader(1, 20):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


def next_token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["input_ids"])
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


@pytest.fixture(scope="module")
def of_peft() -> list[dict[str, Tensor]]:
    """The weights after each task, by peft's own functions: wrapped, trained, merged, unwrapped, wrapped again."""
    model: Any = language_model()
    found = []
    for _ in range(TASKS):
        names = linear_names(model)
        wrapped = get_peft_model(model, OSFConfig(effective_rank=0.25, target_modules=names))  # type: ignore[arg-type]
        train(wrapped, next_token_loss)
        model = wrapped.merge_and_unload()
        found.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return found


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights under their names without OSF, with what was trained."""
    layers = dict(osf_layers(model))
    found = {}
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.partition(".base_layer.")
        if leaf:
            found[f"{owner}.{leaf}"] = osf_weight(layers[owner]) if leaf == "weight" else tensor
        elif "osf_" not in name:
            found[name] = tensor
    return found


def test_the_functions_do_what_peft_does(of_peft: list[dict[str, Tensor]]) -> None:
    model = add_osf(language_model(), OSFSettings(effective_rank=0.25))
    identities = {name: id(parameter) for name, parameter in model.named_parameters()}
    for task, expected in enumerate(of_peft):
        assert restart_osf_(model) == (12 if task else 0)
        train(model, next_token_loss)
        found = plain_weights(model)
        assert merge_osf_(model) == 12 and merge_osf_(model) == 0
        merged = plain_weights(model)
        assert found.keys() == merged.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor) and torch.equal(merged[name], tensor), name
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == identities


class Weights(TaskCallback):
    """Notes the weights at each task's end."""

    end_order = 90

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Tensor]] = []

    def on_task_end(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        model: nn.Module = pl_module.model  # type: ignore[assignment]
        self.found.append({name: tensor.clone() for name, tensor in plain_weights(model).items()})


class Stream(OwnStream):
    """A task for each epoch."""

    def train_dataloader(self) -> Any:
        return token_loader(1, 20)


def test_a_stream_does_what_peft_does(of_peft: list[dict[str, Tensor]], tmp_path: Path) -> None:
    """One task an epoch: merged, decomposed anew, with a fresh optimizer."""
    module, weights = ForeignModule(add_osf(language_model(), OSFSettings(effective_rank=0.25)), adam), Weights()
    fit = quiet_trainer(tmp_path, [SequentialTuning(), weights], max_epochs=TASKS)
    fit.fit(module, datamodule=Stream(["a", "b", "c"]))
    assert len(weights.found) == TASKS
    for found, expected in zip(weights.found, of_peft, strict=True):
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


def test_the_function_is_the_same_before_training_and_after_merging() -> None:
    plain, model = language_model(), add_osf(language_model(), OSFSettings())
    tokens = next(iter(token_loader(1, 20)))["input_ids"]
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-4, atol=1e-5)
    train(model, next_token_loss)
    trained = model(tokens)
    merge_osf_(model)
    torch.testing.assert_close(model(tokens), trained, rtol=1e-4, atol=1e-5)
    merged = language_model()
    merged.load_state_dict(plain_weights(model))
    assert torch.equal(model(tokens), merged(tokens)), "a merged layer adds exactly nothing"


def test_what_is_kept_is_kept_under_plain_gradient_descent() -> None:
    """With SGD, of which projected gradients are projected steps, the greatest directions stay those of the weight."""
    model = add_osf(language_model(), OSFSettings(effective_rank=4))
    before = {name: layer.get_base_layer().weight.clone() for name, layer in osf_layers(model)}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for batch in token_loader(1, 20):
        next_token_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, layer in osf_layers(model):
        u, s, vh = torch.linalg.svd(before[name], full_matrices=False)
        after = osf_weight(layer)
        torch.testing.assert_close(u[:, :4].T @ after @ vh[:4].T, torch.diag(s[:4]), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(after, before[name], atol=1e-4)


def module() -> MLLMModule:
    model, processor = tiny_llava()
    torch.manual_seed(0)
    return MLLMModule.from_objects(model, processor, osf=OSFSettings(effective_rank=0.75), optimizer=adam)


@pytest.mark.parametrize("step", [2, 3, 5, 6], ids=["first_task", "trained_not_ended", "second_task", "epoch_end"])
def test_resume_in_the_middle_of_the_sequence(step: int, tmp_path: Path) -> None:
    whole = module()
    trainer(tmp_path / "whole", [SequentialTuning()]).fit(whole, stream())
    save = ModelCheckpoint(tmp_path, filename="cut-{step}", every_n_train_steps=step, save_top_k=-1)
    trainer(tmp_path / "cut", [SequentialTuning(), save], enable_checkpointing=True).fit(module(), stream())
    second = module()
    with torch.no_grad():
        for tensor in second.state_dict().values():
            tensor.add_(0.5)  # everything must come from the checkpoint
    resumed = trainer(tmp_path / "second", [SequentialTuning()])
    resumed.fit(second, stream(), ckpt_path=tmp_path / f"cut-step={step}.ckpt")
    assert resumed.global_step == 9
    for (name, expected), actual in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(expected, actual), name


def test_a_checkpoint_is_opened_by_its_path_and_exported_as_a_plain_model(tmp_path: Path) -> None:
    tuned = module()
    fit = trainer(tmp_path, [SequentialTuning(merge_last=False)])
    fit.fit(tuned, stream())
    assert tuned.hparams["osf"] == {"effective_rank": 0.75, "target_modules": None, "blocks": None}
    tuned.export(tmp_path / "exported")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "exported")
    assert type(loaded) is type(tiny_llava()[0])
    expected = plain_weights(tuned.model)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_stream_starts_from_a_run_with_osf(tmp_path: Path) -> None:
    tuned = module()
    trainer(tmp_path, [SequentialTuning(), save := ModelCheckpoint(tmp_path, save_last=True)], **_SAVING).fit(
        tuned, stream()
    )
    model, processor = tiny_llava(seed=3)
    started = MLLMModule.from_objects(model, processor, start_from=save.last_model_path)
    expected = plain_weights(tuned.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in started.model.state_dict().items())
    content = torch.load(save.last_model_path, weights_only=True)
    trained = next(name for name in content["state_dict"] if name.endswith(".U_low"))
    content["state_dict"][trained] += 1.0
    torch.save(content, tmp_path / "unmerged.ckpt")
    with pytest.raises(ValueError, match=r"unmerged\.ckpt holds adapters that are not merged; export it"):
        MLLMModule.from_objects(model, processor, start_from=tmp_path / "unmerged.ckpt")


def test_osf_is_refused_where_it_cannot_be() -> None:
    model, processor = tiny_llava()
    with pytest.raises(ValueError, match="osf is given together with lora"):
        MLLMModule.from_objects(model, processor, lora=LoraSettings(), osf=OSFSettings())
    with pytest.raises(ValueError, match="has adapters already; OSF goes on a model without any"):
        add_osf(add_lora(language_model(), LoraSettings(rank=2)), OSFSettings())
    with pytest.raises(ValueError, match=r"target_modules=\['x'\] matches 0"):
        add_osf(language_model(), OSFSettings(target_modules=["x"]))
    for rank in (0, -1, 1.0, 0.0, True):
        if rank is not True:
            with pytest.raises(
                ValueError, match=r"effective_rank is .*expected a whole number of directions from 1 on"
            ):
                OSFSettings(effective_rank=rank)
    for rank in (12, 0.01):
        with pytest.raises(ValueError, match=r"layers.0.q_proj: effective_rank=.* keeps (12|0) of 12 directions"):
            add_osf(language_model(), OSFSettings(effective_rank=rank))
    model = add_osf(language_model(), OSFSettings())
    with torch.no_grad():
        next(osf_layers(model))[1].osf_svd_params["default"]["U_low"].fill_(torch.nan)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "base_layer" in name}
    with pytest.raises(ValueError, match=r"layers\.0\.q_proj: what OSF has trained is not finite"):
        merge_osf_(model)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_methods_on_the_weights_refuse_osf_by_name(tmp_path: Path) -> None:
    model = add_osf(language_model(), OSFSettings())
    for use in (find_tuned_linears, lambda root: lora_factors(root.layers[0].q_proj, "q")):
        with pytest.raises(ValueError, match="an OSF layer of peft"):
            use(model)
    with pytest.raises(ValueError, match="an OSF layer of peft"):
        trainer(tmp_path, [SequentialTuning(), *method("post_training")]).fit(module(), stream())


def test_nano_takes_osf_in_place_of_its_adapters() -> None:
    tuned = NanoModule(osf=OSFSettings(effective_rank=0.5))
    assert has_osf(tuned) and tuned.lora is None
    assert not has_osf(foreign_module(adam, lora=True))
    assert all(".osf_svd_params." in name for name, p in tuned.named_parameters() if p.requires_grad)
