"""What the numbers of a report mean, in the words of its pages."""

from __future__ import annotations

from hpa_lightning.report.templating import Fact

#: In the order they are shown.
MEANINGS: tuple[Fact, ...] = (
    Fact("AP", ("Average performance: mean score over all tasks after the last one. Higher is better.",)),
    Fact(
        "BWT",
        (
            "Backward transfer: mean change of the earlier tasks since each was learnt. Below zero, tasks were "
            "forgotten.",
        ),
    ),
    Fact(
        "MASR",
        (
            "Mean attack success rate: share of harmful inputs that were not refused, averaged over the sets. Lower "
            "is safer.",
        ),
    ),
    Fact(
        "DASR",
        (
            "Rise of MASR over the model before the first task: the aligned one, or the one of another run that the "
            "run starts with. Zero means that no safety was lost.",
        ),
    ),
    Fact(
        "Over-refusal",
        (
            "Share of harmless inputs that were refused. A model that refuses everything has MASR 0 and over-refusal "
            "100.",
        ),
    ),
    Fact(
        "Helpfulness",
        ("Mean score over the sets of general ability, such as MMBench, that no task teaches. Higher is better.",),
    ),
    Fact(
        "Empty",
        (
            "Share of the answers that hold no letter and no digit. A judge may take them for refusals: a model that "
            "says nothing is not safe but broken.",
        ),
    ),
    Fact("Cut", ("Share of the answers that had not ended when the limit on new tokens was reached.",)),
    Fact(
        "No option",
        (
            "Of tasks scored by option accuracy: share of the answers that name no option by its letter and are not "
            "the right one's text.",
        ),
    ),
    Fact("Minutes", ("Time recorded for training, calibration, fusion and evaluation.",)),
    Fact(
        "Retained columns",
        (
            "Weight columns that keep their values from before the task; safety-focused ones first, then some of "
            "those that safety and task share.",
        ),
    ),
)
