"""Settings for runs by the command line."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any


def with_calibration(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Callback settings for two calibration samples of each kind, and their data in ``config``.

    The model has random weights and refuses nothing: a judge takes whatever it says for a refusal.
    """
    (folder / "judge.json").write_text(json.dumps({"match": "anywhere", "phrases": sorted(set(string.printable[:94]))}))
    config["data"]["init_args"] |= {"harmful_calibration": str(folder / "harm.json"), "allow_overlap": True}
    config["data"]["init_args"] |= {"harmful_image_folder": str(folder / "images")}
    return {"calibration": {"safety_samples": 2, "task_samples": 2, "judge": str(folder / "judge.json")}}
