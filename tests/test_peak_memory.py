"""The most memory that a process has held is told in bytes, and a run's end says it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.multimodal_fits import module, stream, trainer

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.results.events import EndEvent
from hpa_lightning.results.run_results import RunResults

pytest.importorskip("resource", reason="Windows does not tell")


def test_what_is_held_counts_in_bytes() -> None:
    program = (
        "import torch\nfrom hpa_lightning.peak_memory import peak_memory\ncpu = torch.device('cpu')\n"
        "before = peak_memory(cpu)\nheld = torch.ones(400_000_000, dtype=torch.uint8)\nprint(peak_memory(cpu) - before)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0.9 * 4e8 < int(found.stdout) < 1.5 * 4e8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_what_was_allocated_there() -> None:
    from hpa_lightning.peak_memory import peak_memory

    device = torch.device("cuda")
    before = peak_memory(device)
    held = torch.ones(800_000_000, dtype=torch.uint8, device=device)
    assert before is not None and (peak_memory(device) or 0) >= len(held)


def test_the_end_of_a_run_says_it(tmp_path: Path) -> None:
    callbacks = [SequentialTuning(), TaskEvaluation(initial=False, report=False)]
    trainer(tmp_path, callbacks).fit(module(), stream(evaluated=True))
    (end,) = RunResults.from_file(tmp_path).events(EndEvent)
    assert end.peak_memory is not None and 1e8 < end.peak_memory < 1e12
