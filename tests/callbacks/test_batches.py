"""Loaders and batches as users have them: calibration takes them, and what it cannot take is told before training."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from support.foreign_module import ForeignModule, LanguageModel, Tokens, token_loader
from support.method_fits import calibration_data, dense
from support.method_registry import METHODS
from support.resumed_fits import trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import BatchEncoding

from hpa_lightning.calibration.input_recorder import InputRecorder
from hpa_lightning.callbacks import HarmoniousFusion
from hpa_lightning.callbacks.batches import (
    answer_positions,
    batch_length,
    plain_loader,
    training_batches,
    valid_positions,
)
from hpa_lightning.functional import InputSketch


@dataclass
class Batch:
    input_ids: Tensor
    attention_mask: Tensor


Named = namedtuple("Named", ["input_ids", "attention_mask"])


def parts(batch: Any) -> list[Tensor]:
    """The token tensors of a batch of any of the kinds below."""
    if isinstance(batch, Tensor):
        return [batch]
    if hasattr(batch, "input_ids"):
        return [batch.input_ids]
    if "input_ids" in batch:
        return [batch["input_ids"]]
    return [tokens for inner in (batch.values() if hasattr(batch, "values") else batch) for tokens in parts(inner)]


class AnyBatch(ForeignModule):
    """Somebody's module without ``batch_idx``, whose batches may come from several loaders."""

    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        losses = []
        for tokens in parts(batch):
            logits = self.model(tokens)
            losses.append(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))
        return torch.stack(losses).mean()


class Batches(IterableDataset):
    """Makes whole batches itself, as streamed data sets do."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from token_loader(1, 20)

    def __len__(self) -> int:
        return 5


class IndexedBatches(Tokens):
    """Each index is a batch."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rows = slice(4 * index, 4 * index + 4)
        return {"input_ids": self.tokens[rows], "attention_mask": self.mask[rows]}


def collated(kind: Callable[..., Any]) -> DataLoader:
    def collate(rows: list[dict[str, Tensor]]) -> Any:
        return kind(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    return DataLoader(Tokens(1, 20), batch_size=4, collate_fn=collate)


def encoded(**batch: Tensor) -> BatchEncoding:
    return BatchEncoding(batch)


LOADERS: dict[str, Callable[[], Any]] = {
    "batch_size_none": lambda: DataLoader(Batches(), batch_size=None),
    "batch_size_none_with_indices": lambda: DataLoader(IndexedBatches(1, 20), batch_size=None),
    "dict_of_loaders": lambda: {"chat": token_loader(1, 20), "safety": token_loader(2, 12, batch_size=3)},
    "list_of_loaders": lambda: [token_loader(1, 20), token_loader(2, 12, batch_size=3)],
    "combined_shortest": lambda: CombinedLoader({"a": token_loader(1, 20), "b": token_loader(2, 8)}, "min_size"),
    "dataclass": lambda: collated(Batch),
    "named_tuple": lambda: collated(Named),
    "batch_encoding": lambda: collated(encoded),
    "iterable_batches": lambda: Restarts(),
}


class Restarts:
    """Somebody's own loader: no DataLoader at all."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Any]:
        yield from token_loader(1, 20)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["post_training", "in_training", "model_tailor"])
def test_every_kind_of_loader_is_calibrated_with(name: str, loader: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tuned = AnyBatch(LanguageModel(), lambda p: torch.optim.AdamW(p, lr=0.01))
    before = dense(tuned)
    runner = trainer(tmp_path, METHODS[name](calibration_data()), max_epochs=1, enable_checkpointing=False)
    runner.fit(tuned, LOADERS[loader]())
    assert any(not torch.equal(weight, before[layer]) for layer, weight in dense(tuned).items())


def test_calibration_reads_what_training_reads_and_leaves_it_alone(tmp_path: Path) -> None:
    """The same batches in the same order, with a generator of the user's and several loaders."""

    def loaders(generator: torch.Generator) -> dict[str, Any]:
        return {
            "a": DataLoader(Tokens(1, 20), batch_size=4, shuffle=True, generator=generator),
            "b": token_loader(2, 12, batch_size=3),
        }

    seen: list[list[Tensor]] = []

    class Keeps(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *a: Any) -> None:
            seen[-1].extend(parts(batch))

        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append([])
            self.ahead = [tokens for batch in training_batches(trainer) for tokens in parts(batch)]

    for callbacks in ([], METHODS["post_training"](calibration_data())):
        torch.manual_seed(0)
        tuned, keeps = AnyBatch(LanguageModel(), lambda p: torch.optim.SGD(p, lr=0.01)), Keeps()
        runner = trainer(tmp_path, [keeps, *callbacks], max_epochs=2, enable_checkpointing=False)
        runner.fit(tuned, loaders(torch.Generator().manual_seed(3)))
    assert len(seen[0]) == len(seen[1]) == 20
    assert all(torch.equal(plain, calibrated) for plain, calibrated in zip(*seen, strict=True))
    assert len(keeps.ahead) == 10 and torch.equal(keeps.ahead[1], seen[1][1])


def test_a_batch_of_several_loaders_counts_no_padding() -> None:
    """Two forward passes in one step: each has its own mask. The reference sums over the positions by hand."""
    from hpa_lightning.calibration import visit_hessians

    torch.manual_seed(0)
    model = LanguageModel().eval()
    batch = {name: next(iter(token_loader(seed, 8))) for seed, name in enumerate(("a", "b"))}
    linear, inputs, hessians = model.layers[1].q_proj, [], []
    handle = linear.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    for inner in batch.values():
        model(inner["input_ids"])
    handle.remove()
    with pytest.warns(UserWarning, match="^a training step calls the model several times for one batch"):
        visit_hessians(
            lambda batch: [model(inner["input_ids"]) for inner in batch.values()],
            [batch],
            list(model.layers),
            {"q": linear},
            lambda accumulators: hessians.append(accumulators["q"].hessian()),
            damping=1e-6,
            valid_positions=valid_positions,
        )
    rows = torch.cat([x[inner["attention_mask"].bool()] for x, inner in zip(inputs, batch.values(), strict=True)])
    reference = 2 / len(rows) * rows.double().T @ rows.double()
    torch.testing.assert_close(hessians[0].double(), reference, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_read_twice_is_told_before_training(tmp_path: Path) -> None:
    tuned = AnyBatch(LanguageModel(), lambda p: torch.optim.SGD(p, lr=0.01))
    before = dense(tuned)
    runner = trainer(tmp_path, METHODS["post_training"](calibration_data()), max_epochs=1, enable_checkpointing=False)
    with pytest.raises(
        ValueError, match=r"the training data are a generator, which can be read only once; .*task_data="
    ):
        runner.fit(tuned, (batch for batch in token_loader(1, 20)))
    assert runner.global_step == 0
    assert all(torch.equal(weight, before[layer]) for layer, weight in dense(tuned).items())


def test_data_that_hand_out_one_iterator_are_told_before_training(tmp_path: Path) -> None:
    """A trial batch would be lost for training, and nothing be left for the task's end."""

    class OneShot(IterableDataset):
        def __init__(self) -> None:
            self.rows = iter([Tokens(1, 20)[index] for index in range(20)])

        def __iter__(self) -> Iterator[Any]:
            return self.rows

    data = OneShot()
    tuned = AnyBatch(LanguageModel(), lambda p: torch.optim.SGD(p, lr=0.01))
    runner = trainer(tmp_path, METHODS["post_training"](calibration_data()), max_epochs=1, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"a OneShot whose __iter__ returns the same iterator each time"):
        runner.fit(tuned, DataLoader(data, batch_size=4))
    assert runner.global_step == 0


def test_a_step_that_calibration_cannot_run_fails_before_training(tmp_path: Path) -> None:
    class NeedsState(ForeignModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if not torch.is_grad_enabled():
                raise RuntimeError("my step needs gradients")
            return super().training_step(batch, batch_idx)

    tuned = NeedsState(LanguageModel(), lambda p: torch.optim.SGD(p, lr=0.01))
    runner = trainer(tmp_path, [HarmoniousFusion(**calibration_data())], max_epochs=1, enable_checkpointing=False)
    with pytest.raises(RuntimeError, match="my step needs gradients"):
        runner.fit(tuned, token_loader(1, 20))
    assert runner.global_step == 0


def test_hooks_before_the_transfer_run_in_calibration_too(tmp_path: Path) -> None:
    class Tokenizes(ForeignModule):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {"input_ids": batch["text"]}

    def named(loader: DataLoader) -> list[dict[str, Tensor]]:
        return [{"text": batch["input_ids"]} for batch in loader]

    tuned = Tokenizes(LanguageModel(), lambda p: torch.optim.SGD(p, lr=0.01))
    data = {**calibration_data(), "safety_data": named(token_loader(7, 8))}

    class Texts(Restarts):
        def __iter__(self) -> Iterator[Any]:
            yield from named(token_loader(1, 20))

    trainer(tmp_path, METHODS["post_training"](data), max_epochs=1, enable_checkpointing=False).fit(tuned, Texts())


def test_lengths_and_masks() -> None:
    mask = torch.tensor([[1, 1, 0]])
    batch = {"text": ["a"], "inner": Batch(torch.zeros(1, 3), mask), "score": torch.tensor(2.0)}
    assert batch_length(batch) == 1 and torch.equal(valid_positions(batch), mask.bool())  # type: ignore[arg-type]
    assert batch_length({"text": ["a", "b"]}) == 2
    masks = valid_positions([{"attention_mask": mask}, Named(torch.zeros(1, 3), mask)])
    assert isinstance(masks, tuple) and len(masks) == 2
    with pytest.warns(UserWarning, match=r"an attention mask of shape \(1, 1, 3, 3\): it does not tell which"):
        assert valid_positions(Batch(mask, torch.zeros(1, 1, 3, 3))) is None
    added = (1 - mask.float()) * torch.finfo(torch.float32).min
    for one in (mask, mask.float(), added):  # as numbers of either kind, and as what is added to scores
        assert torch.equal(valid_positions({"attention_mask": one}), mask.bool())  # type: ignore[arg-type]
        answers = answer_positions({"attention_mask": one, "labels": torch.tensor([[-100, 5, 6]])})
        assert answers.tolist() == [[True, False, False]]
    assert valid_positions({"attention_mask": torch.zeros(1, 3)}).all()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="cannot determine the number of samples in a batch of type NoneType"):
        batch_length(None)
    assert [len(batch["input_ids"]) for batch in plain_loader(token_loader(0, 6))] == [4, 2]


def test_samples_are_rows_of_tokens_not_patches_of_pictures() -> None:
    """Qwen2-VL's processor gives the patches of all pictures in one tensor, 256 of each here."""
    patches = {"pixel_values": torch.zeros(512, 1176), "image_grid_thw": torch.tensor([[1, 16, 16]] * 2)}
    assert batch_length({**patches, "input_ids": torch.ones(2, 80, dtype=torch.long)}) == 2
    assert batch_length({**patches, "labels": torch.ones(2, 80, dtype=torch.long)}) == 2
    assert batch_length(patches) == 512


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_answers_are_told_from_tokens_alone(left: bool) -> None:
    """Labels that were copied from the tokens, padding included, but for the prompt."""
    valid = (
        torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]) if left else torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    )
    labels = torch.tensor([[-100, -100, 4, 5, 6], [0, 0, -100, 8, 9] if left else [-100, 8, 9, 0, 0]])
    found = answer_positions({"labels": labels, "attention_mask": valid})
    second = [False, False, True, True, False] if left else [True, True, False, False, False]
    assert found.tolist() == [[False, True, True, True, False], second]


def test_labels_that_leave_no_token_out_are_told() -> None:
    tokens, valid = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[1, 1, 1, 0]])
    with pytest.warns(UserWarning, match="the prompts count as answers"):
        found = answer_positions({"labels": tokens, "attention_mask": valid})
    assert found.tolist() == [[True, True, False, False]]
    with pytest.raises(ValueError, match="no label of a batch is told from a token before it"):
        answer_positions({"labels": torch.tensor([[5, -100]])})


def test_a_mask_of_other_tokens_than_the_labels_is_told_and_the_labels_decide() -> None:
    """Of an encoder's tokens, as sequence-to-sequence collators have it; a square mask per token is none of these."""
    labels = torch.tensor([[-100, 4, 5, -100]])
    with pytest.warns(UserWarning, match=r"masks of shapes \(1, 6\) and labels of \(1, 4\): no mask tells which"):
        found = answer_positions({"attention_mask": torch.ones(1, 6), "labels": labels})
    assert found.tolist() == [[True, True, False, False]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        square = answer_positions({"attention_mask": torch.ones(1, 1, 4, 4), "labels": labels})
    assert torch.equal(square, found)


def test_a_model_that_takes_the_tokens_first_is_calibrated_at_the_same_positions() -> None:
    layer, inputs = nn.Linear(3, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    expected = inputs[mask].T @ inputs[mask]
    for given in (inputs, inputs.transpose(0, 1).contiguous(), inputs.flatten(0, 1)):
        with InputRecorder({"layer": layer}, lambda columns: InputSketch(columns, columns)) as recorder:
            recorder.start_batch(mask, counted=True)
            layer(given)
        rows = recorder.accumulators()["layer"].rows
        torch.testing.assert_close(rows.T @ rows, expected, rtol=0, atol=1e-5)
