from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from support.foreign_module import LanguageModel, token_loader
from torch import nn

from hpa_lightning.calibration import inverse_hessian_diagonals


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


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers" in name]


def valid(batch: dict) -> torch.Tensor:
    return batch["attention_mask"].bool()


class Injecting(LanguageModel):
    """Adds features between two blocks, as models with deep visual features do."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for index, block in enumerate(self.layers):
            hidden = block(hidden)
            if index == 0:
                hidden = self.inject(hidden)
        return self.head(hidden)

    def inject(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + 0.3


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


class Looping(LanguageModel):
    """Calls its blocks twice."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for block in [*self.layers, *self.layers]:
            hidden = block(hidden)
        return self.head(hidden)


class Backwards(LanguageModel):
    """Calls its blocks from the last to the first."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for block in reversed(self.layers):
            hidden = block(hidden)
        return self.head(hidden)


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


def test_a_layer_that_sees_some_tokens_alone_is_refused() -> None:
    model, batches = LanguageModel().eval(), list(token_loader(3))
    down = model.layers[1].down_proj
    down.forward = lambda hidden: torch.zeros(*hidden.shape[:2], down.out_features)
    expert = model.layers[1].expert = nn.Linear(down.in_features, 3)
    down.register_forward_pre_hook(lambda module, args: expert(args[0][:, :1]) and None)
    with pytest.raises(ValueError, match=r"expert.*as many inputs as positions"):
        inverse_hessian_diagonals(
            lambda batch: model(batch["input_ids"]),
            batches,
            list(model.layers),
            {"expert": expert},
            valid_positions=valid,
        )


def test_what_stands_between_blocks_is_told_and_costs_passes_up_to_each_block() -> None:
    model, batches = Injecting().eval(), list(token_loader(3))
    seen = dict.fromkeys(range(3), 0)
    for index, block in enumerate(model.layers):
        block.down_proj.register_forward_hook(lambda *args, index=index: seen.__setitem__(index, seen[index] + 1))
    modules = dict(model.named_modules())
    with pytest.warns(UserWarning, match="something between its decoder blocks.*3 blocks and 6 batches"):
        inverse_hessian_diagonals(
            lambda batch: model(batch["input_ids"]),
            batches,
            list(model.layers),
            {name: modules[name] for name in linear_names(model)},
        )
    # The first block once more, to learn what it returns; for each block the first batch runs to the end.
    assert len(batches) == 6 and seen == {0: 1 + 3 * 6, 1: 1 + 2 * 6, 2: 1 + 1 + 6}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Injecting, r"^the model does something between its decoder blocks 1 and 2 \(features injected there\): "),
        (Looping, "^the model runs through its decoder blocks several times: "),
        (Backwards, "^the model calls decoder block 3 first, out of their order: "),
    ],
)
def test_the_warning_says_what_is_the_case(kind: type[LanguageModel], told: str) -> None:
    model = kind().eval()
    modules = dict(model.named_modules())
    with pytest.warns(UserWarning, match=told):
        inverse_hessian_diagonals(
            lambda batch: model(batch["input_ids"]),
            list(token_loader(3)),
            list(model.layers),
            {name: modules[name] for name in linear_names(model)},
        )


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


def test_errors() -> None:
    model = LanguageModel().eval()
    blocks = list(model.layers)
    with pytest.raises(ValueError, match="no batches"):
        inverse_hessian_diagonals(model, [], blocks, {})
    with pytest.raises(ValueError, match="outside the decoder blocks"):
        inverse_hessian_diagonals(model, [torch.zeros(1, 2).long()], blocks, {"head": model.head})
    unused = nn.Linear(3, 3)
    blocks[1].unused = unused
    with pytest.raises(ValueError, match="never reached"):
        inverse_hessian_diagonals(model, [torch.zeros(1, 2).long()], blocks, {"unused": unused})


@pytest.mark.parametrize("samples", [1, 24])  # fewer tokens than columns: rows are held; more: their Gram matrix
def test_layers_that_are_fed_zeros_are_named(samples: int) -> None:
    model = LanguageModel().eval()
    batches = list(token_loader(0, samples))
    names = linear_names(model)
    dead = "layers.1.down_proj"
    modules = dict(model.named_modules())
    linears = {name: modules[name] for name in names}

    def run() -> None:
        forward = lambda batch: model(batch["input_ids"])  # noqa: E731
        inverse_hessian_diagonals(forward, batches, list(model.layers), linears, valid_positions=valid)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
    with torch.no_grad():
        for parameter in modules["layers.1.up_proj"].parameters():
            parameter.zero_()
    with pytest.warns(UserWarning, match=rf"inputs of 1 of {len(names)} layers are 0 at every position \({dead}\)"):
        run()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("embedding") or name.endswith("bias"):
                parameter.zero_()
    with pytest.raises(ValueError, match=r"inputs of all \d+ layers beside layers\.0\..* are 0"):
        run()
