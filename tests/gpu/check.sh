#!/usr/bin/env bash
# Runs every test that needs a GPU, from a build with CUDA (default: build/cuda). A test that is skipped counts as failed, and so does
# a machine without a GPU.
#
#   tests/gpu/check.sh [--sanitize] [BUILD]     --sanitize: also under compute-sanitizer's memcheck and racecheck
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
sanitize=false
build=build/cuda
for argument; do
  case "$argument" in
    --help | -h) sed -n '2,5p' "${BASH_SOURCE[0]}" | cut -c3-; exit ;;
    --sanitize) sanitize=true ;;
    -*) echo "tests/gpu/check.sh: unknown argument '$argument'; known is --sanitize" >&2; exit 2 ;;
    *) build=$argument ;;
  esac
done

failed=0
check() { # check NAME COMMAND...
  local name=$1 log
  shift
  log=$(mktemp)
  if "$@" > "$log" 2>&1 && ! grep -q '^\[  SKIPPED \]' "$log"; then
    echo "passed  $name: $(grep -E '^\[  PASSED  \]' "$log" | cut -c13-)"
  else
    failed=$((failed + 1))
    echo "FAILED  $name"
    tail -n 40 "$log"
  fi
  rm -f "$log"
}

tests=("$build"/tests/*_gpu_test)
if [ ! -x "${tests[0]}" ]; then
  echo "tests/gpu/check.sh: no tests in $build; build them with: cmake --preset cuda && cmake --build --preset cuda" >&2
  exit 1
fi
for test in "${tests[@]}"; do
  name=$(basename "$test")
  check "$name" "$test"
  if "$sanitize"; then
    for tool in memcheck racecheck; do
      check "$name under $tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$test"
    done
  fi
done
echo "$failed failed"
[ "$failed" = 0 ]
