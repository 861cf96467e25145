"""A base model with a peft LoRA adapter, read as if it had been merged."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from hpa_lightning import functional as F
from hpa_lightning.fuse.adapter_settings import check_plain_lora
from hpa_lightning.fuse.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, read_json, rename_keys, tied_weights
from hpa_lightning.fuse.folder import file_inside, weights_left_out
from hpa_lightning.fuse.tensor_files import TensorFiles, require_finite
from hpa_lightning.modules.blocks import find_decoder_blocks
from hpa_lightning.modules.linear_names import uncompiled_name
from hpa_lightning.values import names

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight$")
_FACTOR = re.compile(r"\.lora_[AB]\.")


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds a peft adapter and no whole model."""
    whole = any((Path(folder) / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))
    return (Path(folder) / CONFIG_FILE).is_file() and not whole


class AdaptedCheckpoint(Checkpoint):
    """``W + scaling * B @ A`` in fp32 for each adapted layer of a base model; every other tensor is the base's.

    Args:
        base: the model's folder.
        adapter: peft's folder: adapter_config.json and adapter_model.safetensors. Plain LoRA, rank-stabilised or not.

    Raises:
        ValueError: anything but plain LoRA (see :mod:`hpa_lightning.fuse.adapter_settings`), other weights beside it
            (LLaVA's ``non_lora_trainables.bin``, ms-swift's ``vit.safetensors``), or layers that the base does not
            have.
    """

    def __init__(self, base: str | Path, adapter: str | Path) -> None:
        super().__init__(base)
        self.adapter = Path(adapter)
        self._settings = read_json(file_inside(self.adapter, CONFIG_FILE, "peft"))
        check_plain_lora(self._settings, str(self.adapter / CONFIG_FILE))
        if not (self.adapter / WEIGHTS_FILE).is_file():
            raise ValueError(f"{self.adapter} holds no {WEIGHTS_FILE}; expected an adapter saved as safetensors.")
        self.left_out = weights_left_out(self.adapter, {WEIGHTS_FILE}, "adapter")
        self._factors = TensorFiles(self.adapter, [WEIGHTS_FILE])
        self._modules: dict[str, str] = {}
        self._keys: dict[str, str] = {}  # name of a factor as peft writes it -> its key in the file
        self._warned = False

    @property
    def adapted(self) -> list[str]:
        """Names of the weights that the adapter changes, in the model's order; known once bound."""
        return list(self._modules)

    @property
    def processor_folders(self) -> list[Path]:
        return [self.folder, self.adapter]

    def bind(self, model: nn.Module) -> None:
        super().bind(model)
        parts: dict[str, set[str]] = {}
        named: dict[str, str] = {}
        for key in self._factors.stored:
            match = _KEY.match(uncompiled_name(key))
            if match is None:
                raise ValueError(f"{self.adapter} holds {key}; {_expected_of(key)}")
            factor = _factor_key(match["module"], match["factor"])
            if factor in named:
                raise ValueError(f"{self.adapter} holds {named[factor]} and {key}, which are one tensor; remove one.")
            named[factor] = key
            parts.setdefault(match["module"], set()).add(match["factor"])
        self._keys = named
        renamed = rename_keys(model, [f"{module}.weight" for module in parts])
        order = {name: position for position, name in enumerate(model.state_dict())}
        tied = tied_weights(model)
        found: dict[str, str] = {}
        for module, factors in parts.items():
            name = renamed[f"{module}.weight"]
            if name not in self or len(self.stored(name).shape) != 2:
                raise ValueError(
                    f"{self.adapter} adapts {module}, which is not a linear layer of {self.folder}"
                    f"{_of_the_language_model(module, model)}."
                )
            if name in tied:
                raise ValueError(
                    f"{self.adapter} adapts {module}, whose weight {self.folder} shares with another layer; expected "
                    "layers with weights of their own. Untie them in the base first; peft's merge changes both layers."
                )
            if name in found:
                raise ValueError(f"{self.adapter} adapts {found[name]} and {module}, which are one layer; remove one.")
            if factors != {"A", "B"}:
                raise ValueError(f"{self.adapter} holds lora_{factors.pop()} of {module} alone; expected A and B.")
            (rows, columns), a, b = self.stored(name).shape, self._shape(module, "A"), self._shape(module, "B")
            if a[1:] != (columns,) or b != (rows, a[0]):
                raise ValueError(f"{self.adapter}: A {a} and B {b} do not fit {module}, {(rows, columns)}.")
            found[name] = module
        self._modules = {name: found[name] for name in sorted(found, key=order.__getitem__)}
        self._warn_of_unused_alphas()

    def tensor(self, name: str, device: str | torch.device = "cpu") -> Tensor:
        """Read the tensor of that name to a device; fp32 where the adapter changes it, which is computed there."""
        weight = super().tensor(name, device)
        module = self._modules.get(name)
        if module is None:
            return weight
        a, b = (self._factors.read(self._keys[_factor_key(module, factor)]).to(device) for factor in "AB")
        return F.lora_update(a, b, self._scaling(module, a.shape[0])).add_(weight)

    def check_finite(self) -> None:
        """Check the adapter; its base is checked as the model before."""
        for key in self._factors.stored:
            require_finite(key, self._factors.read(key), self.adapter)

    def inputs(self) -> list[Path]:
        return [*super().inputs(), self.adapter / CONFIG_FILE, self.adapter / WEIGHTS_FILE]

    def _warn_of_unused_alphas(self) -> None:
        """Warn once of entries of ``alpha_pattern`` that no adapted layer goes by: a misspelt one does nothing."""
        modules = self._modules.values()
        pattern = self._settings.get("alpha_pattern") or {}
        unused = [key for key in pattern if not any(get_pattern_key([key], module) == key for module in modules)]
        if unused and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.adapter / CONFIG_FILE}: alpha_pattern names {names(unused)}, which is the name of no adapted "
                f"layer (such as {next(iter(modules), '')}): those layers are merged with lora_alpha="
                f"{self._settings.get('lora_alpha', 8)}, as peft does.",
                stacklevel=3,
            )

    def _scaling(self, module: str, rank: int) -> float:
        pattern = self._settings.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(list(pattern), module), self._settings.get("lora_alpha", 8))
        found: float = alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)
        return found

    def _shape(self, module: str, factor: str) -> tuple[int, ...]:
        return self._factors.stored[self._keys[_factor_key(module, factor)]].shape


def _factor_key(module: str, factor: str) -> str:
    return f"base_model.model.{module}.lora_{factor}.weight"


def _of_the_language_model(module: str, model: nn.Module) -> str:
    """What follows on the name of a layer that ``model`` has in its language model's blocks alone; ``""`` if not."""
    found = re.fullmatch(r"(?P<list>.+?)\.(?P<layer>\d+\..+)", module)
    try:
        blocks, _ = find_decoder_blocks(model)
    except ValueError:  # none that this package knows, and so none to name
        return ""
    if found is None or f"{blocks}.{found['layer']}.weight" not in model.state_dict():
        return ""
    return (
        f"; that one has {blocks}.{found['layer']}. Where the adapter was tuned on its language model alone, rename "
        f"its tensors from 'base_model.model.{found['list']}.' to 'base_model.model.{blocks}.'"
    )


def _expected_of(key: str) -> str:
    """What is expected in the place of a key that is none of peft's factors, and the way out."""
    if _FACTOR.search(key):
        return (
            "expected base_model.model.LAYER.lora_A.weight and lora_B.weight, which are peft's names: of others peft "
            "loads nothing, and merges nothing with no more than a warning. Save the adapter with the PeftModel's own "
            "save_pretrained, or rename its tensors."
        )
    return (
        "expected lora_A and lora_B of linear layers alone (no DoRA, trained biases, embeddings or modules_to_save). "
        "Merge the adapter with peft and pass the merged folder."
    )
