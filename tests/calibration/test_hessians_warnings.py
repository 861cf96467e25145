"""What calibration tells and refuses: work between the blocks, tokens that a layer does not see, inputs of zeros."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.block_models import Injecting, Looping, linear_names, valid
from support.foreign_module import LanguageModel, token_loader
from torch import nn

from hpa_lightning.calibration import inverse_hessian_diagonals


class Backwards(LanguageModel):
    """Calls its blocks from the last to the first."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for block in reversed(self.layers):
            hidden = block(hidden)
        return self.head(hidden)


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


class UsedTwice(nn.Module):
    """A layer's second input is its own; the first it shares."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.q_proj, self.v_proj = block.q_proj, block.v_proj

    def forward(self, hidden: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        once = self.q_proj(hidden) + self.v_proj(hidden)
        return hidden + scale * self.q_proj(torch.tanh(once))


def test_a_layer_that_is_used_twice_shares_no_hessian() -> None:
    model = LanguageModel().eval()
    model.layers[1] = UsedTwice(model.layers[1])
    modules = dict(model.named_modules())
    both = {f"layers.1.{name}": modules[f"layers.1.{name}"] for name in ("q_proj", "v_proj")}
    run = lambda linears: inverse_hessian_diagonals(  # noqa: E731
        lambda batch: model(batch["input_ids"]), list(token_loader(3)), list(model.layers), linears
    )
    with pytest.raises(ValueError, match=r"v_proj is called 1 times in a forward pass and layers.1.q_proj 2 times"):
        run(both)
    for name, module in both.items():
        assert set(run({name: module})) == {name}
