"""diag(H^-1) of the fused layers: kept block by block while a fusion runs, and in a file for later ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from hpa_lightning.callbacks.calibration_data import CalibrationSettings
from hpa_lightning.fuse.output import PartialOutput, write_tensors
from hpa_lightning.values import cut, shown

SAFETY, TASK = "safety", "task"


class FusionOutput(PartialOutput):
    """The output of a fusion while it is being made; it also keeps what calibration has found."""

    def has_diagonals(self, what: str, block: int) -> bool:
        """Whether the diagonals of that kind and block are finished."""
        return self._diagonals(what, block).is_file()

    def save_diagonals(self, what: str, block: int, diagonals: Mapping[str, Tensor]) -> None:
        """Keep the diagonals of one block."""
        write_tensors(self._diagonals(what, block), diagonals)

    def load_diagonals(self, what: str, block: int) -> dict[str, Tensor]:
        """Read the diagonals of one block."""
        return load_file(self._diagonals(what, block))

    def _diagonals(self, what: str, block: int) -> Path:
        return self.progress / f"{what}-{block:04d}.safetensors"


def read_diagonals(
    path: str | Path, widths: Mapping[str, int], calibration: CalibrationSettings
) -> dict[str, dict[str, Tensor]]:
    """Read a file of diagonals.

    Args:
        path: written by :func:`write_diagonals`.
        widths: input features of every layer that is fused.
        calibration: settings of this run.

    Returns:
        ``"safety"`` and ``"task"`` -> name of the layer -> diagonal ``(in_features,)``; empty where the file holds none
        of a kind.

    Raises:
        ValueError: no file, a broken one, other settings, other layers, or no diagonals.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file of diagonals {str(path)!r}.")
    found: dict[str, dict[str, Tensor]] = {SAFETY: {}, TASK: {}}
    try:
        with safe_open(path, "pt") as file:
            made_with = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - no mapping
                what, _, name = key.partition("/")
                if what in found:
                    found[what][name] = file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read ({shown(str(error))}); expected a file that --save-diagonals has written."
        ) from error
    for setting, value in _made_with(calibration).items():
        made = made_with.get(setting, "all" if setting == "safety_positions" else None)  # files of before had no other
        if made != value:
            raise ValueError(f"{path} was made with {setting} {cut(made, 100)}; this run has {value}.")
    for what, tensors in found.items():
        wrong = [name for name, wide in widths.items() if name not in tensors or tuple(tensors[name].shape) != (wide,)]
        if tensors and wrong:
            raise ValueError(f"{path} does not fit these models: no {what} diagonal of the right size for {wrong[:3]}.")
        bad = [name for name in widths if tensors and not (tensors[name].isfinite() & (tensors[name] > 0)).all()]
        if bad:
            raise ValueError(
                f"{path}: the {what} diagonals of {bad[:3]} ({len(bad)} in all) hold values that are not positive and "
                "finite, which diag(H^-1) always is; make the file again."
            )
    if not any(found.values()):
        raise ValueError(f"{path} holds no diagonals; expected a file that --save-diagonals has written.")
    return found


def write_diagonals(path: Path, output: FusionOutput, blocks: Sequence[int], calibration: CalibrationSettings) -> None:
    """Write the diagonals of the blocks, which are finished, to one file."""
    tensors = {
        f"{what}/{name}": tensor
        for what in (SAFETY, TASK)
        for block in blocks
        for name, tensor in output.load_diagonals(what, block).items()
    }
    write_tensors(path, tensors, _made_with(calibration))


def _made_with(calibration: CalibrationSettings) -> dict[str, str]:
    """The settings that diagonals depend on beside their data."""
    return {
        "damping": repr(calibration.damping),
        "normalized": repr(calibration.normalized),
        "safety_positions": calibration.positions,
    }
