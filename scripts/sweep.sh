#!/usr/bin/env bash
# A sweep over the GPUs of this machine, one part each: `bash scripts/sweep.sh COUNT COMMAND...`, for instance
#   bash scripts/sweep.sh 8 aire-reproduce images-table3 --budget paper --data data/div2k --jobs 4
# Parts go on by themselves; xargs ends with status 123 if one failed. The same command again does what is missing, and
# without this script writes the report. Without GPUs the parts share the processors.
set -euo pipefail
[ $# -ge 2 ] && [ "$1" -ge 1 ] 2>/dev/null || { echo "usage: $0 COUNT COMMAND..." >&2; exit 2; }
count="$1"
shift
gpus="$count"
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    gpus="$(tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -c .)"
elif command -v nvidia-smi > /dev/null; then
    gpus="$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true)"
    [ "$gpus" -gt 0 ] || gpus="$count"
fi
[ "$count" -le "$gpus" ] || { echo "error: COUNT is $count and there are $gpus GPUs to use, one a part; give at most $gpus" >&2; exit 2; }
# Of the GPUs that this process may use, one each.
given="${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((count - 1)))}"
export SWEEP_COUNT="$count" SWEEP_GPUS="$given"
seq 1 "$count" | xargs -P "$count" -I{} bash -c \
    'part="$1"; shift; CUDA_VISIBLE_DEVICES="$(cut -d, -f"$part" <<< "$SWEEP_GPUS")" exec "$@" --part "$part/$SWEEP_COUNT"' sweep {} "$@"
