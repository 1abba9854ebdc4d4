#!/usr/bin/env bash
# Large, small and AIRe on one Blender scene at a size that a CPU can train: `bash scripts/lego_cpu.sh SCENE OUT [STEPS]`.
# Finished runs are kept, so that an interrupted series goes on where it stopped; those of other data or steps are not.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SCENE_FOLDER OUTPUT_FOLDER [STEPS]" >&2; exit 2; }
scene="$1" out="$2" steps="${3:-4000}"
mkdir -p "$out"
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"
inputs="$scene $steps"
if [ "$(cat "$out/inputs" 2>/dev/null || echo "$inputs")" != "$inputs" ]; then
    echo "error: $out holds runs of '$(cat "$out/inputs")', not of '$inputs'; choose another folder" >&2
    exit 1
fi
failed() { tail -1 "$1" >&2; echo "error: $1 has the whole of it" >&2; exit 1; }

for activation in siren finer; do
    for variant in large small aire; do
        run="$out/lego-$variant/aire-$activation/run"
        log="$out/$activation-$variant.log"
        if [ ! -f "$run/eval.json" ]; then
            rm -rf "$run"  # what was interrupted
            begin=$(date +%s)
            ns-train "aire-$activation" --output-dir "$out" --experiment-name "lego-$variant" --timestamp run \
                --data "$scene" --max-num-iterations "$steps" --steps-per-save "$steps" --vis tensorboard \
                --steps-per-eval-batch 1000000 --steps-per-eval-image 1000000 \
                --logging.local-writer.max-log-size 0 --logging.steps-per-log 500 \
                --pipeline.datamanager.train-num-rays-per-batch 1024 --optimizers.fields.optimizer.lr 1e-3 \
                --pipeline.model.variant "$variant" \
                --pipeline.model.density-widths 96 96 96 --pipeline.model.colour-widths 64 64 \
                --pipeline.model.n-features 48 --pipeline.model.hidden-omega 20 \
                --pipeline.model.grid-resolution 96 --pipeline.model.max-steps-per-ray 320 \
                --pipeline.model.grid-decay 0.8 > "$log" 2>&1 || failed "$log"
            echo "$inputs" > "$out/inputs"
            echo "$(( $(date +%s) - begin ))" > "$run/seconds"
            ns-eval --load-config "$run/config.yml" --output-path "$run/eval.json" >> "$log" 2>&1 || failed "$log"
        fi
        echo "$activation $variant $(cat "$run/seconds") s | $(python -m aire_nerfstudio.summary "$run")"
    done
done
