"""A built folder of `smol` in miniature with what its stages are made of."""

from pathlib import Path

from support.smol_folders import write_smol

from hpa_lightning.smol.record_rows import question_row, training_row, write_rows
from hpa_lightning.smol.request_forms import FORMS


def write_smol_stages(place: Path) -> Path:
    """Write the folder: sentences about pictures 0 to 29, tests of pictures 40 to 49, ten requests to align."""
    write_smol(place)
    answers = {"digits": "digit = {}", "words": "It reads word{}"}
    for task, answer in answers.items():
        asked = [question_row(f"{task}-{n}", "What?", answer.format(n), f"pictures/{n}.png") for n in range(40, 50)]
        write_rows(place / "tasks" / task / "test.json", asked)
    told = [training_row(f"stages-digits-{n}", "What?", f"Digit {n}.", f"pictures/{n}.png") for n in range(30)]
    write_rows(place / "tasks" / "digits" / "stages.json", told)
    write_rows(place / "tasks" / "words" / "stages.json", [])
    aligned = [
        training_row(f"{kind}-{n}-{form}", f"How {n}?", "Well.", None if form == "text" else f"pictures/{n}.png")
        for kind in ("align", "ordinary")
        for n in range(10)
        for form in FORMS[:2]
    ]
    write_rows(place / "safety" / "alignment.json", aligned)
    return place
