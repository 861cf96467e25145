"""Batches and loaders as users have them: of any structure, read once more without touching the training's own."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset


def children(batch: Any) -> list[tuple[str, Any]]:
    """The named parts of one level of a batch: of a mapping, a sequence, a dataclass, or an object with attributes."""
    if isinstance(batch, (Tensor, str, bytes, int, float)) or batch is None:
        return []
    if isinstance(batch, Mapping):
        return [(str(key), value) for key, value in batch.items()]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [(field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch)]
    if hasattr(batch, "_fields"):  # a named tuple
        return list(zip(batch._fields, batch, strict=True))
    if isinstance(batch, (list, tuple)):
        return [(str(index), value) for index, value in enumerate(batch)]
    return list(vars(batch).items()) if hasattr(batch, "__dict__") else []


def valid_positions(batch: Any) -> Tensor | tuple[Tensor, ...] | None:
    """Boolean ``(batch, tokens)``, True where no padding: the batch's ``attention_mask`` of that shape.

    A batch of several loaders holds several; all of them in their order then. ``None`` if there is none; masks of other
    shapes, which say what attends to what and not what is padding, are warned of.
    """
    masks = tuple(map(_unpadded, _tokenwise(batch, "attention_mask")))
    if not masks and (others := _named(batch, "attention_mask")):
        rank_zero_warn(
            f"a batch has an attention mask of shape {_shapes(others)}: it does not tell which positions are padding, "
            "and all count. Give one of shape (batch, tokens), 1 where there is no padding."
        )
    return None if not masks else masks[0] if len(masks) == 1 else masks


def answer_positions(batch: Any) -> Tensor | tuple[Tensor, ...]:
    """Boolean ``(batch, tokens)``, True where an answer's tokens are told from: one before each of the ``labels``.

    A label of -100 is none, as in transformers, and neither is one of padding or one that is told from padding: where
    the ``attention_mask`` is 0. Without one of that shape the labels alone decide. A batch of several loaders holds
    several; all of them in their order then. Labels that leave no token out are warned of, and masks ``(batch,
    tokens)`` of which there is not one of each labels' shape.

    Raises:
        ValueError: the batch holds no ``labels`` of that shape, or none that is told from a token.
    """
    labels = _tokenwise(batch, "labels")
    if not labels:
        raise ValueError(
            f"a batch of type {type(batch).__name__} holds no labels of shape (batch, tokens); expected them, -100 "
            "outside of the answers, as safety_positions='answers' asks for (null-space projection's default; "
            "calibration={'safety_samples': 128, 'safety_positions': 'all'} counts every position)."
        )
    valid = list(map(_unpadded, _tokenwise(batch, "attention_mask")))
    if [mask.shape for mask in valid] != [one.shape for one in labels]:
        if valid:
            rank_zero_warn(
                f"a batch has attention masks of shapes {_shapes(valid)} and labels of {_shapes(labels)}: no mask "
                "tells which of the labels are padding, and all that are not -100 count. Give one of the labels' shape."
            )
        valid = [torch.ones_like(one, dtype=torch.bool) for one in labels]
    masks, everything = [], True
    for one, mask in zip(labels, valid, strict=True):
        answered, told = one[:, 1:] != -100, mask[:, 1:] & mask[:, :-1]
        masks.append(torch.nn.functional.pad(answered & told, (0, 1)))
        everything &= bool((answered | ~told).all())
    if not any(bool(mask.any()) for mask in masks):
        raise ValueError(
            "no label of a batch is told from a token before it: all are -100, of padding, or of the first token; "
            "expected answers, since safety_positions='answers' is set."
        )
    if everything:
        rank_zero_warn(
            "safety_positions='answers', and the labels of a batch leave no token out: the prompts count as answers. "
            "Set their labels to -100."
        )
    return masks[0] if len(masks) == 1 else tuple(masks)


def _shapes(tensors: list[Tensor]) -> str:
    return " and ".join(str(tuple(one.shape)) for one in tensors)


def _unpadded(mask: Tensor) -> Tensor:
    """True where no padding: not 0, or 0 in a mask that is added to scores, of a floating type and nowhere above 0."""
    return mask == 0 if mask.is_floating_point() and not bool((mask > 0).any()) else mask.bool()


def _tokenwise(batch: Any, key: str) -> list[Tensor]:
    """All tensors ``(batch, tokens)`` of that name, in the batch's order."""
    return [tensor for tensor in _named(batch, key) if tensor.ndim == 2]


def _named(batch: Any, key: str) -> list[Tensor]:
    """All tensors of that name, in the batch's order."""
    found: list[Tensor] = []

    def collect(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            if name == key:
                found.append(value)
            return
        for inner, part in children(value):
            collect(inner, part)

    collect("", batch)
    return found


def batch_length(batch: Any) -> int:
    """Number of samples in a batch: the rows of its tokens, else the first dimension of its first tensor, or the length
    of its first list. (Pictures may come in patches, of all samples one behind the other.)

    Raises:
        ValueError: the batch holds neither.
    """
    for key in ("input_ids", "labels", "attention_mask"):
        if tokens := _tokenwise(batch, key):
            return int(tokens[0].shape[0])

    def of_tensors(value: Any) -> int | None:
        if isinstance(value, Tensor):
            return int(value.shape[0]) if value.ndim > 0 else None
        found = (of_tensors(part) for _, part in children(value))
        return next((length for length in found if length is not None), None)

    def of_lists(value: Any) -> int | None:
        parts = [part for _, part in children(value)]
        if isinstance(value, (list, tuple)) and parts and not any(children(part) for part in parts):
            return len(parts)
        return next((length for length in map(of_lists, parts) if length is not None), None)

    length = of_tensors(batch)
    length = of_lists(batch) if length is None else length
    if length is None:
        raise ValueError(
            f"cannot determine the number of samples in a batch of type {type(batch).__name__}; expected tensors or "
            "lists."
        )
    return length


def training_batches(trainer: L.Trainer) -> Iterable[Any]:
    """The batches of the trainer's own training loader, or of its structure of loaders, from the start.

    Raises:
        ValueError: the loader can be read only once, and training needs it.
    """
    combined: Any = getattr(trainer.fit_loop, "_combined_loader", None)
    return plain_loader(trainer.train_dataloader, getattr(combined, "_mode", "max_size_cycle"))


def plain_loader(loader: Any, mode: str = "max_size_cycle") -> Iterable[Any]:
    """A loader over the same data that shares no worker, iterator, generator or position with ``loader``.

    Args:
        loader: a loader, or a mapping or sequence of loaders, whose batches Lightning puts together.
        mode: how it does that (``CombinedLoader``).

    Raises:
        ValueError: a one-shot iterator, which would be used up.
    """
    if isinstance(loader, (Mapping, list, tuple)):
        return _Combined(loader, mode)
    if isinstance(loader, Iterator):
        raise ValueError(
            f"the training data are a {type(loader).__name__}, which can be read only once; expected a loader that "
            "starts again each time it is iterated, or task_data= to calibrate with."
        )
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, IterableDataset) and iter(dataset) is iter(dataset):
        raise ValueError(
            f"the training data are a {type(dataset).__name__} whose __iter__ returns the same iterator each time, so "
            "that they can be read only once; expected one that starts again each time, or task_data= to calibrate "
            "with."
        )
    if not isinstance(loader, DataLoader):
        return copy.copy(loader)  # its position, if it stores one, stays where it was
    if loader.batch_sampler is None:  # batch_size=None: each item is a batch
        sampler = None if isinstance(loader.dataset, IterableDataset) else _copied(loader.sampler)
        return DataLoader(loader.dataset, batch_size=None, sampler=sampler, collate_fn=loader.collate_fn)
    if isinstance(loader.dataset, IterableDataset):
        return DataLoader(loader.dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)
    return DataLoader(loader.dataset, batch_sampler=_copied(loader.batch_sampler), collate_fn=loader.collate_fn)


def run_training_step(pl_module: L.LightningModule, batch: Any, index: int = 0) -> Any:
    """Call ``training_step(batch)`` or ``training_step(batch, batch_idx)``, as the module has it."""
    parameters = inspect.signature(pl_module.training_step).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_index = len(names) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return pl_module.training_step(*((batch, index) if takes_index else (batch,)))


class _Combined:
    """The batches of several loaders, as the fit loop's ``CombinedLoader`` puts them together."""

    def __init__(self, loaders: Any, mode: str) -> None:
        self._loaders, self._mode = loaders, mode

    def __iter__(self) -> Iterator[Any]:
        def plain(loaders: Any) -> Any:
            if isinstance(loaders, Mapping):
                return {name: plain(inner) for name, inner in loaders.items()}
            if isinstance(loaders, (list, tuple)):
                return [plain(inner) for inner in loaders]
            return plain_loader(loaders)

        for batch, _, _ in CombinedLoader(plain(self._loaders), self._mode):  # type: ignore[arg-type]
            yield batch


def _copied(sampler: Any) -> Any:
    """A sampler that draws what ``sampler`` would draw next, and leaves its generator alone."""
    new = copy.copy(sampler)
    generator = getattr(new, "generator", None)
    if isinstance(generator, torch.Generator):
        new.generator = torch.Generator(generator.device)
        new.generator.set_state(generator.get_state())
    if getattr(new, "sampler", None) is not None:
        new.sampler = _copied(new.sampler)
    return new
