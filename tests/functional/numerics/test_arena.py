"""Tensors that are kept while many others come and go."""

from __future__ import annotations

import torch

from hpa_lightning.functional.numerics.arena import Arena


def test_copies_are_contiguous_equal_and_apart() -> None:
    arena = Arena()
    sources = [torch.randn(3, 5, 7).transpose(1, 2), torch.randn(2, 1), torch.randn(0, 4)]
    copies = [arena.keep(source) for source in sources]
    wanted = [source.clone() for source in sources]
    for source in sources:
        source.zero_()
    copies[1].add_(0.0)
    for copy, want in zip(copies, wanted, strict=True):
        assert torch.equal(copy, want)
        assert copy.is_contiguous()
    copies[0].fill_(9.0)
    assert torch.equal(copies[1], wanted[1])


def test_one_piece_until_it_is_full() -> None:
    arena = Arena(entries=256)
    first, second, third = (arena.keep(torch.ones(100)) for _ in range(3))
    pieces = [copy.untyped_storage().data_ptr() for copy in (first, second, third)]
    assert pieces[0] == pieces[1] != pieces[2]
    assert first.untyped_storage().nbytes() == 4 * 256
    assert arena.keep(torch.ones(1000)).sum() == 1000  # larger than a piece


def test_another_dtype_or_inference_mode_takes_another_piece() -> None:
    arena = Arena(entries=1024)
    single = arena.keep(torch.ones(4))
    double = arena.keep(torch.ones(4, dtype=torch.float64))
    with torch.inference_mode():
        inside = arena.keep(torch.ones(4))
    outside = arena.keep(torch.ones(4))
    assert [copy.dtype for copy in (single, double, inside)] == [torch.float32, torch.float64, torch.float32]
    assert inside.is_inference()
    assert not outside.is_inference()
    outside.add_(1.0)
    assert inside.sum() == 4
