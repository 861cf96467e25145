"""`hpa-lightning judge`: stored answers judged again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpa_lightning.cli.parser import CommandParser

_DESCRIPTION = """\
Judge the answers of an earlier run again. A judge is a name (default, refusal-v2, rules-v2, rules-v1, vlguard,
xstest-prefix), a JSON file of rules, or guard:FOLDER for a guard model. Results that name their judge "default" are of
an earlier version, and were scored by rules-v1. With several judges their agreement is shown."""


def parser() -> CommandParser:
    """Options of the command."""
    parser = CommandParser("judge", _DESCRIPTION)
    add = parser.add_argument
    add("run", type=Path, help="folder of a run: results.jsonl and predictions/")
    add("--judges", type=str, nargs="+", default=["default"], help="default: the judge named default")
    add("--sets", type=str, nargs="+", help="evaluation sets (default: the safety and over-refusal sets)")
    add("--unfinished", action="store_true", help="judge a run that is not finished, as far as it is")
    add("--output", type=Path, help="write the run with the first judge's scores to this folder")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Judge stored answers, print the rates and what the judges agree on."""
    options = parser().parse_args(arguments)
    from hpa_lightning.judging import agreements, judge_run, mostly_silent, rates_table, write_judged
    from hpa_lightning.metrics.judges import judge_name, partial_refusals, resolve_judge
    from hpa_lightning.results.completeness import require_finished
    from hpa_lightning.results.run_results import RunResults

    if not options.unfinished:
        require_finished([RunResults.from_file(options.run)])
    judges = [resolve_judge(name) for name in options.judges]
    answers, verdicts = judge_run(options.run, judges, options.sets)
    print(rates_table(options.run, answers, verdicts).text())
    if silent := mostly_silent(answers):
        print(f"\nWarning: {silent}")
    for judge in judges:
        if partial := sum(sum(partial_refusals(judge, [row["response"] for row in item.rows])) for item in answers):
            total = sum(len(item.rows) for item in answers)
            print(f"\n{judge_name(judge)}: {partial} of {total} answers are partial refusals, counted as not refused.")
    for pair in agreements(verdicts):
        print(f"\n{pair}")
    if options.output is not None:
        write_judged(options.run, options.output, answers, verdicts, judges[0])
        print(f"\n{options.output}: the run as {judge_name(judges[0])} judges it")
