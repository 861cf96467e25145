"""Earlier tasks in a file: sketches of what their inputs are to a model's layers, for a later fit or fusion.

The file is safetensors: `LAYER/rows`, `LAYER/diagonal` and `LAYER/numbers` (`InputSketch.state_dict`) for each distinct
input, in bfloat16 rows; its header says which layers share an input, how many decoder blocks there are, the model's
type and the tasks. Layers go by their names within the list of decoder blocks (`0.self_attn.q_proj`), which are the
same in a LightningModule, under an adapter, and in a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hpa_lightning.files import whole_file
from hpa_lightning.functional import InputSketch
from hpa_lightning.values import shown

_FORMAT = "hpa-lightning earlier tasks, 1"
_PARTS = ("rows", "diagonal", "numbers")


@dataclass(frozen=True)
class EarlierTasks:
    """What the inputs of earlier tasks are to the linear layers of a model's decoder blocks.

    Args:
        sketches: of `sum_i H_i`, `H = (2/n) X^T X`, for each distinct input: name of the first layer that has it.
        first: every layer's name -> the first layer with the same input.
        blocks: number of the model's decoder blocks.
        tasks: names, in the order in which they were learnt.
        model_type: the configuration's `model_type`; empty where the model has none.
        unread: names of the file's layers that :meth:`read` was not asked for.
    """

    sketches: Mapping[str, InputSketch]
    first: Mapping[str, str]
    blocks: int
    tasks: tuple[str, ...]
    model_type: str = ""
    unread: tuple[str, ...] = ()

    def lost(self, path: str | Path, target: str | Path) -> str:
        """Say which layers of the file that was read a new file will not hold; empty where it holds all."""
        if not self.unread:
            return ""
        return (
            f"{path} remembers {len(self.unread)} layers that are not tuned now ({', '.join(self.unread[:3])}); "
            f"{target} will not hold them, so that a later task that tunes them cannot read it. Tune the same layers "
            "in all tasks."
        )

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all; the rows are rounded to bfloat16 there.

        Raises:
            OSError: it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for name, sketch in self.sketches.items():
            rounded = sketch.scaled(1.0)
            rounded.round_()
            tensors |= {f"{name}/{part}": tensor for part, tensor in rounded.state_dict().items()}
        header = {
            "first": dict(self.first),
            "blocks": self.blocks,
            "tasks": list(self.tasks),
            "model_type": self.model_type,
        }
        with whole_file(path) as unfinished:
            save_file(tensors, unfinished, {_FORMAT: json.dumps(header)})  # one key: equal contents are equal files

    @classmethod
    def read(cls, path: str | Path, widths: Mapping[str, int], blocks: int, model_type: str = "") -> EarlierTasks:
        """Read what the file holds of some layers.

        Args:
            path: written by :meth:`write`.
            widths: input columns of the layers that are asked for.
            blocks, model_type: of the model that they are in.

        Returns:
            One sketch for each layer in `widths`; layers that share an input share the object.

        Raises:
            ValueError: no such file, another model, or a layer that the file does not know.
        """
        if not Path(path).is_file():
            raise ValueError(f"there is no file of earlier tasks {str(path)!r}.")
        expected = "expected a file that save_memory (in `fuse`: --save-memory) has written"
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if _FORMAT not in metadata:
                    raise ValueError(f"{path} has no header {_FORMAT!r}; {expected}.")
                header = json.loads(metadata[_FORMAT])
                first, tasks = dict(header["first"]), list(header["tasks"])
                made_of = {"decoder blocks": int(header["blocks"]), "model_type": str(header["model_type"])}
                names = [first.get(name, name) for name in widths]
                stored = set(file.keys())
                unknown = [name for name, leader in zip(widths, names, strict=True) if f"{leader}/rows" not in stored]
                held = {
                    leader: InputSketch.from_state({part: file.get_tensor(f"{leader}/{part}") for part in _PARTS})
                    for leader in dict.fromkeys(names)
                    if f"{leader}/rows" in stored
                }
        except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({shown(str(error))}); {expected}.") from error
        ours = {"decoder blocks": blocks, "model_type": model_type}
        differing = [what for what in ours if made_of[what] and ours[what] and made_of[what] != ours[what]]
        if differing:
            both = "; ".join(f"{what}: {shown(made_of[what])} there, {shown(ours[what])} here" for what in differing)
            raise ValueError(f"{path} remembers the tasks of another model ({both}).")
        if unknown:
            raise ValueError(
                f"{path} does not know {len(unknown)} of {len(widths)} layers ({', '.join(unknown[:3])}); the earlier "
                "tasks were learnt with other layers under tuning. Tune the same ones (target_modules)."
            )
        for (name, width), leader in zip(widths.items(), names, strict=True):
            if held[leader].columns != width:
                raise ValueError(f"{path}: {name} has {held[leader].columns} input columns there and {width} here.")
        return cls(
            {name: held[leader] for name, leader in zip(widths, names, strict=True)},
            {name: first.get(name, name) for name in widths},
            blocks,
            tuple(map(str, tasks)),
            str(made_of["model_type"]),
            tuple(name for name in first if name not in widths),
        )


def check_memory(safety_weight: float, memory_weight: float, rank: int) -> None:
    """Refuse weights that are negative or not finite, and a rank below 1.

    Raises:
        ValueError: naming the setting.
    """
    for name, value in (("safety_weight", safety_weight), ("memory_weight", memory_weight)):
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; expected a finite number >= 0.")
    if rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1 row for each layer input.")


def model_type_of(module: nn.Module) -> str:
    """The `model_type` of the outermost transformers configuration in a module; empty where there is none."""
    for inner in module.modules():
        found = getattr(getattr(inner, "config", None), "model_type", None)
        if isinstance(found, str):
            return found
    return ""
