"""A callback of somebody's that raises an error, in every hook: is anything lost?

    python benchmarks/reliability/hooks.py                                 every hook, some minutes
    python benchmarks/reliability/hooks.py --hooks on_train_end --times 1

A tiny LLaVA is tuned on two tasks with HPA, a checkpoint after every step. The callback raises when its hook is called
the first, second or third time, and stands before or behind the others. The same fit is then continued, without it,
from its newest checkpoint, or begun anew where there is none; its weights and events, times apart, are compared with
those of a fit that was never cut. Ends with 1 if one differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import lightning as L  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from machine import command, commit  # noqa: E402
from support.resumed_streams import method, plain, write_stream  # noqa: E402
from support.tiny_mllms import tiny_llava  # noqa: E402

from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation  # noqa: E402
from hpa_lightning.checkpoints import newest_checkpoint  # noqa: E402
from hpa_lightning.modules import LoraSettings, MLLMModule  # noqa: E402
from hpa_lightning.results.result_file import read_results  # noqa: E402

HOOKS = (
    "setup", "on_fit_start", "on_sanity_check_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start",
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end",
    "on_train_epoch_end", "on_save_checkpoint", "state_dict", "on_train_end", "on_fit_end", "teardown", "on_exception",
    "on_load_checkpoint",
)  # fmt: skip


class Mistake(RuntimeError):
    """Somebody's."""


def failing(hook: str, number: int) -> L.Callback:
    """A callback that raises when ``hook`` is called for the ``number``-th time."""
    calls = 0

    def fails(self: L.Callback, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Mistake(hook)
        return {} if hook == "state_dict" else None

    kind: type[L.Callback] = type("Failing", (L.Callback,), {hook: fails})
    return kind()


def fit(data: Path, folder: Path, before: list[L.Callback], behind: list[L.Callback], checkpoint: Any = None) -> str:
    """A digest of the weights after the fit."""
    torch.manual_seed(0)
    model, processor = tiny_llava(layers=2)
    module = MLLMModule.from_objects(model, processor, lora=LoraSettings(rank=2))
    saver = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    own = [SequentialTuning(), method(processor), TaskEvaluation(report=False), saver]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[*before, *own, *behind],
        default_root_dir=folder,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=plain(data), ckpt_path=checkpoint)
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in module.parameters())
    return hashlib.sha256(weights).hexdigest()


def events(folder: Path) -> list[dict[str, Any]]:
    """What the result file holds, without times and resumes."""
    kept = [event for event in read_results(folder) if event["event"] not in ("time", "resume")]
    left_out = ("command", "commit", "started", "peak_memory")
    return [{key: value for key, value in event.items() if key not in left_out} for event in kept]


def main() -> int:
    """Run every case and print how many differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hooks", nargs="+", choices=HOOKS, default=HOOKS)
    parser.add_argument("--times", nargs="+", type=int, default=[1, 2, 3], help="at which of its calls a hook raises")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = raised = differ = 0
    with tempfile.TemporaryDirectory() as root:
        (data := Path(root) / "data").mkdir()
        write_stream(data)
        weights = fit(data, Path(root) / "uncut", [], [])
        expected = events(Path(root) / "uncut")
        for hook in options.hooks:
            for number in options.times:
                for is_first in (True, False):
                    folder = Path(root) / f"{hook}_{number}_{is_first}"
                    callback = [failing(hook, number)]
                    cases += 1
                    found = None
                    with contextlib.suppress(Mistake):
                        found = fit(data, folder, callback if is_first else [], [] if is_first else callback)
                    if found is None:
                        raised += 1
                        found = fit(data, folder, [], [], newest_checkpoint([folder])[0])
                    if found != weights or events(folder) != expected:
                        differ += 1
                        print(f"{hook}, call {number}, {'before' if is_first else 'behind'} the others: differs")
    print(f"{cases} fits of {len(options.hooks)} hooks, {raised} cut by the error: {differ} differ.")
    print(f"{command()}, commit {commit()}")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
