"""The two checkpoints of a fusion, checked against each other, and the layers to fuse."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.fuse.adapted import AdaptedCheckpoint
from hpa_lightning.fuse.checkpoint import Checkpoint
from hpa_lightning.fuse.opening import open_checkpoint, warn_of_left_out, warn_of_unbuilt
from hpa_lightning.fuse.pairing import check_architectures, check_layers, check_settings
from hpa_lightning.fuse.streaming import empty_model
from hpa_lightning.modules.tuned_linear import TunedLinear, find_tuned_linears


class FusionJob:
    """The two checkpoints, checked against each other, and the layers to fuse."""

    def __init__(
        self,
        before: str | Path,
        after: str | Path,
        calibration: CalibrationSettings,
        target_modules: list[str] | None,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.calibration = calibration
        self.target_modules = target_modules
        self.device = device
        self.progress = progress
        self.before = Checkpoint(before)
        self.after = open_checkpoint(after, before)
        found = []
        for checkpoint in (self.before, self.after):
            model = empty_model(checkpoint.config, checkpoint.dtype)
            checkpoint.bind(model)
            found.append(find_tuned_linears(model, target_modules=target_modules))
        both, counts = [linears for _, linears in found], [len(blocks) for blocks, _ in found]
        configs, names = (self.before.config, self.after.config), ("before", "after")
        check_architectures(configs, names)
        check_layers(both, counts, names)
        check_settings(configs, names, "the fused model gets the one after. Each calibration runs with its own.")
        blocks, linears = found[1]
        warn_of_left_out((self.before, self.after))
        warn_of_unbuilt(self.after)
        weights = {f"{linear.name}.weight" for linear in linears}
        adapted = set(self.after.adapted) if isinstance(self.after, AdaptedCheckpoint) else weights
        self.blocks = len(blocks)
        self.layers: list[list[TunedLinear]] = [[] for _ in blocks]
        for linear in linears:
            if f"{linear.name}.weight" in adapted:
                self.layers[linear.layer - 1].append(linear)
        self.merged = sorted(adapted - weights)
        weights_of = [f"{linear.name}.weight" for layers in self.layers for linear in layers]
        for checkpoint in (self.before, self.after):
            checkpoint.need(weights_of)
            whole = [name for name in weights_of if not checkpoint.stored(name).dtype.is_floating_point]
            if whole:
                raise ValueError(
                    f"{checkpoint.folder}: {whole[0]} is stored as {checkpoint.stored(whole[0]).dtype} ({len(whole)} "
                    "such layers); expected floating-point weights. Load the model dequantised and save it again."
                )
        if not any(changed(*self.weights(name)) for name in weights_of):
            raise ValueError(
                f"no linear layer of the decoder blocks differs between {self.before.folder} and {after}; there is "
                "nothing to fuse."
            )

    @property
    def by_name(self) -> dict[str, TunedLinear]:
        """The layers to fuse, in the order of the blocks."""
        return {layer.name: layer for layers in self.layers for layer in layers}

    @property
    def model_type(self) -> str:
        """What the configuration calls the architecture."""
        return str(self.after.config.model_type)

    def weights(self, name: str, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """The weight before, in the dtype that is written, and the one after."""
        return self.before.tensor(name, device).to(self.after.stored(name).dtype), self.after.tensor(name, device)


def changed(old: Tensor, new: Tensor) -> bool:
    """Whether tuning has changed a weight, in the dtype of the one after."""
    return not torch.equal(old.to(new.dtype), new)
