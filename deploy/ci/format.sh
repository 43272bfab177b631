#!/usr/bin/env bash
# Fails when a C++ file, also one that git does not know yet, is not formatted as .clang-format says; --fix formats it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mode=(--dry-run -Werror)
[ "${1:-}" = --fix ] && mode=(-i)
git ls-files -co --exclude-standard '*.cc' '*.h' '*.cu' '*.cuh' | xargs .venv/bin/clang-format "${mode[@]}"
