"""A digest of all that decides what a model answers; what cannot be told is an error, and is never left out."""

from __future__ import annotations

import hashlib
import pickle
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.modules import module as _global
from torch.utils.hooks import RemovableHandle
from transformers import GenerationConfig, PreTrainedConfig

import hpa_lightning

_BEGUN = time.time()
_NOT_OF_ANSWERS = frozenset({*vars(nn.Module()), "peft_config"})
"""Attributes of every module, which are told by themselves, and what adapters were made from."""
#: Attributes of a LightningModule that train it, or are told by themselves.
_OF_TRAINING = frozenset(
    {"lora", "lr_scheduler_interval", "make_lr_scheduler", "make_optimizer", "osf", "processor", "scored"}
)
_LIBRARIES = frozenset({"peft", "torch", "transformers"})
"""What their forward hooks do follows from the versions, the configuration and the weights."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


class UntoldError(ValueError):
    """Something that may decide an answer has no content that could be told."""


class FactsDigest:
    """Facts that are told one after the other; two digests are equal if all of them are, in their order.

    Values count by their content and type, never by an address or by what an object calls itself.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._inside: list[int] = []  # objects that are being told, so that a circle ends

    def tell(self, *facts: Any) -> None:
        """Tell values: plain ones, tensors, arrays, and mappings, sequences and dataclasses of them; else pickled.

        Raises:
            UntoldError: one that has no content of its own, such as a function inside another one.
        """
        for fact in facts:
            self._value(fact)

    def tell_module(self, module: nn.Module) -> None:
        """Tell weights, buffers, settings and attributes of a module and all modules in it, and where they stand.

        LoRA adapters that change nothing yet (B = 0) do not count. Of the outermost module private attributes, and
        those that train it, do not either.

        Raises:
            UntoldError: tensors that are more than their values (quantised, sparse, sharded, without data), forward
                hooks that no library has set, a ``forward`` of an instance, or an attribute without content.
        """
        if _global._global_forward_hooks or _global._global_forward_pre_hooks:
            raise UntoldError("forward hooks of all modules are set")
        idle = {id(part) for one in module.modules() if _is_idle(one) for part in _parts_of_adapter(one)}
        for name, one in module.named_modules():
            if id(one) not in idle:
                self._module(name.replace(".base_layer", ""), one, outermost=one is module)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if id(tensor) not in idle:
                self.tell(name.replace(".base_layer.", "."), tensor)

    def tell_code(self, objects: Iterable[object]) -> None:
        """Tell this package's code, the user's that is loaded, and the files that define the objects' classes.

        Raises:
            UntoldError: a class without a file, or a file that changed since it was loaded.
        """
        kinds = {kind for one in objects for kind in type(one).__mro__}
        files = {file for kind in kinds if (file := _file_of(kind)) is not None}
        self.tell(_package_digest())
        for path in sorted(files | set(_own_files())):
            self.tell(_file_digest(path))

    def hexdigest(self) -> str:
        """The digest of what has been told."""
        return self._digest.hexdigest()

    def _module(self, name: str, one: nn.Module, outermost: bool) -> None:
        hooks = (*one._forward_hooks.values(), *one._forward_pre_hooks.values())
        if foreign := [hook for hook in hooks if _module_of(hook).partition(".")[0] not in _LIBRARIES]:
            raise UntoldError(f"{type(one).__name__} has the forward hook {foreign[0]!r}")
        own = {key: value for key, value in vars(one).items() if key not in _NOT_OF_ANSWERS}
        if replaced := [key for key in ("forward", "generate") if key in own]:
            raise UntoldError(f"the {replaced[0]} of a {type(one).__name__} has been replaced")
        if outermost:
            own = {key: value for key, value in own.items() if key[:1] != "_" and key not in _OF_TRAINING}
        self.tell(name, type(one).__module__, type(one).__qualname__, own)

    def _value(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._bytes(type(value).__name__, repr(value).encode(errors="backslashreplace"))
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module | RemovableHandle):
            self._bytes("module", type(value).__qualname__.encode())  # one that stands in the tree tells itself there
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._bytes(f"array {value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes())
        elif id(value) in self._inside:
            self._bytes("circle", b"")
        else:
            self._inside.append(id(value))
            self._compound(value)
            self._inside.pop()

    def _compound(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self._many(f"mapping {len(value)}", (part for key in sorted(value, key=repr) for part in (key, value[key])))
        elif isinstance(value, AbstractSet):
            self._many(f"set {len(value)}", sorted(value, key=repr))
        elif isinstance(value, Sequence):
            self._many(f"{type(value).__name__} {len(value)}", value)
        elif isinstance(value, PreTrainedConfig | GenerationConfig):
            settings = {key: held for key, held in vars(value).items() if key != "_original_object_hash"}  # an address
            self._many(type(value).__qualname__, [settings])
        elif is_dataclass(value) and not isinstance(value, type):
            held = {one.name: getattr(value, one.name, None) for one in fields(value)}
            self._many(f"{type(value).__module__}.{type(value).__qualname__}", [held])
        else:
            self._bytes("pickled", _pickled(value))

    def _many(self, what: str, values: Iterable[Any]) -> None:
        self._bytes(what, b"")
        for value in values:
            self._value(value)

    def _tensor(self, tensor: Tensor) -> None:
        whole = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
        if not whole or tensor.is_meta or tensor.is_quantized:
            raise UntoldError(f"a {type(tensor).__name__}, {tensor.layout}, is not its values alone")
        values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
        self._bytes(f"tensor {tensor.dtype} {tuple(tensor.shape)}", values.numpy())

    def _bytes(self, what: str, content: Any) -> None:
        self._digest.update(f"{len(what)} {what} {len(content)} ".encode(errors="backslashreplace"))
        self._digest.update(content)


def _is_idle(one: nn.Module) -> bool:
    """Whether an adapter changes nothing yet."""
    if not isinstance(one, LoraLayer):
        return False
    factors = (*one.lora_B.parameters(), *one.lora_embedding_B.parameters())
    return bool(factors) and not any(bool(factor.any()) for factor in factors)


def _parts_of_adapter(one: Any) -> Iterator[nn.Module | Tensor]:
    """An adapter's layer and the modules in it, without the layer below it; its factors A and B."""
    yield one
    for name, child in one.named_children():
        if name != "base_layer":
            yield from child.modules()
    for factors in (one.lora_A, one.lora_B, one.lora_embedding_A, one.lora_embedding_B):
        yield from factors.parameters()


def _module_of(hook: Any) -> str:
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", None) or type(hook).__module__)


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=4)
    except Exception as error:  # of any kind: it is the user's object
        raise UntoldError(f"a {type(value).__name__} has no content that can be told ({error})") from error


def _file_of(kind: type) -> Path | None:
    """The file that a class stands in; ``None`` of one that is compiled into Python."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if file is None and kind.__module__ not in sys.builtin_module_names:
        raise UntoldError(f"{kind.__module__}.{kind.__qualname__} stands in no file")
    if file is None or (_is_installed(Path(file)) and not Path(file).is_file()):  # a name that a package made up
        return None
    return Path(file)


def _own_files() -> Iterator[Path]:
    """Files of loaded code that belongs neither to Python, nor to an installed package, nor to this one."""
    for module in list(sys.modules.values()):
        file = vars(module).get("__file__")  # not asked of modules that load themselves then
        if isinstance(file, str) and not _is_installed(Path(file)) and not _is_of_this_package(Path(file)):
            yield Path(file)


def _is_installed(file: Path) -> bool:
    """Whether it belongs to Python or an installed package, in whichever environment."""
    library = Path(sysconfig.get_paths()["stdlib"]).resolve()
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts) or file.resolve().is_relative_to(library)


def _is_of_this_package(file: Path) -> bool:
    return any(file.resolve().is_relative_to(folder) for folder in _package_folders())


def _package_folders() -> set[Path]:
    """``callbacks`` may lie beside the rest, as in an editable install."""
    return {Path(hpa_lightning.__file__).resolve().parent, Path(__file__).resolve().parent}


@cache
def _package_digest() -> str:
    """Of this package's code, and of what judges and readers have in files beside it."""
    told = FactsDigest()
    for folder in sorted(_package_folders(), key=lambda folder: folder.name):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".json", ".yaml"):
                told.tell(path.relative_to(folder).as_posix(), _file_digest(path))
    return told.hexdigest()


def _file_digest(path: Path) -> str:
    """Of a file's content, as it was when it was loaded."""
    try:
        if path.stat().st_mtime > _BEGUN:
            raise UntoldError(f"{path} has changed since this process began")
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:  # inside an archive
        raise UntoldError(f"{path} cannot be read") from error
