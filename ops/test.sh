#!/usr/bin/env bash
# Runs the tests in two processes side by side: those on a real broker or store mostly wait, the others compute.
#
#   ops/test.sh PYTHON [pytest's arguments]
#
# What the first says is shown as it comes, what the second says at the end. Fails when one of them fails or no test was chosen.
set -uo pipefail
# Job control: each of the two is a process group of its own that an interrupt reaches through the trap, and not twice.
set -m
python=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
NONE_CHOSEN=5

ended() {
  local code
  wait "$1"
  code=$?
  while kill -0 "$1" 2>/dev/null; do
    wait "$1"
    code=$?
  done
  return "$code"
}

"$python" -m pytest --parts real "$@" &
real=$!
"$python" -m pytest --parts pure "$@" >"$log" 2>&1 &
pure=$!
trap 'kill -INT -- "-$real" "-$pure" 2>/dev/null' INT TERM
ended "$real"
real_code=$?
ended "$pure"
pure_code=$?
cat "$log"
echo "pytest ended with $real_code on real parts and with $pure_code beside them ($NONE_CHOSEN: no test chosen)"
if [ "$real_code" -eq $NONE_CHOSEN ]; then exit "$pure_code"; fi
if [ "$pure_code" -eq $NONE_CHOSEN ]; then exit "$real_code"; fi
if [ "$real_code" -ne 0 ]; then exit "$real_code"; fi
exit "$pure_code"
