#!/usr/bin/env bash
# Every ratio on a GPU, with random models of Qwen2.5's shapes:
#
#   bash benchmarks/gpu.sh [TRIO ...]      default: qwen2.5-1.5b+7b, then qwen2.5-1.5b+14b
#
# Prints one JSON object per program and setting, each after a line that says which. A trio is built
# in a folder that goes when its programs are done: 22 GB of disk for the first, 37 GB for the other.
# PYTHON is the interpreter, DEVICE the GPU, FOLDER where built trios lie (default: the system's
# temporary folder). Needs the package's dependencies; the package itself is taken from the checkout.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

models=$(mktemp -d -p "${FOLDER:-${TMPDIR:-/tmp}}")
trap 'rm -rf "$models"' EXIT

run() {
    local program=$1
    shift
    echo "# $program $*"
    "$python" "$here/$program.py" --device "$device" --models "$models" --json "$@"
}

[ $# -gt 0 ] || set -- qwen2.5-1.5b+7b qwen2.5-1.5b+14b
for trio in "$@"; do
    run describe --trio "$trio"
    run scoring --trio "$trio" --batch 8 --option-tokens 10
    run scoring --trio "$trio" --batch 8 --option-tokens 1
    run decoding --trio "$trio" --batch 1
    run decoding --trio "$trio" --batch 16
    run grid --trio "$trio" --tokens 1024
    run scaling --trio "$trio"
    rm -rf "${models:?}"/*
done
run memory --tokens 512 1024 2048 4096 --vocab 32000 151936
