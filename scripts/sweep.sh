#!/usr/bin/env bash
# A sweep over the GPUs of this machine, one part each: `bash scripts/sweep.sh COUNT COMMAND...`, for instance
#   bash scripts/sweep.sh 8 aire-reproduce images-table3 --budget paper --data data/div2k --jobs 4
# Parts go on by themselves; xargs ends with status 123 if one failed. The same command again does what is missing, and
# without this script writes the report. Without GPUs the parts share the processors.
set -euo pipefail
[ $# -ge 2 ] && [ "$1" -ge 1 ] 2>/dev/null || { echo "usage: $0 COUNT COMMAND..." >&2; exit 2; }
count="$1"
shift
# Of the GPUs that this process may use, one each.
given="${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((count - 1)))}"
export SWEEP_COUNT="$count" SWEEP_GPUS="$given"
seq 1 "$count" | xargs -P "$count" -I{} bash -c \
    'part="$1"; shift; CUDA_VISIBLE_DEVICES="$(cut -d, -f"$part" <<< "$SWEEP_GPUS")" exec "$@" --part "$part/$SWEEP_COUNT"' sweep {} "$@"
