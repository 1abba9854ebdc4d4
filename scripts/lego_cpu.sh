#!/usr/bin/env bash
# Large, small and AIRe on one Blender scene at a size that a CPU can train: `bash scripts/lego_cpu.sh SCENE OUT [STEPS]`.
# Finished runs are kept, so that an interrupted series goes on where it stopped.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SCENE_FOLDER OUTPUT_FOLDER [STEPS]" >&2; exit 2; }
scene="$1" out="$2" steps="${3:-4000}"
mkdir -p "$out"
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"

for activation in siren finer; do
    for variant in large small aire; do
        run="$out/lego-$variant/aire-$activation/run"
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
                --pipeline.model.grid-decay 0.8 > "$out/$activation-$variant.log" 2>&1
            echo "$(( $(date +%s) - begin ))" > "$run/seconds"
            ns-eval --load-config "$run/config.yml" --output-path "$run/eval.json" >> "$out/$activation-$variant.log" 2>&1
        fi
        echo "$activation $variant $(cat "$run/seconds") s | $(python -m aire_nerfstudio.summary "$run")"
    done
done
