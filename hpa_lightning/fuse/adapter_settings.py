"""Which settings of peft's LoRA adapters mean plain ``W + scaling * B @ A``, and which do not.

Every field of ``peft.LoraConfig`` is in one of the three groups; a test compares them with the installed peft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpa_lightning.values import cut, shown

# Read by `AdaptedCheckpoint`.
HANDLED = frozenset({"peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights"})

# Where the layers are, how they began and how they were trained: the saved tensors say what came of it. The
# configurations of an initialisation are read with that `init_lora_weights` alone, which decides.
HARMLESS = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "rank_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "lora_dropout",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "runtime_config",
        "ensure_weight_tying",  # tied weights that an adapter changes are refused by themselves
        "merge_weights",  # of peft before 0.3: whether eval() merged
    }
)

# Name of the setting -> what it means; plain LoRA where the value is empty.
MORE_THAN_LORA: Mapping[str, str] = {
    "use_dora": "DoRA, which scales the merged weight's columns",
    "use_qalora": "QA-LoRA, which pools the inputs",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA, which cuts the base weight and trains a diagonal between the factors",
    "monteclora_config": "MonteCLoRA, which samples around the factors",
    "velora_config": "VeLoRA, which keeps projections beside the factors",
    "arrow_config": "Arrow, which routes tokens between adapters",
    "alora_invocation_tokens": "activated LoRA, which is off until these tokens come and cannot be merged",
    "lora_bias": "a trained bias of the adapter",
    "bias": "trained biases of the base",
    "fan_in_fan_out": "weights stored as (in, out)",
    "modules_to_save": "modules trained whole",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on bare parameters",
    "layer_replication": "decoder blocks used several times",
    "megatron_config": "Megatron's parallel layers",
    "enable_lora": "LoRA on parts of a joined projection (peft before 0.3)",
}

_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
_LEAVES_BASE = ("gaussian", "eva", "orthogonal", "mica")


def check_plain_lora(settings: Mapping[str, Any], source: str) -> None:
    """Check that an adapter is ``W + scaling * B @ A`` on linear layers, and nothing else.

    Args:
        settings: the content of adapter_config.json.
        source: where they come from, for the error.

    Raises:
        ValueError: a setting that means more, or one that is not known here, by name.
    """
    if settings.get("peft_type") != "LORA":
        raise ValueError(
            f"{source} says peft_type {shown(settings.get('peft_type'))}; expected 'LORA'. Merge the adapter with the "
            "code that wrote it and pass the merged folder as --after."
        )
    for name in ("alpha_pattern", "rank_pattern"):
        if not isinstance(settings.get(name) or {}, Mapping):
            raise ValueError(f"{source} says {name}={shown(settings[name])}; expected an object.")
    found = [
        f"{name}={str(settings[name])[:60]} ({meaning})"
        for name, meaning in MORE_THAN_LORA.items()
        if settings.get(name) and settings[name] != "none"
    ]
    initialised = settings.get("init_lora_weights", True)
    if isinstance(initialised, str) and not initialised.lower().startswith(_LEAVES_BASE):
        changes = initialised.lower().startswith(_CHANGES_BASE)
        effect = "which changes the base" if changes else "an initialisation that is not known here"
        found.append(f"init_lora_weights={shown(initialised)}, {effect}")
    if found:
        raise ValueError(
            f"{source} says {'; '.join(found)}. Expected plain LoRA on linear layers: merge the adapter with peft "
            "(merge_and_unload, save_pretrained), where it can be merged, and pass the merged folder as --after."
        )
    alphas = {"lora_alpha": settings.get("lora_alpha", 8), **(settings.get("alpha_pattern") or {})}
    wrong = [
        f"{cut(name, 200)}={str(value)[:60]}" for name, value in alphas.items() if not isinstance(value, int | float)
    ]
    if wrong:
        raise ValueError(f"{source} says {wrong[0]}; expected a number.")
    unknown = sorted(settings.keys() - HANDLED - HARMLESS - MORE_THAN_LORA.keys())
    if unknown:
        listed = cut(", ".join(f"{cut(name, 100)}={str(settings[name])[:60]}" for name in unknown))
        version = cut(settings.get("peft_version", "not given"), 40)
        raise ValueError(
            f"{source} has settings that are not known here: {listed}. They may change what the adapter does. Merge it "
            f"with the peft that wrote it (version {version}) and pass the merged folder as --after, or delete a "
            "setting from the file if it is off."
        )
