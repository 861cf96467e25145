"""What the public code of Safe Delta and of Model Tailor returns for the same tensors, as stored numbers."""

from __future__ import annotations

import torch

from hpa_lightning.functional import model_tailor, safe_delta, surgeon_factor
from hpa_lightning.functional.numerics.inverse_diagonal import damp_
from hpa_lightning.functional.numerics.packed_triangle import PackedTriangle


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Old and new weight `(6, 16)` and the factor of 40 inputs, in closed form."""
    i, j = torch.arange(6.0).unsqueeze(1), torch.arange(16.0).unsqueeze(0)
    old = torch.sin(1.3 * i + 2.1 * j * j + 0.7)
    new = old + 0.3 * torch.cos(0.9 * i * j + 1.7 * i + 0.4)
    n = torch.arange(40.0).unsqueeze(1)
    inputs = (torch.sin(0.37 * n * (j + 1) + j) + 0.5 * torch.cos(1.1 * n)) * (1 + 0.2 * j)
    gram = PackedTriangle(16, inputs.device)
    gram.add_rows_(inputs, 0.0)
    return old, new, surgeon_factor(damp_(gram, 40, 0.01).dense())


def table(numbers: str) -> torch.Tensor:
    return torch.tensor([float(number) for number in numbers.split()]).view(6, 16)


# llava/train/sparsegpt.py of didizhu-zju/Model-Tailor (e24dafec), sparsity 0.9, blocks of 8 columns.
MODEL_TAILOR = table(
    """
    0.64422 0.33499 0.3191 0.68196 0.25468 0.2056 0.78443 0.0725
    -0.01151 0.9604 -0.21168 -0.32496 0.99797 -0.56467 -0.68263 0.9248
    0.9093 -1.12342 -0.82783 0.88716 -0.86366 -0.88798 0.80745 -0.94163
    -0.96657 0.63469 -0.99835 -0.99819 0.32829 -0.94629 -0.88674 -0.11919
    -0.15775 -0.77276 -0.76198 -0.20734 -0.71674 -0.68066 -0.35244 -0.57627
    -0.5056 -0.57483 -0.77537 -0.20905 -0.82235 0.05842 0.20823 -0.98858
    -0.99369 0.40485 0.42017 -0.99808 0.48021 0.81224 -1.29104 0.63332
    0.69607 -0.94222 0.82584 0.88634 -0.76824 0.97754 0.99814 -0.40968
    -0.37388 0.98936 0.98677 -0.32664 0.97365 1.25545 -0.18042 0.9151
    0.87801 0.07074 0.76426 0.68324 0.41135 0.46456 0.32577 0.76941
    0.79367 0.12445 0.10775 0.82333 0.04069 -0.00974 0.89948 -0.14375
    -0.22634 0.98007 -0.41697 -0.52081 1.37676 -0.72899 -1.14762 0.8213
    """
)

# llama2/safedelta/safedelta_runner.py of ColinLu50/SafeDelta (3a4ea357), s = 450, blocks of 8 columns. Its sort leaves
# open in which order the equal entries of one column are accepted; it was made stable here.
SAFE_DELTA = table(
    """
    0.92054 0.61131 0.59542 0.68196 0.24501 0.189 0.76955 0.06105
    0.26481 1.1907 -0.21825 -0.33696 0.94895 -0.73432 -0.82765 0.81741
    0.75784 -1.11527 -1.04561 0.88716 -0.856 -0.8761 0.81957 -0.93318
    -1.26424 0.42041 -0.99206 -0.98905 0.37297 -0.80329 -0.74373 -0.04246
    -0.39504 -0.54009 -0.63042 -0.20734 -0.71996 -0.68139 -0.3578 -0.57916
    -0.2667 -0.45241 -0.33007 -0.21298 -0.85233 -0.0329 0.10287 -0.97096
    -0.78109 0.3031 0.39154 -0.99808 0.48033 0.52086 -0.99551 0.63282
    0.58022 -0.95576 0.8295 0.88642 -0.75813 1.00289 1.03956 -0.44304
    -0.19137 0.93106 0.90883 -0.32664 0.97498 0.9604 -0.1785 0.91669
    0.83962 -0.0265 0.76885 0.68536 0.42237 0.50886 0.35903 0.74465
    0.53404 0.32611 0.28237 0.82333 0.03664 -0.01166 0.89319 -0.14814
    -0.04405 1.17455 -0.42597 -0.52628 0.95695 -0.8379 -0.92485 0.84076
    """
)


def test_model_tailor_with_the_options_of_the_public_code() -> None:
    old, new, factor = tensors()
    kept = 100 * (48 - int(48 * 0.9) - 1) / 48  # its threshold is the first returned entry's score
    options = {"mix": 0.8, "block_size": 8, "scores_after_compensation": True, "compensation": -1.0}
    found, mask = model_tailor(old, new, factor, kept, **options)
    torch.testing.assert_close(found, MODEL_TAILOR, rtol=0, atol=2e-5)
    assert int(mask.sum()) == 8
    for other in ({"mix": 0.5}, {"scores_after_compensation": False}, {"compensation": 1.0}):
        changed, _ = model_tailor(old, new, factor, kept, **(options | other))
        assert float((changed - MODEL_TAILOR).abs().max()) > 1e-2, other


def test_safe_delta_with_the_options_of_the_public_code() -> None:
    old, new, factor = tensors()
    options = {"budget": 450.0, "block_size": 8, "columns_at_once": 4, "costs_after_compensation": True}
    found, accepted = safe_delta(old, new, factor, **options)
    torch.testing.assert_close(found, SAFE_DELTA, rtol=0, atol=2e-5)
    assert 0 < int(accepted.sum()) < accepted.numel()
    for other in ({"columns_at_once": 1}, {"costs_after_compensation": False}):
        changed, _ = safe_delta(old, new, factor, **(options | other))
        assert float((changed - SAFE_DELTA).abs().max()) > 1e-3, other
