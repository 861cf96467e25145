"""Finding the decoder blocks of a language model inside any module."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

_LANGUAGE = ("language", "text", "llm")
_NOT_LANGUAGE = ("vision", "visual", "image", "video", "audio", "projector", "connector")


def find_decoder_blocks(root: nn.Module, path: str | None = None) -> tuple[str, list[nn.Module]]:
    """Return the qualified name and the decoder blocks of the language model inside ``root``.

    Args:
        root: any module, for example a LightningModule that holds a Hugging Face model.
        path: dotted name of the block list (``"model.language_model.layers"``). Without it the blocks are found
            through ``get_decoder()`` of the Hugging Face model inside ``root``, of several the first that is trained (a
            frozen reference may stand beside it); failing that, as the largest ``ModuleList`` of equal blocks outside
            vision, audio and projector parts.

    Returns:
        ``(name, blocks)``: the qualified name of the list inside ``root`` and its modules in order.

    Raises:
        ValueError: ``path`` names no list of modules, or no block list can be found; an encoder-decoder without a
            ``path``; or blocks whose layers are ``Conv1D``, as GPT-2's.
    """
    name, blocks = _find(root, path)
    if any(isinstance(module, Conv1D) for module in blocks[0].modules()):
        raise ValueError(
            f"the decoder blocks {name!r} consist of Conv1D, whose weights are transposed, as in GPT-2; expected "
            "linear layers (torch.nn.Linear), as in Llama, Qwen, Mistral or GPT-NeoX."
        )
    return name, blocks


def _find(root: nn.Module, path: str | None) -> tuple[str, list[nn.Module]]:
    if path is not None:
        try:
            blocks = root.get_submodule(path)
        except AttributeError:
            lists = [name for name, module in root.named_modules() if isinstance(module, nn.ModuleList)]
            raise ValueError(
                f"blocks={path!r} names no submodule of {type(root).__name__}; expected the dotted name of the list "
                f"of decoder blocks. The module lists it has: {lists or 'none'}."
            ) from None
        if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or len(blocks) == 0:
            raise ValueError(
                f"blocks={path!r} is a {type(blocks).__name__}; expected a non-empty ModuleList or Sequential."
            )
        return path, list(blocks)
    found = _from_hugging_face(root) or _largest_list(root)
    if found is None:
        raise ValueError(
            f"found no decoder blocks in {type(root).__name__}: no Hugging Face language model and no ModuleList of "
            "equal blocks with linear layers. Pass blocks='dotted.name.of.the.list'."
        )
    return found


def _is_perception(name: str) -> bool:
    parts = [part.lower() for part in name.split(".")]
    return any(
        any(word in part for word in _NOT_LANGUAGE) and not any(word in part for word in _LANGUAGE) for part in parts
    )


def _from_hugging_face(root: nn.Module) -> tuple[str, list[nn.Module]] | None:
    frozen = None
    for module in root.modules():
        if not callable(getattr(type(module), "get_decoder", None)):
            continue
        if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
            raise ValueError(
                f"{type(module).__name__} is an encoder-decoder, in which the answer does not continue the prompt; "
                "expected a decoder alone. Pass blocks='dotted.name.of.the.list' to treat one part of it on its own."
            )
        layers = getattr(module.get_decoder(), "layers", None)  # type: ignore[operator]
        if isinstance(layers, nn.ModuleList) and len(layers):
            for name, candidate in root.named_modules():
                if candidate is layers and not _is_perception(name):
                    if any(parameter.requires_grad for parameter in layers.parameters()):
                        return name, list(layers)
                    frozen = frozen or (name, list(layers))
    return frozen


def _largest_list(root: nn.Module) -> tuple[str, list[nn.Module]] | None:
    best: tuple[int, str, list[nn.Module]] | None = None
    for name, module in root.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        if _is_perception(name):
            continue
        if len({type(block) for block in module}) != 1:
            continue
        if not any(isinstance(inner, nn.Linear | Conv1D) for inner in module[0].modules()):
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        if best is None or size > best[0]:
            best = (size, name, list(module))
    return None if best is None else best[1:]
