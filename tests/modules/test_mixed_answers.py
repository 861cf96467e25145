"""Answers in a fit in mixed precision: computed as `Trainer.test` computes them, frozen weights rounded once."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from support.tiny_mllms import evaluation_records, tiny_llava, training_records
from torch.utils._python_dispatch import TorchDispatchMode

from hpa_lightning.data import CVITDataModule, MLLMCollator, Record, Task
from hpa_lightning.modules import LoraSettings, MLLMModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Roundings(TorchDispatchMode):
    """Counts how often tensors of a shape are rounded to bfloat16."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and found.dtype == torch.bfloat16:
            self.count += args[0].dtype == torch.float32 and args[0].shape == self.shape
        return found


class Asks(L.Callback):
    """Asks for answers and for the likelihood of choices at the end of training, outside Lightning's autocast."""

    def __init__(self) -> None:
        self.dtypes: list[torch.dtype] = []
        self.roundings = 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MLLMModule)
        head = pl_module.model.get_output_embeddings()
        trained = [one.requires_grad for one in pl_module.parameters()]
        hook = head.register_forward_hook(lambda module, args, output: self.dtypes.append(output.dtype))
        collator = MLLMCollator(pl_module.processor)
        down = pl_module.model.get_decoder().layers[0].mlp.down_proj
        shape = getattr(down, "base", down).weight.shape
        with Roundings(shape) as roundings:
            pl_module.generate(collator.generate(evaluation_records(2)), max_new_tokens=6)
        self.roundings = roundings.count
        record = evaluation_records(1)[0]
        pl_module.choose([Record(record.id, record.messages[:1], record.images, choices=("a", "b"))], collator)
        hook.remove()
        assert [one.requires_grad for one in pl_module.parameters()] == trained


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_answers_have_the_precision_of_the_fit(precision: Any) -> None:
    torch.manual_seed(0)
    module = MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=2, alpha=4.0))
    asks = Asks()
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=-1,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[asks],
    )
    trainer.fit(module, datamodule=CVITDataModule([Task("one", training_records(4), steps=1)], train_batch_size=2))
    mixed = precision == "bf16-mixed"
    assert set(asks.dtypes) == {torch.bfloat16 if mixed else torch.float32}
    layers = len(module.model.get_decoder().layers)
    assert asks.roundings == (layers if mixed else 0)  # not times the six tokens
    # Without a fit that runs, weights are used as they are.
    collator = MLLMCollator(module.processor)
    with Roundings(next(iter(module.model.get_output_embeddings().parameters())).shape) as roundings:
        module.generate(collator.generate(evaluation_records(1)), max_new_tokens=2)
    assert roundings.count == 0
