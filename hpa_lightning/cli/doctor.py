"""`hpa-lightning doctor`: what is installed, what the machine has, what a fit would need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hpa_lightning.cli.parser import CommandParser

if TYPE_CHECKING:
    from hpa_lightning.doctor import FitPlan

_DESCRIPTION = """\
Versions and devices; and for a model's folder or the configuration of a fit, what is supported and how much memory the
fit needs. No weights are loaded. Exit status 1 if something is missing or not supported. --config is the configuration
of a fit here; options of this command are read from the YAML file --options."""


def parser() -> CommandParser:
    """Options of the command."""
    parser = CommandParser("doctor", _DESCRIPTION, config="--options")
    add = parser.add_argument
    add("--config", type=Path, help="YAML of `hpa-lightning fit`; `model`, `data` and `trainer` are read")
    add("--model", type=str, help="instead of --config: name or folder of a model, tuned with AdamW")
    add("--rank", type=Optional[int], help="with --model: LoRA of this rank (default: all weights)")  # noqa: UP045
    add("--dtype", type=str, default="float32", help="with --model: of the weights (default: %(default)s)")
    add("--strategy", type=str, help="ddp, ModelParallelStrategy, ... (default: the configuration's)")
    add("--tokens", type=Optional[int], help="length of a calibration sample (default: max_length, or 640)")  # noqa: UP045
    return parser


def run(arguments: Sequence[str]) -> None:
    """Look at the installation, and at a fit if one is named."""
    options = parser().parse_args(arguments)
    if options.config is not None and options.model is not None:
        raise ValueError("expected --config or --model, got both.")
    from hpa_lightning.doctor import FitPlan, devices, versions
    from hpa_lightning.modules import LoraSettings

    found = versions()
    print("Versions")
    for name, installed, wrong in found:
        print(f"  {name:<20} {installed}{f'   {wrong}' if wrong else ''}")
    print("\nDevices\n  " + "\n  ".join(devices()))
    bad = any(wrong for _, _, wrong in found)
    if options.config is not None:
        bad |= _print_report(FitPlan.from_config(options.config), options)
    elif options.model is not None:
        lora = LoraSettings(rank=options.rank) if options.rank else None
        bad |= _print_report(FitPlan.from_model(options.model, lora, options.dtype), options)
    else:
        print("\nName a configuration (--config) or a model (--model) to see what a fit needs.")
    if bad:
        raise SystemExit(1)


def _print_report(plan: FitPlan, options: Any) -> bool:
    """Print what is supported and the memory; return whether something is not supported."""
    from hpa_lightning.doctor.environment import host_memory
    from hpa_lightning.doctor.memory import estimate_memory, peak
    from hpa_lightning.doctor.support import supported

    print("\nSupport")
    verdicts = supported(plan, options.strategy)
    for verdict in verdicts:
        print(
            f"  {'no ' if verdict.reason else 'yes'}  {verdict.what}{f': {verdict.reason}' if verdict.reason else ''}"
        )
    if any(verdict.reason for verdict in verdicts[:3]):
        return True  # there are no layers to count
    print("\nMemory on one device, without activations")
    needs = estimate_memory(plan, options.tokens)
    for need in needs:
        when = (
            "" if need.when == "always" else f", while {need.when}" if need.when == "calibration" else ", in training"
        )
        print(f"  {_size(need.bytes):>10}  {f'{need.by}: ' if need.by else ''}{need.what}, {need.place}{when}")
    device, host = (peak(needs, place) for place in ("device", "host"))
    print(f"  {_size(device):>10}  at most at one time on the device; activations come on top")
    if host:
        print(f"  {_size(host):>10}  on the host, of {_size(host_memory())}")
    return any(verdict.reason for verdict in verdicts)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
