"""Folders of published benchmarks, laid out as they were released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.safety_files import write_image, write_json

UCIT = {
    "ImageNet-R": ("ImageNet-R", "train.json", "ImageNet-R/{split}/n01443537"),
    "ArxivQA": ("ArxivQA", "train_4w.json", "ArxivQA/images"),
    "VizWiz": ("VizWiz", "train.json", "VizWiz/{split}"),
    "IconQA": ("IconQA", "train.json", "IconQA/iconqa_data/iconqa/{split}/choose_txt/1"),
    "CLEVR-Math": ("CLEVR", "train_4w.json", "CLEVR/images/{split}"),
    "Flickr30k": ("Flickr30k", "train_brief_4w.json", "Flickr30k/{split}"),
}


def training(number: int, image: str | None, answer: str) -> dict[str, Any]:
    human = f"What is number {number}?" if image is None else f"<image>\nWhat is number {number}?"
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
    return {"id": str(number), **({"image": image} if image else {}), "conversations": turns}


def question(number: int, image: str | None, answer: str | None, **more: str) -> dict[str, Any]:
    row: dict[str, Any] = {"question_id": number, **({"image": image} if image else {}), "text": f"And {number}?"}
    return row | ({"answer": answer} if answer is not None else {}) | more


def write_ucit(folder: Path) -> None:
    for task, (name, train, images) in UCIT.items():
        captioned = task in ("VizWiz", "Flickr30k")
        answer, instructions = "a blue wall" if captioned else "B", folder / "instructions" / name
        paths = {
            split: [f"./{images.format(split=split)}/{split}{number}.png" for number in range(4)]
            for split in ("train", "test")
        }
        for seed, path in enumerate([*paths["train"], *paths["test"]]):
            write_image(folder / "datasets" / path, seed)
        write_json(instructions / train, [training(i, path, answer) for i, path in enumerate(paths["train"])])
        write_json(instructions / "test_3000.json", [question(i, path, answer) for i, path in enumerate(paths["test"])])
        if captioned:
            shown = [{"id": i, "file_name": Path(path).name} for i, path in enumerate(paths["test"], 1)]
            texts = [{"image_id": one["id"], "caption": f"wall {number}"} for one in shown for number in range(5)]
            write_json(instructions / "val_coco_type_3000.json", {"images": shown, "annotations": texts})


def write_mllm_dcl(folder: Path) -> None:
    for name in ("RS", "Med", "AD", "Sci", "Fin"):
        write_image(folder / name / "images" / "1.png")
        write_json(folder / name / "train.json", [training(i, "images/1.png", "yes") for i in range(4)])
        write_json(folder / name / "test.json", [question(i, "images/1.png", "yes") for i in range(3)])


def write_coin(folder: Path) -> None:
    pictures = {
        "ScienceQA": "ScienceQA/images/{split}/7/image.png",
        "TextVQA": "TextVQA/train_images/a1.jpg",
        "ImageNet": "ImageNet/{split}/n01440764/1.JPEG",
        "GQA": "GQA/images/1.jpg",
        "VizWiz": "VizWiz/{split}/1.jpg",
        "Grounding": "COCO2014/train2014/1.jpg",
        "VQAv2": "COCO2014/{split}2014/1.jpg",
        "OCRVQA": "OCR-VQA/images/1.jpg",
    }
    for name, path in pictures.items():
        test = "val" if name in ("TextVQA", "VizWiz", "VQAv2") else "test"
        for split in ("train", test):
            write_image(folder / path.format(split=split))
        root, answer = folder / "Instruction_Type1" / name, {"Grounding": "[0.1,0.2,0.3,0.4]"}.get(name, "A")
        write_json(root / "train.json", [training(i, f"./{path.format(split='train')}", answer) for i in range(4)])
        shown = f"./{path.format(split=test)}"
        rows = [question(i, shown, None if name == "TextVQA" else answer) for i in range(3)]
        if name == "Grounding":
            rows = [question(i, shown, None, answer_bbox=answer) for i in range(3)]
        if name == "ScienceQA":
            rows.append(question(9, None, answer))
        write_json(root / f"{test}.json", rows)
    data = [{"question_id": i, "question": "?", "image_id": "a1", "answers": ["one"] * 10} for i in range(3)]
    write_json(folder / "TextVQA/TextVQA_0.5.1_val.json", {"data": data})


def write_hpa(folder: Path) -> None:
    for write, name in ((write_ucit, "UCIT"), (write_mllm_dcl, "MLLM-CL"), (write_coin, "CoIN")):
        write(folder / name)


WRITERS = {"ucit": write_ucit, "mllm-dcl": write_mllm_dcl, "coin": write_coin, "hpa": write_hpa}
