"""Two processes over gloo make device meshes, shard models over them (FSDP2), train and gather: do they end with 0?

    python benchmarks/reliability/gloo_groups.py --rounds 10 --seconds 60
    python benchmarks/reliability/gloo_groups.py --rounds 10 --perturb    freed memory is overwritten (glibc)

There is no line of this package in it: what crashes here is torch's. What a thread frees is given up at once. With
`--perturb` a use of freed memory shows where it happens, not later.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 40
"""Of each model."""


def work(rank: int, store: str, seconds: float) -> None:
    """One process's part."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch._C._set_print_stack_traces_on_fatal_signal(True)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    until, models, over = time.monotonic() + seconds, 0, torch.zeros(1)
    while not over.item():
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))["data_parallel"]
        torch.manual_seed(models)
        blocks = [nn.Sequential(nn.Linear(12, 24), nn.SiLU(), nn.Linear(24, 12)) for _ in range(3)]
        model = nn.Sequential(*blocks)
        for module in (*blocks, model):
            fully_shard(module, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.randn(4, 12)).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            for parameter in model.parameters():
                parameter.full_tensor()  # type: ignore[attr-defined]
            dist.broadcast((torch.randn(50) > 0).to(torch.uint8), src=0)
            dist.all_gather_object([None, None], {"model": models})
        models += 1
        over.fill_(float(time.monotonic() > until))
        dist.all_reduce(over, op=dist.ReduceOp.MAX)
    if rank == 0:
        print(models, flush=True)
    dist.barrier()
    time.sleep(0.5)  # until gloo's threads have given up what they sent
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="pairs of processes")
    parser.add_argument("--seconds", type=float, default=60, help="of each pair")
    parser.add_argument("--perturb", action="store_true")
    parser.add_argument("--logs", type=Path, help="folder for what a pair that fails says; a new one when left out")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        work(arguments.rank, arguments.store, arguments.seconds)
        return 0
    logs = arguments.logs or Path(tempfile.mkdtemp(prefix="gloo-groups-"))
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if arguments.perturb:
        environment["GLIBC_TUNABLES"] = "glibc.malloc.perturb=165"
    failed = models = 0
    for number in range(1, arguments.rounds + 1):
        store = logs / f"store{number}"
        options = ["--seconds", str(arguments.seconds), "--store", str(store.resolve())]
        files = [(logs / f"round{number}-rank{rank}.log").open("w+") for rank in range(2)]
        pair = [
            subprocess.Popen(
                [sys.executable, __file__, *options, "--rank", str(rank)], env=environment, stdout=file, stderr=file
            )
            for rank, file in enumerate(files)
        ]
        codes = [process.wait() for process in pair]
        files[0].seek(0)
        counted = [int(line) for line in files[0].read().splitlines() if line.isdigit()]
        for file in files:
            file.close()
            if not any(codes):
                Path(file.name).unlink()
        store.unlink(missing_ok=True)
        models, failed = models + sum(counted), failed + any(codes)
        print(f"round {number}: statuses {codes}, {sum(counted)} models", file=sys.stderr, flush=True)
    how = "freed memory overwritten" if arguments.perturb else "as it is"
    print("| memory | pairs | failed | models | steps of each |\n|---|---|---|---|---|")
    print(f"| {how} | {arguments.rounds} | {failed} | {models} | {STEPS} |")
    if failed:
        print(f"\nWhat they said: {logs}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
