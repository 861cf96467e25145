#!/usr/bin/env bash
# Every script of this folder one after the other, and a table of how each ended.
#
#   benchmarks/reliability/all.sh            # the whole of each: hours; root for the full disk, 14 GB for the versions
#   benchmarks/reliability/all.sh --small    # a few of each, about ten minutes; without the versions
#   ONLY="inputs ranks" benchmarks/reliability/all.sh --small
#   LOGS=folder PYTHON=.venv/bin/python ...  # where the output of each stays; the interpreter
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python} small=''
case "${1:-}" in
'') ;;
--small) small=1 ;;
*) sed -n '2,8p' "$0"; exit 2 ;;
esac
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"
failed=0 table=''
run() { # run NAME COMMAND...
  local name=$1 begin=$SECONDS status
  shift
  [[ -z ${ONLY:-} || " $ONLY " == *" $name "* ]] || return 0
  printf '\n## %s\n\n' "$*"
  "$@" 2>&1 | tee "$logs/$name.log"
  status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || failed=1
  table+="| $name | $status | $((SECONDS - begin)) |"$'\n'
}
skip() { table+="| $1 | $2 | |"$'\n'; }
here=benchmarks/reliability
run inputs "$python" $here/inputs.py ${small:+--inputs 2000}
run kills "$python" $here/kills.py --kills "$([ -n "$small" ] && echo 8 || echo 200)" --log "$logs/kills.jsonl" --failed "$logs/failed"
# shellcheck disable=SC2086  (several words)
run ranks "$python" $here/ranks.py ${small:+killed-1 mask data --strategies ddp}
run repeats "$python" $here/repeats.py ${small:+--runs 1 --only "leave or penalty"}
run determinism "$python" $here/determinism.py ${small:+--methods post_training-lora --only seed resumed merged}
if [ "$(id -u)" = 0 ]; then
  run disk "$python" $here/disk.py ${small:+results report checkpoint}
else
  skip disk "not run: it mounts a file system, which root may"
fi
run pictures "$python" $here/pictures.py
# shellcheck disable=SC2086  (several words)
run hooks "$python" $here/hooks.py ${small:+--hooks on_train_batch_end on_train_epoch_end --times 2}
for name in records tasks; do
  if [ -e $here/$name.py ]; then run $name "$python" $here/$name.py ${small:+--small}; fi
done
if [ -z "$small" ]; then run versions $here/versions.sh; fi
printf '\n| script | exit status | seconds |\n|---|---|---|\n%s\nLogs: %s\n' "$table" "$logs"
exit "$failed"
