"""Run by metrics/test_distributed.py in two processes: metrics that get shares of the updates; saves their values.

metrics_script.py ADDRESS CALLS FOLDER     CALLS: metric's name -> the updates of each process, as JSON
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from hpa_lightning import metrics


def main(address: str, calls: dict[str, list[list[list[object]]]], folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    values = {}
    for name, updates in calls.items():
        metric = metrics.build_metric(name)
        for update in updates[rank]:
            metric.update(*update)
        first = float(metric.compute())
        metric.update(*updates[0][0])  # the state of this process alone is back after compute
        values[name] = [first, float(metric.compute())]
    (folder / f"rank{rank}.json").write_text(json.dumps(values))
    dist.barrier()
    dist.destroy_process_group()  # threads of gloo that still run would abort the process


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
