#!/usr/bin/env bash
# What there is to measure on a GPU, with random models of Qwen2.5's shapes, most important first:
#
#   bash benchmarks/gpu.sh [TRIO ...]      default: qwen2.5-1.5b+7b, then qwen2.5-1.5b+14b
#
# Prints one JSON object per program and setting as it comes, each after a line that says which. What
# is not done when LIMIT seconds (default: 600) are over is left out. A program that fails does not
# keep the others from running; the exit status tells.
#
# A trio is built in a folder that goes when its programs are done: 22 GB of disk for the first, 37
# GB for the other. PYTHON is the interpreter, DEVICE the GPU, FOLDER where built trios lie (default:
# the system's temporary folder). Needs the package's dependencies; the package itself is taken from
# the checkout. TRIO `tiny` tries the programs, not the GPU; in a checkout without a GPU, too:
#
#   PYTHONPATH=tests/support/gpu/site LIMIT=1200 bash benchmarks/gpu.sh tiny
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
limit=${LIMIT:-600}
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

models=$(mktemp -d -p "${FOLDER:-${TMPDIR:-/tmp}}")
trap 'rm -rf "$models"' EXIT
status=0

run() {
    local program=$1 left=$((limit - SECONDS))
    shift
    echo "# ${SECONDS} s: $program $*"
    if ((left <= 0)); then
        echo "# left out: $limit s are over"
        return
    fi
    timeout "$left" "$python" "$here/$program.py" --device "$device" --models "$models" --json "$@" && return
    if (($? == 124)); then
        echo "# stopped: $limit s are over"
    else
        echo "# $program failed"
        status=1
    fi
}

[ $# -gt 0 ] || set -- qwen2.5-1.5b+7b qwen2.5-1.5b+14b
if [ "$1" = tiny ]; then
    exact=tiny
    counts=(--drafts 2 --batch 1)
    texts=(--prompt-tokens 12 --new-tokens 12)
    questions=(--questions 2 --shots-tokens 40 --question-tokens 12 --options 2)
    points=(--prompts 2 --new-tokens 6 --singles 2)
    prompt=32
    memory=(--tokens 32 --vocab 1024)
else
    exact=cpu
    counts=(--drafts 0 2 4 --batch 1 16)
    texts=(--prompt-tokens 128 --new-tokens 192)
    questions=(--questions 4 --shots-tokens 1500 --question-tokens 200)
    points=(--prompts 8 --new-tokens 64 --singles 3)
    prompt=1024
    memory=(--tokens 512 4096 --vocab 151936)
fi

# Texts with CUDA graphs are those without, and of the released algorithm: fp32, `*_identical`.
run decoding --trio "$exact" --batch 4 --prompts 8 --rounds 1 --no-stop --no-compiled "${texts[@]}"
# Launches of a token, by the profiler.
run launches --large 7b "${counts[@]}"
for trio in "$@"; do
    # Beside `hf`, and `hf` with a static cache and torch.compile.
    run decoding --trio "$trio" --batch 1 --prompts 2 --rounds 2 --released-prompts 0 "${texts[@]}"
    run decoding --trio "$trio" --batch 16 --prompts 16 --rounds 2 --released-prompts 0 --no-stop \
        "${texts[@]}"
    run scoring --no-cases --trio "$trio" --batch 8 --rounds 2 --option-tokens 10 "${questions[@]}"
    # Peak memory beside what `trimix check` says.
    run budget --trio "$trio" --batch 16 "${texts[@]}"
    if [ "$trio" = "${!#}" ]; then # of the last one
        run grid --trio "$trio" --rounds 3 --tokens "$prompt" # the share of choosing weights
        run sweep --trio "$trio" --batch 16 "${questions[@]}" "${points[@]}"
        run scoring --no-cases --trio "$trio" --batch 8 --rounds 2 --option-tokens 1 "${questions[@]}"
        run describe --trio "$trio" --rounds 3 --prompts 2 "${texts[@]}"
    fi
    find "$models" -mindepth 1 -delete
done
run memory "${memory[@]}"
exit "$status"
