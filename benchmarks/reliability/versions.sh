#!/usr/bin/env bash
# The suite with the lowest and with the newest supported versions of everything that setup.cfg names: one table.
#
#   benchmarks/reliability/versions.sh                        # about 20 minutes and 14 GB, in a folder that is removed
#   TESTS="tests/fuse tests/functional" benchmarks/reliability/versions.sh
#   LOWEST=python3.10 NEWEST=python3.13 KEEP=folder ...       # other interpreters; environments that stay
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
folder=${KEEP:-$(mktemp -d)}
[ -n "${KEEP:-}" ] || trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"
command -v uv >/dev/null || { python3 -m venv "$folder/uv" && "$folder/uv/bin/pip" install --quiet uv && PATH="$folder/uv/bin:$PATH"; }
failed=0 table=''
run() { # run NAME INTERPRETER RESOLUTION
  local name=$1 interpreter=$2 resolution=$3 python="$folder/$1/bin/python" line
  if [ ! -x "$python" ]; then
    uv venv --quiet --python "$interpreter" "$folder/$name" &&
      uv pip install --quiet --python "$python" --compile-bytecode --resolution "$resolution" --editable ".[test]" ||
      { failed=1 table+="| $name | cannot be installed | | | | | |"$'\n'; return; }
  fi
  # shellcheck disable=SC2086  (several words)
  "$python" -m pytest -q -n auto --dist loadfile -p no:cacheprovider ${TESTS:-} 2>&1 | tee "$folder/$name.log" | tail -n 25
  [ "${PIPESTATUS[0]}" = 0 ] || failed=1
  line=$(grep -E '[0-9]+ (passed|failed)' "$folder/$name.log" | tail -1 | tr -d '=' | sed 's/^ *//; s/ in .*//')
  table+=$("$python" - "$name" "$line" <<'PY'
import importlib.metadata as metadata
import platform
import sys

names = ("torch", "lightning", "transformers", "peft")
versions = [platform.python_version(), *map(metadata.version, names)]
print("| " + " | ".join([sys.argv[1], *versions, sys.argv[2]]) + " |")
PY
  )$'\n'
}
run lowest "${LOWEST:-python3.10}" lowest-direct
run newest "${NEWEST:-python3}" highest
printf '\n| | Python | torch | lightning | transformers | peft | suite |\n|---|---|---|---|---|---|---|\n%s' "$table"
exit "$failed"
