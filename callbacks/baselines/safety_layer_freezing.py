"""SafetyLayerFreezing: train everything but the safety layers (SPPFT)."""

from __future__ import annotations

from typing import Any, ClassVar

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info

from hpa_lightning.answering import scored_module
from hpa_lightning.callbacks.current_task import CurrentTask
from hpa_lightning.callbacks.phases import StartPhase
from hpa_lightning.callbacks.running import evaluation_mode, forward_context
from hpa_lightning.callbacks.safety_data import collator_of
from hpa_lightning.callbacks.task import TaskCallback
from hpa_lightning.data.needs import prompt_data, records_of
from hpa_lightning.data.readers import as_records
from hpa_lightning.data.tasks import Data
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.results.events import SafetyLayersEvent
from hpa_lightning.safety_layers import SafetyLayers, find_safety_layers

_PROMPTS = (
    "SafetyLayerFreezing(layers=None) needs a datamodule to find the layers with: one that has",
    "Pass layers=(first, last), or fit with a CVITDataModule.",
)


class SafetyLayerFreezing(TaskCallback):
    """Freezes every parameter of a range of decoder blocks: the weights themselves, or their adapters.

    The parameters do not require a gradient and are in no optimizer that selects by that; in one that does not select,
    they have no gradient and are passed over. Either way weight decay and momentum do not move them: the blocks'
    weights are bit for bit the same after training. With LoRA their adapters stay empty (B = 0); a restart by
    :class:`SequentialTuning` redraws A, which changes nothing. The parameters stay frozen after the fit.

    With ``layers=None`` the range is found at the first task's start (:func:`find_safety_layers`), from
    ``harmful_calibration_records`` of the datamodule and ``normal_data``, and the optimizer
    is rebuilt without the frozen parameters.

    Hooks: ``setup`` (before the optimizer is built and DDP wraps the model), task start (after the aligned model was
    evaluated, before methods that look for tuned layers), ``on_load_checkpoint``. Event: ``safety_layers``.
    State: the range that was found. Strategies: one device; DDP and FSDP2 (with given layers).
    Source: SPPFT, Li et al. (ICLR 2025, arXiv 2408.17003).

    Args:
        layers: first and last decoder block, counted from 1, both included (Llama-2-7B: 6 to 14); ``None`` finds them.
        blocks: dotted name of the list of decoder blocks; found by itself when ``None``.
        prompts: most prompts of each kind that the finder takes.
        batch_size: prompts in one forward pass of the finder.
        normal_data: path or records of harmless prompts for the finder; the first task's calibration records when
            ``None``. Best are prompts like the harmful ones in all but the harm: a task that the aligned model does not
            know yet may be more unlike itself than unlike harmful prompts, and then there is no gap.

    Raises:
        ValueError: layers that are no range of the model's blocks.
        MisconfigurationException: nothing is left to train; or ``layers=None`` under DDP, or without a datamodule that
            has what the finder needs.

    Example:
        >>> from hpa_lightning.callbacks import SequentialTuning
        >>> from hpa_lightning.callbacks.baselines import SafetyLayerFreezing
        >>> callbacks = [SequentialTuning(), SafetyLayerFreezing(layers=(6, 14))]
    """

    start_order: ClassVar[int] = StartPhase.GUARDING

    def __init__(
        self,
        layers: tuple[int, int] | None = None,
        blocks: str | None = None,
        prompts: int = 64,
        batch_size: int = 8,
        normal_data: Data | None = None,
    ) -> None:
        super().__init__()
        if layers is not None and (len(layers) != 2 or not 1 <= layers[0] <= layers[1]):
            raise ValueError(f"layers is {layers}; expected (first, last) with 1 <= first <= last, or None.")
        if prompts < 2 or batch_size < 1:
            raise ValueError(f"prompts and batch_size are {prompts} and {batch_size}; expected at least 2 and 1.")
        self.layers = None if layers is None else (int(layers[0]), int(layers[1]))
        self.blocks = blocks
        self.prompts = prompts
        self.batch_size = batch_size
        self.normal_data = normal_data
        self._found: tuple[int, int] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._found = None
        if self.layers is not None:
            self._freeze(pl_module, self.layers)
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy):
            raise MisconfigurationException(
                "SafetyLayerFreezing(layers=None) searches for the layers after the strategy has been built with "
                "their parameters. Find them on one device (find_safety_layers, or a run without DDP) and pass "
                "layers=(first, last)."
            )
        prompt_data(trainer, *_PROMPTS)
        scored_module(pl_module, "SafetyLayerFreezing(layers=None)")

    def on_task_start(self, trainer: L.Trainer, pl_module: L.LightningModule, task: CurrentTask) -> None:
        gap: dict[str, Any] = {}
        if self.layers is None and task.index == 0:
            with self.timed(trainer, task.index, "calibrate"):
                found = self._find(trainer, pl_module)
            self._found = (found.first, found.last)
            self._freeze(pl_module, self._found)
            trainer.strategy.setup_optimizers(trainer)  # without them, as it will be after a resume
            gap = {"gap_degrees": [round(value, 4) for value in found.gap.degrees]}
        chosen = self.layers or self._found
        if chosen is None:
            raise ValueError(
                "SafetyLayerFreezing(layers=None) finds the layers on the aligned model, before the first task; this "
                f"run was resumed in task {task.index} from a checkpoint without it. Pass layers=(first, last)."
            )
        if task.index == 0:
            self.record(trainer, SafetyLayersEvent(first=chosen[0], last=chosen[1], found=bool(gap), **gap))
            rank_zero_info(f"Safety layers {chosen[0]} to {chosen[1]} are frozen.")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None or trainer.state.fn != "fit":
            return
        if state["layers"] != self._plain(self.layers):
            raise ValueError(
                f"the checkpoint was written with layers={state['layers']}, now it is {self._plain(self.layers)}; "
                "resume with the same layers."
            )
        if state["found"] is not None:
            self._freeze(pl_module, tuple(state["found"]))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "layers": self._plain(self.layers), "found": self._plain(self._found)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._found = None if state_dict["found"] is None else tuple(state_dict["found"])

    def _find(self, trainer: L.Trainer, pl_module: L.LightningModule) -> SafetyLayers:
        data = prompt_data(trainer, *_PROMPTS)
        normal = None if self.normal_data is None else as_records(self.normal_data, None, "normal_data")
        if normal is None and (normal := records_of(data.calibration_dataloader(0, self.prompts))) is None:
            raise ValueError(
                "SafetyLayerFreezing(layers=None): the datamodule's calibration_dataloader has no dataset of records; "
                "pass normal_data=."
            )
        with evaluation_mode(pl_module), forward_context(trainer):
            return find_safety_layers(
                pl_module,
                collator_of(trainer, pl_module, "SafetyLayerFreezing"),
                list(normal)[: self.prompts],
                list(data.harmful_calibration_records())[: self.prompts],
                batch_size=self.batch_size,
                blocks=self.blocks,
            )

    def _freeze(self, pl_module: L.LightningModule, layers: tuple[int, int]) -> None:
        prefix, blocks = find_decoder_blocks(pl_module, self.blocks)
        first, last = layers
        if last > len(blocks):
            raise ValueError(f"layers is {layers}, but {prefix!r} has {len(blocks)} blocks; expected a range inside.")
        for block in blocks[first - 1 : last]:
            for parameter in block.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
        if not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise MisconfigurationException(
                f"nothing is left to train with layers {first} to {last} of {len(blocks)} frozen; freeze fewer layers."
            )

    @staticmethod
    def _plain(layers: tuple[int, int] | None) -> list[int] | None:
        return None if layers is None else list(layers)
