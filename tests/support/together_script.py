"""Run by test_processes.py: two processes do one after the other what several scripts ask of them.

Starting them takes longer than most of it. together_script.py FOLDER STRATEGY     STRATEGY: ddp, fsdp
"""

from __future__ import annotations

import sys
from pathlib import Path

from support import boundaries_script, evaluation_script, processes_script
from support.method_registry import TUNING_IDS
from support.programs import report_fatal_signals


def main(folder: Path, name: str) -> None:
    for part in ("methods", "evaluation", "boundaries"):
        (folder / part).mkdir(exist_ok=True)
    processes_script.main(folder / "methods", name, TUNING_IDS)
    evaluation_script.main(folder / "evaluation", name)
    boundaries_script.main(folder / "boundaries", name)  # it ends with an error on both


if __name__ == "__main__":
    report_fatal_signals()
    main(Path(sys.argv[1]), sys.argv[2])
