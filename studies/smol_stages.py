"""Makes the weights that the benchmark `smol` ships: four stages, each an ordinary fit that continues when interrupted.

    hpa-lightning benchmark build smol --no-model --xstest FILE --output smol
    python studies/smol_stages.py --data smol --output smol-stages

A stage whose file is there is not made again. The files go to `hpa_lightning/smol/weights/`. Later stages start from
the files of the earlier ones, in the output folder or in the package, so that the model is what the files say.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from hpa_lightning.smol.inputs import find_input
from hpa_lightning.smol.stage_weights import BEFORE, STAGES
from hpa_lightning.smol.stages import run_stage


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of `hpa-lightning benchmark build smol`")
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, checkpoints and answers")
    parser.add_argument(
        "--stages", nargs="+", choices=list(BEFORE), default=list(STAGES), help="in their order; all but the variant"
    )
    parser.add_argument("--tower", choices=("efficientnet", "dino"), default="efficientnet")
    parser.add_argument("--language", choices=("smollm2", "gemma"), default="smollm2")
    parser.add_argument("--wheels", type=Path, help="folder with packages that were downloaded already")
    parser.add_argument("--sets", type=int, default=60, help="requests of each set that is measured")
    arguments = parser.parse_args()
    find = partial(find_input, cache=arguments.data / "inputs", given=arguments.wheels)
    for stage in sorted(arguments.stages, key=list(BEFORE).index):
        found = run_stage(
            stage, arguments.data, find, arguments.output, arguments.tower, arguments.sets, arguments.language
        )
        print(stage, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
