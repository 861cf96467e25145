"""No secret of a command line is written down."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from hpa_lightning.command_results import _weights
from hpa_lightning.redaction import masked_arguments, masked_command, masked_values
from hpa_lightning.report.run_page import render_page
from hpa_lightning.results.run_results import RunResults, run_origin


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.logger.init_args.api_key=S3CR3T"],
        ["--trainer.logger.init_args.api_key", "S3CR3T"],
        ["--model.init_args.hub-token", "S3CR3T"],
        ["--aws.secret_access_key=S3CR3T"],
        ["--password", "S3CR3T"],
        ["--x.apiKey", "S3CR3T"],
        ["--key=S3CR3T"],
        ["--data", "https://me:S3CR3T@host/set.json"],
        ["--data", "s3://S3CR3T@bucket/x"],
        ["--data=https://host/x?a=1&token=S3CR3T&b=2"],
        ["--trainer.logger", '{"class_path": "WandbLogger", "init_args": {"api_key": "S3CR3T"}}'],
        ["--trainer.logger", "{init_args: {api_key: S3CR3T}}"],
        ["--note", "hf_S3CR3TS3CR3TS3CR3TS3CR3T"],
        ["--note", "ghp_S3CR3TS3CR3TS3CR3TS3CR3TS3CR3TS3CR3T"],
    ],
)
def test_secrets_are_masked(arguments: list[str]) -> None:
    masked = masked_arguments(arguments)
    assert "S3CR3T" not in str(masked) and "MASKED" in str(masked) and len(masked) == len(arguments)
    assert masked[0].split("=")[0] == arguments[0].split("=")[0]
    assert "S3CR3T" not in masked_command(" ".join(["hpa-lightning", "fit", *arguments]))


def test_what_is_no_secret_stays() -> None:
    arguments = [
        *(
            "fit",
            "--config",
            "examples/nano_hpa.yaml",
            "--seed_everything=101",
            "--data.init_args.max_new_tokens",
            "16",
        ),
        *("--model.init_args.tokenizer=a/b", "--trainer.callbacks+=SafetyGate", "--data=/a/b@c.json", "--monkey", "3"),
        *("--trainer.monitor", "evaluation/key_words", "--model=https://host/model", "--trainer.max_steps=-1"),
    ]
    assert masked_arguments(arguments) == arguments
    assert masked_command(" ".join(arguments)) == " ".join(arguments)


def test_nested_values() -> None:
    node = {"set": [{"api_key": "S3CR3T", "path": "https://u:S3CR3T@host/a"}], "n": 3, "rate": 0.5, "none": None}
    assert masked_values(node) == {
        "set": [{"api_key": "MASKED", "path": "https://MASKED@host/a"}],
        "n": 3,
        "rate": 0.5,
        "none": None,
    }


def test_neither_results_nor_pages_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of older files too, which have the command as it was given."""
    arguments = ["fit", "--trainer.logger.init_args.api_key", "S3CR3T", "--data=s3://me:S3CR3T@bucket/x"]
    monkeypatch.setattr(sys, "argv", ["/bin/hpa-lightning", *arguments])
    command = run_origin(torch.device("cpu"), "32-true")["command"]
    assert "S3CR3T" not in command and command.count("MASKED") == 2
    run = {"event": "run", "method": "m", "seed": 0, "tasks": ["a"], "sets": [{"name": "a", "kind": "task"}]}
    score = {"event": "score", "step": 0, "set": "a", "kind": "task", "metric": "m", "score": 0.5}
    old = RunResults([{**run, "command": " ".join(["hpa-lightning", *arguments])}, score])
    page = render_page([old], {})
    assert "S3CR3T" not in page and page.count("MASKED") == 2
    tested = _weights(SimpleNamespace(ckpt_path="https://me:S3CR3T@host/last.ckpt"))  # type: ignore[arg-type]
    assert tested == "the checkpoint https://MASKED@host/last.ckpt"
