"""Mixtures of LoRA experts: against a loop over tokens and experts, and what must refuse them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.foreign_module import ForeignModule, LanguageModel, foreign_module, quiet_trainer, token_loader
from support.multimodal_fits import stream, trainer
from support.tiny_mllms import tiny_llava, training_records
from torch import nn

from hpa_lightning.callbacks import CurrentTask, HarmoniousFusion, SequentialTuning, TaskCallback
from hpa_lightning.callbacks.baselines import OrthogonalLoRA, RegLoRA
from hpa_lightning.data import MLLMCollator
from hpa_lightning.modules import LoraSettings, MLLMModule
from hpa_lightning.modules.lora import add_lora, merge_lora_, restart_lora_
from hpa_lightning.modules.moe_lora import MixtureOfLora, has_mixtures
from hpa_lightning.modules.tuned_linear import find_tuned_linears

TOKENS = torch.arange(12).view(2, 6)


def mixture(rank: int = 6, experts: int = 3, bias: bool = True, dtype: torch.dtype = torch.float64) -> MixtureOfLora:
    torch.manual_seed(0)
    layer = MixtureOfLora(nn.Linear(7, 5, bias=bias).to(dtype), rank, experts, scaling=0.7)
    with torch.no_grad():
        layer.lora_b.normal_()
        layer.router.mul_(5.0)
    return layer


def mixed(**settings: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = add_lora(LanguageModel().eval(), LoraSettings(**{"rank": 4, "experts": 2, **settings}))
    assert isinstance(model, LanguageModel)
    return model


def mixtures(model: nn.Module) -> list[MixtureOfLora]:
    return [module for module in model.modules() if isinstance(module, MixtureOfLora)]


@pytest.mark.parametrize(("rank", "experts", "bias"), [(6, 3, True), (6, 6, False), (4, 1, True)])
def test_equals_a_loop_over_tokens_and_experts(rank: int, experts: int, bias: bool) -> None:
    layer = mixture(rank, experts, bias)
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    a, b, router = (p.detach().numpy() for p in (layer.lora_a, layer.lora_b, layer.router))
    own = rank // experts
    expected = np.zeros((2, 4, 5))
    for i, j in np.ndindex(2, 4):
        token = x[i, j].numpy()
        weights = [math.exp(float(row @ token)) for row in router]
        out = layer.base_layer.weight.detach().numpy() @ token
        if bias:
            out = out + layer.base_layer.bias.detach().numpy()
        for e in range(experts):
            inner = a[e * own : (e + 1) * own] @ token
            out = out + 0.7 * weights[e] / sum(weights) * (b[:, e * own : (e + 1) * own] @ inner)
        expected[i, j] = out
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert experts == 1 or float(layer.probabilities(x).detach().std()) > 0.05, (
        "the router sends tokens to different experts"
    )


def test_gradients_reach_experts_and_router_alone() -> None:
    layer = mixture()
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    tensors = (x, layer.lora_a, layer.lora_b, layer.router)

    def function(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
        values = {"lora_a": a, "lora_b": b, "router": router}
        return torch.func.functional_call(layer, values, (x,))

    assert torch.autograd.gradcheck(function, tensors)
    layer(x).sum().backward()
    assert layer.base_layer.weight.grad is None and not layer.base_layer.weight.requires_grad


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_one_expert_is_plain_lora_bit_for_bit(rank_stabilized: bool, dtype: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(0)
    settings = LoraSettings(rank=4, alpha=6.0, target_modules=["v_proj"], rank_stabilized=rank_stabilized)
    plain = add_lora(LanguageModel().to(dtype), settings)
    adapter: Any = plain.layers[0].v_proj  # type: ignore[union-attr]
    layer = MixtureOfLora(adapter.base_layer, 4, 1, settings.scaling)
    with torch.no_grad():
        adapter.lora_B["default"].weight.normal_()
        layer.lora_a.copy_(adapter.lora_A["default"].weight)
        layer.lora_b.copy_(adapter.lora_B["default"].weight)
    assert layer.lora_a.dtype == adapter.lora_A["default"].weight.dtype == dtype
    x = torch.randn(2, 5, 12, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(layer(x), adapter(x)) and layer(x).dtype == adapter(x).dtype
        assert layer.probabilities(x).dtype == torch.float32


def test_low_precision_is_near_float64() -> None:
    exact = mixture()
    layer = mixture(dtype=torch.bfloat16)
    layer.load_state_dict({name: value.bfloat16() for name, value in exact.state_dict().items()})
    exact.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    x = torch.randn(50, 7).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    assert float((layer(x).double() - exact(x.double())).norm() / exact(x.double()).norm()) < 0.01


def test_adding_changes_no_output_and_trains_experts_and_routers_alone() -> None:
    torch.manual_seed(0)
    plain = LanguageModel().eval()
    model = mixed()
    with torch.no_grad():
        assert torch.equal(model(TOKENS), plain(TOKENS))
    assert len(mixtures(model)) == 12 and has_mixtures(model) and not has_mixtures(plain)
    assert not any(module.training for module in model.modules())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 36
    assert all(name.rsplit(".", 1)[1] in ("lora_a", "lora_b", "router") and "layers." in name for name in trained)
    assert [layer.lora_a.shape for layer in mixtures(mixed(target_modules=["down_proj"]))] == [(4, 24)] * 3
    (layer, *_) = mixtures(mixed(rank=4, alpha=6.0, rank_stabilized=True))
    assert layer.scaling == 3.0 and mixtures(mixed(rank=4, alpha=6.0))[0].scaling == 1.5
    assert (layer.in_features, layer.out_features, layer.weight.shape, layer.bias) == (12, 12, (12, 12), None)


def test_dropout_acts_on_the_adapter_and_not_on_the_router() -> None:
    torch.manual_seed(0)
    layer = MixtureOfLora(nn.Linear(7, 5), 4, 2, scaling=1.0, dropout=0.5)
    x = torch.randn(40, 7)
    assert torch.equal(layer(x), layer.base_layer(x))
    with torch.no_grad():
        layer.lora_b.normal_()
    assert not torch.equal(layer(x), layer(x)) and torch.equal(layer.probabilities(x), layer.probabilities(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_bad_settings_are_refused() -> None:
    for rank, experts in ((4, 3), (4, 0), (2, 4)):
        with pytest.raises(ValueError, match=f"{experts} LoRA experts share a rank of {rank}"):
            LoraSettings(rank=rank, experts=experts)
    with pytest.raises(ValueError, match=r"Conv1d.*expected a plain, not quantised"):
        MixtureOfLora(nn.Conv1d(2, 2, 1), 4, 2, 1.0)  # type: ignore[arg-type]
    for settings in (LoraSettings(rank=4), LoraSettings(rank=4, experts=2)):
        with pytest.raises(ValueError, match="adapters already"):
            add_lora(mixed(), settings)
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(add_lora(LanguageModel(), LoraSettings(rank=4)), LoraSettings(rank=4, experts=2))


def test_what_needs_plain_lora_refuses_a_mixture_by_name() -> None:
    message = r"layers.0.q_proj: a mixture of 2 LoRA experts.*experts=1"
    model = mixed()
    for use in (merge_lora_, find_tuned_linears, lambda model: restart_lora_(model, torch.Generator())):
        with pytest.raises(ValueError, match=message):
            use(model)
    model.requires_grad_(True)  # the inner linear layers must not be taken for plain tuned ones either
    with pytest.raises(ValueError, match=message):
        find_tuned_linears(model)


@pytest.mark.parametrize("callback", [OrthogonalLoRA, RegLoRA, HarmoniousFusion])
def test_callbacks_on_the_weights_refuse_a_mixture(callback: type[L.Callback], tmp_path: Path) -> None:
    module = foreign_module(torch.optim.AdamW, lora=False)
    add_lora(module.model, LoraSettings(rank=4, experts=2))
    arguments = {"safety_data": token_loader(7, 8)} if callback is HarmoniousFusion else {}
    with pytest.raises(ValueError, match=r"model.layers.0.q_proj: a mixture"):
        fit(module, [callback(**arguments)], tmp_path)


def fit(module: L.LightningModule, callbacks: list[L.Callback], folder: Path) -> None:
    trainer = quiet_trainer(folder, callbacks, max_epochs=2)
    trainer.fit(module, token_loader(1, 20))


def loss(module: ForeignModule) -> float:
    tokens = next(iter(token_loader(1, 20, batch_size=20)))["input_ids"]
    with torch.no_grad():
        logits = copy.deepcopy(module.model).eval()(tokens)
    return float(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))


def test_training_lowers_the_loss_and_moves_every_part(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = ForeignModule(mixed().train(), lambda parameters: torch.optim.AdamW(parameters, lr=0.02))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    start = loss(module)
    fit(module, [SequentialTuning()], tmp_path)
    for name, value in module.state_dict().items():
        tuned = name.endswith((".lora_a", ".lora_b", ".router"))
        assert torch.equal(value, before[name]) != tuned, name
    assert loss(module) < start - 0.1


def test_mllm_module_answers_and_refuses_to_export(tmp_path: Path) -> None:
    module = MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=4, experts=2), gradient_checkpointing=True)
    collator = MLLMCollator(module.processor)
    records = training_records(3)
    with torch.no_grad():
        for layer in mixtures(module):
            layer.lora_b.normal_()
    module.model(**collator.train(records), use_cache=False).loss.backward()
    assert all(layer.router.grad.abs().sum() > 0 for layer in mixtures(module))
    assert module.hparams["lora"]["experts"] == 2
    answers = module.generate(collator.generate(records), max_new_tokens=4)
    single = [module.generate(collator.generate([record]), max_new_tokens=4)[0] for record in records]
    assert answers == single, "padding and the key-value cache do not change what a token's experts are"
    with pytest.raises(ValueError, match=r"q_proj: a mixture of 2 LoRA experts.*cannot be merged, exported"):
        module.export(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def module() -> MLLMModule:
    model, processor = tiny_llava()
    torch.manual_seed(0)
    return MLLMModule.from_objects(
        model,
        processor,
        lora=LoraSettings(rank=4, alpha=4.0, experts=2),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01),
    )


def parts(tuned: MLLMModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tuned.named_parameters() if value.requires_grad}


class Boundaries(TaskCallback):
    """Notes the adapters at each boundary, after everything else has run there."""

    start_order = end_order = 90

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[dict[str, torch.Tensor]] = []
        self.ends: list[dict[str, torch.Tensor]] = []

    def on_task_start(self, trainer: object, pl_module: MLLMModule, task: CurrentTask) -> None:
        assert not trainer.optimizers[0].state  # type: ignore[attr-defined]
        self.starts.append(parts(pl_module))

    def on_task_end(self, trainer: object, pl_module: MLLMModule, task: CurrentTask) -> None:
        self.ends.append(parts(pl_module))


def test_the_same_mixtures_are_tuned_on(tmp_path: Path) -> None:
    tuned, log = module(), Boundaries()
    frozen = {name: value.clone() for name, value in tuned.named_parameters() if not value.requires_grad}
    trainer(tmp_path, [SequentialTuning(), log]).fit(tuned, stream())
    assert len(log.starts) == len(log.ends) == 2
    for name, value in log.ends[0].items():
        assert torch.equal(log.starts[1][name], value), name
        assert not torch.equal(log.starts[0][name], value) and not torch.equal(log.ends[1][name], value), name
    for name, value in frozen.items():
        assert torch.equal(dict(tuned.named_parameters())[name], value), name
    layers = [layer for layer in tuned.modules() if isinstance(layer, MixtureOfLora)]
    assert len(layers) == 14 and all(layer.lora_b.any() for layer in layers), "nothing was merged"


@pytest.mark.parametrize("step", [2, 3, 5, 6], ids=["first_task", "trained_not_ended", "second_task", "epoch_end"])
def test_resume_in_the_middle_of_the_sequence(step: int, tmp_path: Path) -> None:
    whole = module()
    trainer(tmp_path / "whole", [SequentialTuning()]).fit(whole, stream())
    save = ModelCheckpoint(tmp_path, filename="cut-{step}", every_n_train_steps=step, save_top_k=-1)
    trainer(tmp_path / "cut", [SequentialTuning(), save], enable_checkpointing=True).fit(module(), stream())
    second = module()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.5)  # everything must come from the checkpoint
    resumed = trainer(tmp_path / "second", [SequentialTuning()])
    resumed.fit(second, stream(), ckpt_path=tmp_path / f"cut-step={step}.ckpt")
    assert resumed.global_step == 9
    for (name, expected), actual in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(expected, actual), name
