"""The loss of an optimizer step is the mean over its answer tokens, however they are spread over batches and ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from hpa_lightning.modules.fsdp import local_tensor

_IGNORED = -100


def answer_tokens(labels: Tensor) -> Tensor:
    """Return how many tokens a causal language model's loss counts, 0-dim int64.

    Args:
        labels: ``(batch, tokens)``, -100 where no loss is taken. Nothing predicts the first token of a sequence.

    >>> answer_tokens(torch.tensor([[5, -100, 7, 8], [-100, -100, -100, 9]]))
    tensor(3)
    """
    return (labels[:, 1:] != _IGNORED).sum()


class TokenWeightedModule(L.LightningModule):
    """A LightningModule whose optimizer steps minimise the mean loss over all answer tokens that they saw.

    Lightning divides every batch's loss by ``accumulate_grad_batches`` and the ranks' gradients are averaged: a mean of
    means, in which a batch with an answer of 3 tokens counts as much as one with 33. Here each batch is weighted by its
    tokens in the backward pass and the gradients are divided by the number of tokens of the whole window over all
    ranks, once, after the window's last backward pass and before ``on_before_optimizer_step``. So callbacks, penalties
    on the gradient and clipping see the gradient of one large batch; the last window of an epoch, which may be shorter,
    too. One batch on one device is left alone, bit for bit. Losses are logged as they are.

    A training step has to return the mean loss over a batch's tokens and to give their number by
    :meth:`count_answer_tokens`, or over its pairs and their number by :meth:`count_pairs`; terms that it adds (router
    losses, say) are weighted like the batch. A step that gives none is Lightning's mean of means, and so is manual
    optimization, which says itself what a window is. DeepSpeed runs the backward pass itself, so under it the mean of
    means stays, with a warning. A subclass that overrides ``optimizer_step`` has to call ``super()``'s when gradients
    are accumulated.

    Source: ``num_items_in_batch`` of Hugging Face's Trainer has the same aim.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens: Tensor | None = None  # of the batch whose backward pass is next
        self._first_tokens: Tensor | None = None  # of the window's first batch, over all ranks
        self._window_tokens: Tensor | None = None  # of the window's batches so far, over all ranks
        self._window_step = 0  # the optimizer step that the window is for
        # Lightning tells so where `optimizer_step` is overridden; once for each step is what is wanted here.
        warnings.filterwarnings("ignore", message="When using `Trainer.accumulate_grad_batches != 1.` and overriding")

    def count_answer_tokens(self, labels: Tensor) -> None:
        """Tell, in ``training_step``, what the returned loss is the mean of: ``(batch, tokens)``, -100 = no loss."""
        self._tokens = answer_tokens(labels)

    def count_pairs(self, pairs: int) -> None:
        """Tell, in ``training_step``, that the returned loss is the mean over so many pairs (of any other unit)."""
        self._tokens = torch.tensor(pairs, device=self.device)

    def on_fit_start(self) -> None:
        self._tokens = self._first_tokens = self._window_tokens = None
        trainer = self.trainer
        if isinstance(trainer.strategy, DeepSpeedStrategy) and trainer.accumulate_grad_batches * trainer.world_size > 1:
            rank_zero_warn(
                f"{type(self).__name__} cannot weigh batches by their answer tokens under DeepSpeed, which runs the "
                "backward pass itself: a step is the mean of the batches' means. Use DDP or FSDP2."
            )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(self._weighted(loss), *args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step with the closure that ends with gradients over all the window's tokens."""

        def closure() -> Any:
            result = optimizer_closure() if optimizer_closure is not None else None
            self.finish_gradients_(optimizer)
            return result

        optimizer.step(closure=closure)

    @torch.no_grad()
    def finish_gradients_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of a whole window, the ranks' averaged, by its tokens; a window of one batch is done."""
        first, tokens = self._first_tokens, self._window_tokens
        self._first_tokens = self._window_tokens = None
        if first is None or tokens is None or first is tokens:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            torch._foreach_mul_([local_tensor(gradient) for gradient in gradients], first / tokens)  # of any dtype

    def _weighted(self, loss: Tensor) -> Tensor:
        """The loss, as Lightning divided it, in units of the mean over the window's first batch of all ranks.

        A batch of ``n`` tokens out of the first batches' ``N`` on ``world_size`` ranks counts
        ``world_size n / N``; averaging over ranks divides by ``world_size``.

        Raises:
            MisconfigurationException: an optimizer step was taken without :meth:`finish_gradients_`.
        """
        own, self._tokens = self._tokens, None
        if own is None or not self.automatic_optimization:
            return loss
        accumulate, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if accumulate == 1 and ranks == 1:
            return loss
        if accumulate == 1:
            self._first_tokens = self._window_tokens = None  # each batch is a window
        elif self._first_tokens is not None and self._window_step != self.trainer.global_step:
            raise MisconfigurationException(
                f"{type(self).__name__}.optimizer_step took a step whose gradients were not divided by its answer "
                "tokens. Call super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure) in it, not "
                "optimizer.step(closure=optimizer_closure)."
            )
        self._window_step = self.trainer.global_step
        together = self.trainer.strategy.reduce(own.clone(), reduce_op="sum")  # which is in place
        if self._first_tokens is None or self._window_tokens is None:
            self._first_tokens = self._window_tokens = together
        else:
            self._window_tokens = self._window_tokens + together
        return loss * (accumulate * ranks * own / self._first_tokens)
