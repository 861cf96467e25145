"""Run by test_processes.py in one and in two processes: the stream with TaskEvaluation, and the export at its end.

evaluation_script.py FOLDER STRATEGY     STRATEGY: one, ddp, fsdp
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from support.multimodal_fits import method, module, stream, trainer
from support.processes_script import strategy
from support.programs import report_fatal_signals

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.modules.save_pretrained import merged_state_dict


def main(folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    data = stream(evaluated=True)
    data.eval_batch_size = 1  # three batches a set: one process gets two of them, the other one
    partition = method("in_training")[0]  # on its own it changes nothing; its probe takes two steps
    callbacks = [SequentialTuning(), partition, TaskEvaluation()]
    fit = trainer(folder, callbacks, devices=1 if name == "one" else 2, strategy=strategy(name))
    tuned, answered, trained_on = module(), [], []
    step = tuned.training_step

    def training_step(batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if torch.is_grad_enabled():  # neither evaluation nor calibration
            trained_on.append(batch["input_ids"].tolist())
        return step(batch, batch_idx)

    tuned.training_step = training_step
    generate = tuned.generate
    tuned.generate = lambda batch, **options: answered.append(len(batch["ids"])) or generate(batch, **options)
    fit.fit(tuned, data)
    (folder / f"answered{fit.global_rank}").write_text(str(sum(answered)))
    torch.save(trained_on, folder / f"batches{fit.global_rank}.pt")
    tuned.export(folder / "exported")
    trained = merged_state_dict(tuned.model)
    scores = fit.test(tuned, data, verbose=False) if name != "fsdp" else None
    if fit.is_global_zero:
        torch.save(scores, folder / "scores.pt")
        torch.save(trained, folder / "trained.pt")


if __name__ == "__main__":
    report_fatal_signals()
    main(Path(sys.argv[1]), sys.argv[2])
