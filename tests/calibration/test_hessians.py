"""Hessians block by block equal those of whole forward passes, and leave nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from support.block_models import Injecting, Looping, linear_names, valid
from support.foreign_module import LanguageModel, token_loader
from torch import nn
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from hpa_lightning.calibration import inverse_hessian_diagonals, visit_hessians


def reference(model: LanguageModel, batches: list[dict], names: list[str], damping: float) -> dict[str, np.ndarray]:
    """Dense float64 Hessians from inputs gathered in whole forward passes."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    modules = dict(model.named_modules())
    for batch in batches:
        keep = batch["attention_mask"].bool().numpy()
        handles = [
            modules[name].register_forward_pre_hook(
                lambda module, args, name=name, keep=keep: rows[name].append(args[0].double().numpy()[keep])
            )
            for name in names
        ]
        with torch.no_grad():
            model(batch["input_ids"])
        for handle in handles:
            handle.remove()
    result = {}
    for name in names:
        x = np.concatenate(rows[name])
        hessian = 2.0 / len(x) * x.T @ x
        hessian[np.diag_indices_from(hessian)] += damping * np.mean(np.diag(hessian))
        result[name] = np.diag(np.linalg.inv(hessian))
    return result


class InjectingInPlace(Injecting):
    """Does so in place, which leaves the tensor the same object."""

    def inject(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden[:, ::2] += 0.3
        return hidden


class EndingInPlace(LanguageModel):
    """Changes what the last block returns, in place: the blocks themselves can be replayed."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for block in self.layers:
            hidden = block(hidden)
        return self.head(hidden.mul_(2.0))


class Flat(nn.Module):
    """A block's layer that sees all tokens in one row, as experts that all tokens share do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)


@pytest.mark.filterwarnings("ignore:the model ")
@pytest.mark.parametrize("kind", [LanguageModel, Injecting, InjectingInPlace, EndingInPlace, Looping])
def test_equals_dense_hessians_from_whole_forward_passes(kind: type[LanguageModel]) -> None:
    torch.manual_seed(1)
    model = kind().eval()
    batches = list(token_loader(3))
    names = linear_names(model)
    modules = dict(model.named_modules())
    calls = []
    found = inverse_hessian_diagonals(
        lambda batch: model(batch["input_ids"]),
        batches,
        list(model.layers),
        {name: modules[name] for name in names},
        damping=0.01,
        valid_positions=valid,
        on_block=lambda done, total: calls.append((done, total)),
    )
    expected = reference(model, batches, names, 0.01)
    assert set(found) == set(names)
    for name in names:
        np.testing.assert_allclose(found[name].double().numpy(), expected[name], rtol=2e-5)
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("compiled", ["blocks", "model"])
def test_compiled_models_are_calibrated_as_written(compiled: str) -> None:
    """Code that was compiled before, in training, does not know of the hooks."""
    torch.manual_seed(1)
    model = LanguageModel().eval()
    batches = list(token_loader(3))
    names = linear_names(model)
    expected = reference(model, batches, names, 0.01)
    modules = dict(model.named_modules())
    runs = torch.compile(model, backend="eager") if compiled == "model" else model
    for block in model.layers if compiled == "blocks" else ():
        block.compile(backend="eager")
    runs(batches[0]["input_ids"])
    found = inverse_hessian_diagonals(
        lambda batch: runs(batch["input_ids"]),
        batches,
        list(model.layers),
        {name: modules[name] for name in names},
        valid_positions=valid,
    )
    for name in names:
        np.testing.assert_allclose(found[name].double().numpy(), expected[name], rtol=2e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_inference_mode_changes_nothing(whole: bool) -> None:
    torch.manual_seed(1)
    model = LanguageModel().eval()
    batches = list(token_loader(3))
    linears = {name: dict(model.named_modules())[name] for name in linear_names(model)}

    def forward(batch: dict) -> torch.Tensor:
        with torch.inference_mode():
            return model(batch["input_ids"])

    def diagonals(run: Callable[[dict], torch.Tensor]) -> dict[str, torch.Tensor]:
        return inverse_hessian_diagonals(run, batches, list(model.layers), linears, valid_positions=valid)

    wanted = diagonals(lambda batch: model(batch["input_ids"]))
    with torch.inference_mode() if whole else nullcontext():
        found = diagonals(forward)
    for name, diagonal in wanted.items():
        assert torch.equal(found[name], diagonal)


def test_replay_costs_one_pass_of_block_evaluations() -> None:
    model = LanguageModel().eval()
    batches = list(token_loader(3))
    seen = dict.fromkeys(range(3), 0)
    for index, block in enumerate(model.layers):
        block.down_proj.register_forward_hook(lambda *args, index=index: seen.__setitem__(index, seen[index] + 1))
    modules = dict(model.named_modules())
    inverse_hessian_diagonals(
        lambda batch: model(batch["input_ids"]),
        batches,
        list(model.layers),
        {name: modules[name] for name in linear_names(model)},
    )
    # One evaluation for each batch, and one more of the first block to learn what it returns.
    assert seen == {0: len(batches) + 1, 1: len(batches), 2: len(batches)}


def test_a_layer_that_sees_tokens_in_one_row_leaves_padding_out() -> None:
    model, batches = LanguageModel().eval(), list(token_loader(3))
    assert any((batch["attention_mask"] == 0).any() for batch in batches)
    down = model.layers[1].down_proj

    def found() -> torch.Tensor:
        return inverse_hessian_diagonals(
            lambda batch: model(batch["input_ids"]), batches, list(model.layers), {"down": down}, valid_positions=valid
        )["down"]

    expected = found()
    model.layers[1].down_proj = Flat(down)
    torch.testing.assert_close(found(), expected)


@pytest.mark.filterwarnings("ignore:the model does something between")
@pytest.mark.parametrize("kind", [LanguageModel, Injecting])
def test_nothing_is_left_behind_when_the_model_fails(kind: type[LanguageModel]) -> None:
    model = kind().eval()
    modules = dict(model.named_modules())
    batches = list(token_loader(3))

    def fail(module: nn.Module, args: tuple) -> None:
        raise RuntimeError("broken in the second block")

    handle = model.layers[1].down_proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        inverse_hessian_diagonals(
            lambda batch: model(batch["input_ids"]),
            batches,
            list(model.layers),
            {name: modules[name] for name in linear_names(model)},
        )
    handle.remove()
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
        assert "forward" not in module.__dict__


CAUSAL = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1,
        )
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=23, hidden_size=16, n_layer=3, n_head=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSAL)
def test_a_model_that_caches_by_default_keeps_no_keys_and_values_of_its_batches(name: str) -> None:
    """What a step of somebody's own leaves at its default is ``use_cache=True``."""
    torch.manual_seed(1)
    model: PreTrainedModel = CAUSAL[name]().eval()
    blocks = list(model.get_decoder().layers if name == "llama" else model.transformer.h)
    held: list[int] = []

    def count(accumulators: object) -> None:
        caches = [one for one in gc.get_objects() if issubclass(type(one), Cache)]
        layers = [layer for cache in caches for layer in cache.layers]
        held.append(sum(getattr(layer, "keys", None) is not None for layer in layers))

    visit_hessians(
        lambda batch: model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]),
        list(token_loader(3)),
        blocks,
        {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear) and key != "lm_head"},
        count,
    )
    assert held == [0, 0, 0]
