"""How to sum `X^T X` of half-precision rows on a device: the error and the rate of several ways.

    python benchmarks/sums.py

Tensor cores add in float32 and may cut off in place of rounding, so that long sums drift; moving sums on in float64
every few rows costs memory traffic, 24 bytes for each pair of columns. The error is that of [H^-1]_jj, as a multiple of
the column's variance inflation H_jj [H^-1]_jj, at damping 0.01; the package promises about 1e-6 of it. `in place` adds
each product to the float32 sum inside the matrix product (`torch.addmm` with `out_dtype`, CUDA alone) and never moves
on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from machine import best_seconds, command, commit, default_dtype, device_name
from torch import Tensor

from hpa_lightning.functional.numerics.matrix_products import product_of_rows


def moved_on(rows: Tensor, chunk: int) -> Tensor:
    """Products of ``chunk`` rows in float32, summed in float64."""
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in rows.split(chunk):
        gram += product_of_rows(part.T.contiguous() if part.device.type == "cpu" else part.T, part.T)
    return gram


def in_place(rows: Tensor, chunk: int) -> Tensor:
    """Products of ``chunk`` rows added to a float32 sum as they are made."""
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float32, device=rows.device)
    for part in rows.split(chunk):
        torch.ops.aten.addmm.dtype_out(gram, part.T, part, torch.float32, out=gram)
    return gram


def correlated(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Rows like a language model's: a few large columns, half of the variance in a sixteenth of the directions."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    shared = normal(rows, columns // 16) @ normal(columns // 16, columns) / (columns // 16) ** 0.5
    result = shared + normal(rows, columns) + 0.1
    result[:, : columns // 256 + 1] *= 30.0
    return result.to(dtype)


def inverse_diagonal(gram: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """diag(H^-1) and diag(H) of the damped Hessian, float64, by a general inverse."""
    hessian = gram.double() * (2.0 / rows)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    diagonal = hessian.diagonal().clone()
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian)).diagonal(), diagonal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=32768)
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = correlated(options.rows, options.columns, device, getattr(torch, default_dtype(options.device)))
    exact, diagonal = inverse_diagonal(
        sum((part.double().T @ part.double() for part in rows.split(4096)), torch.zeros((), device=device).double()),
        options.rows,
    )
    inflation = diagonal * exact
    chunks = [chunk for chunk in (256, 1024, 4096, 16384) if chunk <= options.rows]
    ways: list[tuple[str, Callable[[Tensor, int], Tensor]]] = [("moved on in float64", moved_on)]
    if device.type == "cuda" and "dtype_out" in torch.ops.aten.addmm.overloads():
        ways.append(("in place", in_place))
    print(f"\n{device_name(device)}, {rows.dtype}, commit {commit()}\n{command()}\n")
    print("| sum | rows of a product | error / inflation | operations/s |\n|---|---|---|---|")
    for name, way in ways:
        for chunk in chunks:
            found, _ = inverse_diagonal(way(rows, chunk), options.rows)
            error = float(((found / exact - 1).abs() / inflation).max())
            seconds = best_seconds(lambda way=way, chunk=chunk: way(rows, chunk), device, repeats=3)
            rate = 2 * options.rows * options.columns**2 / seconds
            print(f"| {name} | {chunk} | {error:.1e} | {rate / 1e9:.0f} G |", flush=True)


if __name__ == "__main__":
    main()
