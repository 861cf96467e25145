"""What `hpa-lightning benchmark build smol` writes, in miniature and without a model."""

from pathlib import Path

from hpa_lightning.smol.benchmark_build import description
from hpa_lightning.smol.drawn_pictures import typeset_request
from hpa_lightning.smol.record_rows import prompt_row, question_row, training_row, write_lines, write_rows
from hpa_lightning.smol.request_forms import FORMS, RequestForms


def write_smol(place: Path) -> Path:
    """Write the folder: two tasks of 40 samples and 10 questions, 12 requests of each kind."""
    (place / "pictures").mkdir(parents=True)
    for number in range(50):
        typeset_request(f"picture {number}").resize((32, 32)).save(place / "pictures" / f"{number}.png")
    for task in ("words", "digits"):
        made = [(f"{task}-{n}", f"What is it, {task}?", "a cat", f"pictures/{n}.png") for n in range(50)]
        write_rows(place / "tasks" / task / "train.json", [training_row(*one) for one in made[:40]])
        write_rows(place / "tasks" / task / "test.json", [question_row(*one) for one in made[40:]])
    forms = RequestForms(["pictures/0.png"], Path("pictures"))
    for kind in ("harmful", "harmless"):
        for form in FORMS:
            records = [forms.record(form, str(n), f"How do I {kind} {n}?") for n in range(12)]
            rows = [{**prompt_row(record, str), "source": "AdvBench"} for record in records]
            write_lines(place / "safety" / f"{kind}-{form}.jsonl", rows)
    write_lines(place / "safety/calibration.jsonl", [{"id": n, "prompt": f"Harm {n}", "image": None} for n in range(9)])
    for name in ("ordinary", "injected", "refused"):
        rows = [training_row(f"{name}-{n}", f"{name} {n}?", "I cannot help with that.") for n in range(130)]
        write_rows(place / "safety" / f"{name}.json", rows)
    (place / "smol.yaml").write_text(description(["digits", "words"]))
    return place
