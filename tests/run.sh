#!/usr/bin/env bash
# Sets up, builds and runs every test: CTest (GoogleTest programs, end-to-end tests) and the parity tests against PyTorch.
# Ends with one line of counts; exit status 0 only when nothing failed.
#
#   tests/run.sh               everything
#   tests/run.sh --no-parity   without PyTorch, transformers and PEFT (4 GB of packages)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
parity=true
for argument in "$@"; do
  case "$argument" in
    --no-parity) parity=false ;;
    *) echo "tests/run.sh: unknown argument '$argument'; known is --no-parity" >&2; exit 2 ;;
  esac
done

if "$parity"; then deploy/setup.sh --tests || exit 1; else deploy/setup.sh || exit 1; fi
started=$SECONDS
cmake --preset release > /dev/null && cmake --build --preset release -- -j "$(nproc)" || exit 1
echo "built in $((SECONDS - started)) s"

results=$PWD/build/release/test-results
rm -rf "$results" && mkdir -p "$results"
passed=0 failed=0 skipped=0
count() { passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3)); }

GTEST_OUTPUT="json:$results/" ctest --test-dir build/release -j 2 --output-on-failure --no-tests=error \
  --output-junit "$results/ctest.xml" || ctest_failed=true
# A program that crashed or hung left no report: CTest's own list names those.
count $(python3 tests/count_results.py gtest "$results")

if "$parity"; then
  LONGSPAN_SOURCE_DIR=$PWD LONGSPAN_BUILD_DIR=$PWD/build/release OMP_NUM_THREADS=1 \
    .venv/bin/python -m pytest -q tests/parity --junitxml="$results/parity.xml" || parity_failed=true
  count $(python3 tests/count_results.py junit "$results/parity.xml")
fi

[ -z "${ctest_failed:-}${parity_failed:-}" ] || [ "$failed" -gt 0 ] || failed=1
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
