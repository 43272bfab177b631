#!/usr/bin/env bash
# Sets up, builds and runs every test: the GoogleTest programs (CTest), the parity tests against PyTorch, transformers and PEFT,
# and the end-to-end tests with real processes. Ends with one line of counts; exit status 0 only when nothing failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -gt 0 ]; then
  sed -n '2,3p' "${BASH_SOURCE[0]}" | cut -c3-
  [ "$1" = --help ]
  exit
fi

deploy/setup.sh --tests || exit 1
started=$SECONDS
cmake --preset release > /dev/null && cmake --build --preset release -- -j "$(nproc)" || exit 1
echo "built in $((SECONDS - started)) s"

results=$PWD/build/release/test-results
rm -rf "$results" && mkdir -p "$results"
passed=0 failed=0 skipped=0
# A suite that failed without a failing case (a crash, nothing collected) counts as one failure.
count() { # count EXIT_STATUS PASSED FAILED SKIPPED
  local failures=$3
  if [ "$1" != 0 ] && [ "$3" = 0 ]; then failures=1; fi
  passed=$((passed + $2)) failed=$((failed + failures)) skipped=$((skipped + $4))
}

GTEST_OUTPUT="json:$results/" ctest --test-dir build/release -j 2 --output-on-failure --no-tests=error \
  --output-junit "$results/ctest.xml"
count $? $(python3 tests/count_results.py gtest "$results")

# The parity tests share no state; the end-to-end tests have the machine for themselves.
for suite in layout parity e2e; do
  workers=()
  [ "$suite" = parity ] && workers=(-n 2 --dist worksteal)
  LONGSPAN_SOURCE_DIR=$PWD LONGSPAN_BUILD_DIR=$PWD/build/release OMP_NUM_THREADS=1 \
    .venv/bin/python -B -m pytest -q -p no:cacheprovider "${workers[@]}" "tests/$suite" --junitxml="$results/$suite.xml"
  count $? $(python3 tests/count_results.py junit "$results/$suite.xml")
done

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
