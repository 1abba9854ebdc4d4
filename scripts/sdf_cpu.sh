#!/usr/bin/env bash
# Large, small and AIRe on one surface at a size that a CPU can train: `bash scripts/sdf_cpu.sh MESH OUT [STEPS]`.
# Finished runs are kept, so that an interrupted series goes on where it stopped; those of other data or steps are not.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 MESH OUTPUT_FOLDER [STEPS]" >&2; exit 2; }
mesh="$1" out="$2" steps="${3:-4000}"
mkdir -p "$out"
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"
inputs="$mesh $steps"
if [ "$(cat "$out/inputs" 2>/dev/null || echo "$inputs")" != "$inputs" ]; then
    echo "error: $out holds runs of '$(cat "$out/inputs")', not of '$inputs'; choose another folder" >&2
    exit 1
fi
failed() { tail -1 "$1" >&2; echo "error: $1 has the whole of it" >&2; exit 1; }

for activation in siren finer; do
    for variant in large small aire aire_early aire_rounds; do
        run="$out/sdf-$variant/aire-sdf-$activation/run"
        log="$out/$activation-$variant.log"
        if [ ! -f "$run/eval.json" ]; then
            rm -rf "$run"  # what was interrupted
            begin=$(date +%s)
            ns-train "aire-sdf-$activation" --output-dir "$out" --experiment-name "sdf-$variant" --timestamp run \
                --data "$mesh" --max-num-iterations "$steps" --steps-per-save "$steps" --vis tensorboard \
                --steps-per-eval-batch 1000000 --logging.local-writer.enable False \
                --pipeline.datamanager.on-surface 4000 --pipeline.datamanager.off-surface 4000 \
                --pipeline.datamanager.pool 500000 --pipeline.model.variant "$variant" \
                --pipeline.model.widths 64 64 64 --pipeline.model.first-omega 30 --pipeline.model.hidden-omega 30 \
                --optimizers.fields.optimizer.lr 1e-3 --optimizers.fields.scheduler.final-ratio 0.1 \
                > "$log" 2>&1 || failed "$log"
            echo "$inputs" > "$out/inputs"
            echo "$(( $(date +%s) - begin ))" > "$run/seconds"
            ns-eval --load-config "$run/config.yml" --output-path "$run/eval.json" >> "$log" 2>&1 || failed "$log"
        fi
        echo "$activation $variant $(cat "$run/seconds") s | $(python -m aire_nerfstudio.summary "$run")"
    done
done
