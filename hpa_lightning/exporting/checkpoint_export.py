"""The command `export` in Python."""

from __future__ import annotations

from pathlib import Path

from hpa_lightning.exporting.adapter import check_base, write_adapter
from hpa_lightning.exporting.card import model_card
from hpa_lightning.exporting.source import TunedCheckpoint
from hpa_lightning.modules import MLLMModule
from hpa_lightning.modules.load_pretrained import build_model
from hpa_lightning.modules.save_pretrained import export_model


def export_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    run: str | Path | None = None,
    adapter: bool = False,
    unfinished: bool = False,
) -> TunedCheckpoint:
    """Write one Hugging Face folder with a model card, or an adapter that peft loads.

    Args:
        checkpoint: a checkpoint file of Lightning.
        folder: to be made; it is there as a whole or not at all.
        run: folder of the run; found above the checkpoint when ``None``.
        adapter: write the LoRA adapter alone, for the base model as it was before the run.
        unfinished: write weights from before a task's end, which a method has not fused yet, as they are.

    Returns:
        What the checkpoint and its run say.

    Raises:
        ValueError: the checkpoint cannot be used or is from before a task's end, the folder is not empty, mixtures of
            LoRA experts, or an adapter that would lose what was merged into the base.
    """
    source = TunedCheckpoint.read(checkpoint, run)
    if source.unfinished and not unfinished:
        raise ValueError(f"{source.unfinished}, or pass --unfinished to export the weights as they are.")
    module = source.module().eval()
    named = _base_of(source, module)
    config = module.model.config
    card = model_card(source, named, str(config.model_type), adapter, hasattr(config, "vision_config"))
    if not adapter:
        export_model(module.model, module.processor, folder, card=card)
        return source
    if named is None or module.lora is None:
        reason = "has no adapter" if module.lora is None else "does not say which model it began from"
        raise ValueError(f"the run of {source.path} {reason}; export the whole model (without --adapter).")
    dtype = str(next(module.model.parameters()).dtype).removeprefix("torch.")
    check_base(module.model, build_model(named, None, dtype, None))
    write_adapter(module.model, module.lora, named, folder, card)
    return source


def _base_of(source: TunedCheckpoint, module: MLLMModule) -> str | None:
    """Name or folder of the model that was tuned."""
    declared = source.config.get("model")
    settings = declared.get("init_args") if isinstance(declared, dict) else None
    named = (settings or {}).get("model") or (source.content.get("hyper_parameters") or {}).get("model")
    return named if isinstance(named, str) else None
