#!/usr/bin/env bash
# From a bare clone to an extended model, on this machine's CPUs: installs what is missing, builds, starts a coordinator and two
# workers, extends the small example model from 256 to 1,024 tokens, and shows what came of it.
#
# Everything it writes lies in .venv, build and .longspan of this clone. Run it again: it is quick when built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
job=${1:-deploy/examples/extend-tiny.yaml}

deploy/setup.sh
cmake --preset release > /dev/null
cmake --build --preset release --target longspan longspan-server longspan-worker longspan-trainer -- -j "$(nproc)"
export PATH="$PWD/build/release/bin:$PATH"

exec longspan dev --workers 2 --state-dir .longspan/quickstart --run "longspan submit --wait $job"
