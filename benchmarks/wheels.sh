#!/usr/bin/env bash
# Gathers what benchmarks/gpu.sh needs on a machine that reaches no package registry and whose Python has the packages of
# benchmarks/present.txt: wheels for CPython 3.12 on x86-64 Linux, in benchmarks/wheels/ (2 MB; not committed).
#
#   benchmarks/wheels.sh            # PYTHON=python3.12 for another interpreter's pip
set -euo pipefail
cd "$(dirname "$0")"
rm -rf wheels
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest wheels -r wheels.txt
du -sh wheels
