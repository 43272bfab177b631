#!/usr/bin/env bash
# clang-tidy over the sources that the newest commit changed (--since REV: that changed after REV; --all: over every source;
# slow, LibTorch headers take 30 s each).
# Reads the compile commands of build/release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ "${1:-}" = --all ]; then
  mapfile -t files < <(git ls-files '*.cc')
elif [ "${1:-}" = --since ]; then
  mapfile -t files < <(git diff --name-only --diff-filter=AM "${2:?a revision}..HEAD" -- '*.cc')
else
  # At most a dozen: a change that is larger is read by people, or with --all.
  mapfile -t files < <(git diff --name-only --diff-filter=AM "HEAD~1..HEAD" -- '*.cc' 2> /dev/null | head -n 12)
fi
# Sources of other builds (CUDA, fuzzers) have no compile command there.
compiled=()
for file in "${files[@]}"; do
  if grep -qF "\"file\": \"$PWD/$file\"" build/release/compile_commands.json; then compiled+=("$file"); fi
done
files=("${compiled[@]}")
[ "${#files[@]}" -gt 0 ] || { echo "no changed source"; exit 0; }
printf '%s\n' "${files[@]}" | xargs -P 2 -n 1 .venv/bin/clang-tidy --quiet -p build/release --warnings-as-errors='*'
