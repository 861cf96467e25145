#!/usr/bin/env bash
# Everything that only a GPU can tell, in one command and at most nine minutes on one H100 or H200:
#
#   benchmarks/gpu.sh [--output FOLDER]      # or: make gpu
#   benchmarks/gpu.sh --small                # the same steps on a CPU, tiny: shows that the script works
#   benchmarks/gpu.sh --grid "three decisions" --output FOLDER
#                                            # instead: cells of studies/smol.yaml, as many as 500 seconds carry
#
# Each step has a time limit of its own, the most valuable one comes first, and one that fails or runs out of time does not
# stop the others. FOLDER/report.md holds every table as soon as it is printed and ends with a line for each step,
# FOLDER/log.txt the rest of the output; the exit code is 1 if a step failed. For a machine that reaches no package
# registry, run benchmarks/wheels.sh elsewhere before. HPA_COMMIT names the commit where there is no git.
#
# The grid needs the built benchmark: elsewhere, benchmarks/smol_parts.sh packs it into benchmarks/smol-parts/, in parts that
# may be brought one after the other (GRID_SECONDS and GRID_JOBS, 8 processes on one GPU, can be set). FOLDER/smol.jsonl
# then holds the finished cells, beside those of docs/results/smol.jsonl, which it replaces; the same command goes on.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
root=$PWD
small='' grid='' output="runs/gpu"
while [ $# -gt 0 ]; do
  case $1 in
    --small) small=yes ;;
    --grid) [ $# -gt 1 ] || { echo "--grid needs groups of studies/smol.yaml"; exit 2; }; grid=$2; shift ;;
    --output) [ $# -gt 1 ] || { echo "--output needs a folder"; exit 2; }; output=$2; shift ;;
    *) echo "unknown argument $1; expected --small, --grid GROUPS or --output FOLDER"; exit 2 ;;
  esac
  shift
done
mkdir -p "$output"
output=$(cd "$output" && pwd)
report=$output/report.md log=$output/log.txt
: >"$report"
: >"$log"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-$([ -x .venv/bin/python ] && echo "$root/.venv/bin/python" || echo python3)}
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 CUBLAS_WORKSPACE_CONFIG=:4096:8

export PYTHONPATH="$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
# The package, and what it imports that this Python lacks, from benchmarks/wheels/.
if ! "$python" -c 'import hpa_lightning.callbacks' 2>/dev/null; then
  install=("$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --no-build-isolation)
  [ -d benchmarks/wheels ] || { echo "hpa_lightning is not installed, and there are no benchmarks/wheels; see wheels.sh"; exit 2; }
  "${install[@]}" --target "$scratch/site" benchmarks/wheels/*.whl || exit 2
  export PYTHONPATH="$scratch/site:$PYTHONPATH"
  cp -r hpa_lightning callbacks setup.cfg pyproject.toml README.md LICENSE "$scratch" || exit 2
  "${install[@]}" --target "$scratch/package" "$scratch" || exit 2
  export PYTHONPATH="$scratch/package:$PYTHONPATH"
fi

if [ -n "$grid" ]; then
  folder=runs/smol-grid
  mkdir -p "$folder"
  if [ ! -f "$folder/smol/build.json" ]; then
    cat benchmarks/smol-parts/part-* | tar -x -C "$folder" || exit 2
  fi
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$scratch/smol-site" "$folder"/readers/*.whl || exit 2
  export PYTHONPATH="$PYTHONPATH:$scratch/smol-site"
  "$python" - "$folder" <<'PY' || exit 2
import sys
from functools import partial
from pathlib import Path

from hpa_lightning.smol.inputs import find_input
from hpa_lightning.smol.model_build import build_model

folder = Path(sys.argv[1])
build_model(folder / "smol" / "model", partial(find_input, cache=folder / "inputs", given=folder / "packages"))
PY
  [ -e smol ] || ln -s "$folder/smol" smol
  # shellcheck disable=SC2086  # several groups
  timeout --signal=INT --kill-after=30 "${GRID_SECONDS:-500}" "$python" -m hpa_lightning.cli study run studies/smol.yaml \
    --groups $grid --store "$folder/store" --jobs "${GRID_JOBS:-8}" --archive docs/results/smol.jsonl 2>&1 | tee "$report"
  code=${PIPESTATUS[0]}
  cp docs/results/smol.jsonl "$output/smol.jsonl"
  # shellcheck disable=SC2086
  "$python" -m hpa_lightning.cli study archive studies/smol.yaml --groups $grid --store "$folder/store" \
    --archive docs/results/smol.jsonl --output "$output/smol.jsonl" || exit 1
  case $code in
    0) exit 0 ;;
    124) echo "cut off after ${GRID_SECONDS:-500} s; the same command goes on" | tee -a "$report"; exit 0 ;;
    *) echo "the study ended with $code; cells that failed are named above" | tee -a "$report"; exit 1 ;;
  esac
fi

if [ -n "$small" ]; then
  device=cpu fast=$scratch workers=0
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
else
  device=cuda fast=/dev/shm workers=8
  "$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no CUDA device; try --small")' || exit 2
  # Weights, a copy of them and the result; /dev/shm is half of the memory by default.
  [ "$(df --output=avail -BG "$fast" 2>/dev/null | tail -1 | tr -dc 0-9)" -ge 45 ] 2>/dev/null || fast=$scratch
fi
export HPA_TEST_ACCELERATOR=$device

failed=0 ends=''
step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS code ended
  shift 2
  printf '\n## %s\n\n' "$name" | tee -a "$report" "$log"
  timeout --signal=INT --kill-after=10 "$limit" "$@" 2>>"$log" | tee -a "$report"
  code=${PIPESTATUS[0]}
  case $code in
    0) ended=well ;;
    124 | 137) ended="cut off after $limit s" failed=1 ;;
    *) ended="exit code $code" failed=1; tail -n 25 "$log" ;;
  esac
  ends+="| $name | $((SECONDS - start)) | $ended |"$'\n'
}
tests() { # tests ARGUMENTS...: sets `pytest` to a command, with several processes where pytest-xdist is there
  local parallel=()
  [ "$workers" -gt 0 ] && "$python" -c 'import xdist' 2>/dev/null && parallel=(-n "$workers" --dist worksteal)
  pytest=("$python" -m pytest -q --no-header -p no:cacheprovider "${parallel[@]}" "$@")
}

"$python" - <<'PY' | tee -a "$report"
import importlib.metadata as metadata
import sys

import torch

print("Python", sys.version.split()[0], torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device")
print(", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "lightning", "peft", "timm")))
PY

if [ -n "$small" ]; then
  tests tests/callbacks/test_orthogonal_projection.py tests/callbacks/test_method_guarantees.py \
    -k "(retained_columns and plain-adamw_decay) or (half_precision and (post_training or in_training))"
  step tests 400 "${pytest[@]}"
  step block 400 "$python" benchmarks/block.py --shrink 16 --together --repeats 1 \
    --safety-samples 1 --task-samples 4 --tokens 64
  step sums 400 "$python" benchmarks/sums.py --columns 128 --rows 2048
  step steps 400 "$python" benchmarks/steps.py --methods in_training null_space regression --tuning lora full \
    --hidden 128 --inner 256 --rank 4 --samples 2 --tokens 16 --pairs 2
  step hpa_plus 400 "$python" benchmarks/hpa_plus.py --shrink 32 --tokens 128 --ranks 8 --lora-rank 4
  step fuse 400 "$python" benchmarks/fuse.py --folder "$fast" --once --phases --blocks 2 --hidden 256 --inner 688 \
    --rank 4 --tower-blocks 2 --safety-samples 1 --task-samples 1
  tests tests/callbacks/test_processes.py -k one_device
  step fsdp 400 "${pytest[@]}"
  step nano 1500 "$python" benchmarks/nano.py --device cpu --small
else
  tests tests/functional tests/callbacks/test_{orthogonal_projection,masked_freezing,focus_partition}.py \
    tests/callbacks/test_{optimizer_step,method_guarantees}.py \
    -k "cuda or test_orthogonal_projection or test_masked_freezing or test_focus_partition or test_optimizer_step or test_method_guarantees"
  step tests 130 "${pytest[@]}"
  step block 40 "$python" benchmarks/block.py
  step sums 15 "$python" benchmarks/sums.py
  step steps 90 "$python" benchmarks/steps.py --methods in_training null_space regression --tuning lora full
  step hpa_plus 35 "$python" benchmarks/hpa_plus.py --tokens 81920 --ranks 192
  step fuse 100 "$python" benchmarks/fuse.py --folder "$fast" --once
  workers=0
  tests tests/callbacks/test_processes.py -k one_device
  step fsdp 60 "${pytest[@]}"
  step nano 90 "$python" benchmarks/nano.py --limit 80
fi
printf '\n## summary\n\n| step | seconds | ended |\n|---|---|---|\n%s' "$ends" | tee -a "$report"
exit "$failed"
