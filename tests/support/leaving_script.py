"""Run by test_ranks.py in two processes: work for the other process is still under way when the program is over.

leaving_script.py RANK PORT
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

# The module alone: the package around it takes long to import and adds nothing here.
spec = importlib.util.spec_from_file_location("leaving", Path(__file__).parents[2] / "callbacks" / "process_exit.py")
assert spec is not None and spec.loader is not None
leaving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(leaving)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2]}
    dist.init_process_group("gloo", rank=int(sys.argv[1]), world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    leaving.exit_cleanly_at_exit(SimpleNamespace(world_size=2, strategy=SimpleNamespace(launcher=None)))  # type: ignore
    for group in (None, mesh.get_group()):
        for _ in range(30):
            tensor = torch.randn(200_000)
            tensor.mark = object()  # type: ignore[attr-defined]  # a thread of gloo gives it up when the work is done
            dist.all_reduce(tensor, group=group, async_op=True)
