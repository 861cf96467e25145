"""Events in checkpoints: the same ones after packing, and little for a task."""

from __future__ import annotations

import io
from typing import Any

import torch

from hpa_lightning.callbacks.event_log import EventLog
from hpa_lightning.callbacks.task import TaskCallback


def retention(task: int, layers: int = 224) -> list[dict[str, Any]]:
    """The events that HarmoniousFusion records at a task's end."""
    draw = torch.Generator().manual_seed(task)
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return [
        {
            "event": "retention",
            "step": task,
            "task": f"task {task}",
            "layer": layer // 7 + 1,
            "module": f"model.language_model.layers.{layer // 7}.{kinds[layer % 7]}",
            "columns": 4096,
            "retained": int(torch.randint(1700, 4096, (), generator=draw)),
            "alpha": float(torch.rand((), generator=draw)),
            "projection_scale": 1.0,
        }
        for layer in range(layers)
    ]


def saved(state: dict[str, Any]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_all_events_come_back_in_their_order() -> None:
    events = [event for task in range(7) for event in retention(task)]
    log = EventLog(events)
    again = EventLog.from_state(torch.load(saved(log.state()), weights_only=True))
    again.append({"event": "time", "seconds": float("inf")})
    log.append({"event": "time", "seconds": float("inf")})
    assert list(again) == list(log) == [*events, {"event": "time", "seconds": float("inf")}]
    assert list(log) == list(log)


def test_a_checkpoint_of_an_older_version_is_read() -> None:
    events = [event for task in range(7) for event in retention(task)]
    assert list(EventLog.from_state({"events": events})) == events


def test_a_long_stream_costs_little() -> None:
    """As objects the events of 50 tasks on a 7B model make a checkpoint four times as large."""
    callback = TaskCallback()
    for task in range(50):
        for event in retention(task):
            callback._events.append(event)
    size = len(saved(callback.state_dict()).getvalue())
    assert size < 50 * 224 * 40, size
    assert len(callback._events.state()["events"]) < 512
