"""How often every judge errs on completions that people labelled: the table of `docs/judges.md`.

    python benchmarks/judges.py --xstest xstest_completions_dev.csv --pyrit pyrit-1.1.0-py3-none-any.whl

`missed` is the share of full refusals to harmful prompts that a judge does not call refused, `false` the share of
compliant answers to harmless prompts that it does, both in percent; `partial` the share of partial refusals that it
calls refused; kappa Cohen's, of refused against a full refusal, over all completions, partial ones as not refused.
Since `refusal-v2` is trained on these completions, it is shown as it would do without: trained on other prompts
("new prompts"), and on other prompts and the other model ("new prompts and model"). The last columns are the answers
that PyRIT's authors labelled; refusals that answer another question and say no word of refusal are left out there and
counted below.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine import command, commit
from sklearn.metrics import cohen_kappa_score
from train_judge import (
    COMPLIANCE,
    FULL,
    PARTIAL,
    Example,
    cross_validated,
    read_pyrit,
    read_pyrit_weak,
    read_written,
    read_xstest,
)

from hpa_lightning.metrics.judges import StringRefusalJudge, resolve_judge
from hpa_lightning.metrics.judges.judged_text import opening
from hpa_lightning.metrics.judges.stance import cues_by_sentence, plainly_answers


def percent(refused: np.ndarray, chosen: np.ndarray, missed: bool = False) -> str:
    share = refused[chosen].mean() if chosen.any() else float("nan")
    return f"{100 * (1 - share if missed else share):.1f}"


def row(name: str, refused: Sequence[bool], examples: Sequence[Example], models: Sequence[str]) -> str:
    given, labels = np.array(refused, dtype=bool), np.array([example.label for example in examples])
    harmful = np.array([example.harmful is True for example in examples])
    source = np.array([example.source for example in examples])
    model = np.array([example.model for example in examples])
    cells = [name]
    for chosen in [*(model == one for one in models), source == "xstest"]:
        cells.append(percent(given, chosen & harmful & (labels == FULL), missed=True))
        cells.append(percent(given, chosen & ~harmful & (labels == COMPLIANCE)))
    xstest, pyrit = source == "xstest", source == "pyrit"
    cells.append(percent(given, xstest & (labels == PARTIAL)))
    cells.append(f"{cohen_kappa_score(labels[xstest] == FULL, given[xstest]):.3f}")
    cells += [percent(given, pyrit & (labels == FULL), missed=True), percent(given, pyrit & (labels == COMPLIANCE))]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xstest", type=Path, required=True, help="labelled completions of XSTest (CSV)")
    parser.add_argument("--pyrit", type=Path, required=True, help="wheel of pyrit 1.1.0, or a folder that holds pyrit/")
    parser.add_argument("--judges", nargs="+", default=["vlguard", "xstest-prefix", "rules-v1", "rules-v2"])
    options = parser.parse_args()
    xstest, pyrit = read_xstest(options.xstest), read_pyrit(options.pyrit)
    told = []
    for example in pyrit:
        parts = opening(example.text)
        if not (example.label == FULL and plainly_answers(parts, cues_by_sentence(parts))):
            told.append(example)
    examples, models = [*xstest, *told], sorted({example.model for example in xstest})
    texts = [example.text for example in examples]

    print(f"{command()} at {commit()}\n")
    heads = [f"{name}: {what}" for name in (*models, "both") for what in ("missed", "false")]
    print("| judge | " + " | ".join([*heads, "partial", "kappa", "PyRIT: missed", "PyRIT: false"]) + " |")
    print("|---|" + "---:|" * (len(heads) + 4))
    for name in options.judges:
        print(row(name, resolve_judge(name)(texts), examples, models))
    more = [*read_pyrit_weak(options.pyrit), *read_written()]
    for title, one_model in (("new prompts", False), ("new prompts and model", True)):
        judges = cross_validated([*examples, *more], one_model=one_model)[: len(examples)]
        verdicts = [judge.verdict(text) for judge, text in zip(judges, texts, strict=True)]
        print(row(f"refusal-v2, {title}", [verdict.refused for verdict in verdicts], examples, models))
        partial = np.array([verdict.value == "partial refusal" for verdict in verdicts])
        labels = np.array([example.label for example in examples])
        print(
            f"{title}: {partial[labels == PARTIAL].sum()} of {(labels == PARTIAL).sum()} partial refusals are told, "
            f"{partial[labels == FULL].sum()} of {(labels == FULL).sum()} full ones are taken for partial",
            file=sys.stderr,
        )
    start = time.process_time()
    StringRefusalJudge().verdicts([example.text for example in xstest])
    print(f"\nrefusal-v2 judges {len(xstest) / (time.process_time() - start):.0f} of these completions a second.")
    print(f"Left out of PyRIT's answers, since only the prompt shows that they refuse: {len(pyrit) - len(told)}.")


if __name__ == "__main__":
    main()
