#!/usr/bin/env bash
# What only a GPU can show: the paper's NeRF protocol (37,500 steps, 182 wide, 4,096 rays) for large, small and AIRe,
# and, where a folder of pictures is given, its image tables (512 x 512, 512 wide, 5,000 epochs).
# With MESHES=folder in the environment also table 6 (every .ply in it, w0 60, 256 wide, 512^3 meshes) and the flow.
# Usage: bash scripts/gpu_suite.sh SCENE_FOLDER OUTPUT_FOLDER [STEPS] [PICTURE_FOLDER [NAMES...]]
# ns-train must be on the PATH. Finished runs are kept.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SCENE_FOLDER OUTPUT_FOLDER [STEPS] [PICTURE_FOLDER [NAMES...]]" >&2; exit 2; }
scene="$1" out="$2" steps="${3:-37500}"
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
    || { echo "error: no CUDA device; this suite measures one (CPU: scripts/lego_cpu.sh)" >&2; exit 1; }
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/device.txt"

# Most telling first; a call that is cut off goes on where it was.
if [ $# -ge 4 ]; then
    pictures="$4"; shift 4
    for table in images-table3 images-table2 images-figure5 images-table9; do
        aire-reproduce "$table" --budget paper --data "$pictures" ${1:+--images "$@"} --jobs 4 --out "$out/images"
    done
fi

for mesh in ${MESHES:+"$MESHES"/*.ply}; do
    shape="$(basename "$mesh" .ply)"
    # 1,000 epochs of 2 x vertices / 20,000 steps.
    sdf_steps="$(python -c 'import sys; from pathlib import Path; from aire_nerfstudio.data.surface import read_surface
print(round(1000 * 2 * len(read_surface(Path(sys.argv[1])).points) / 20000))' "$mesh")"
    for activation in siren finer; do
        for variant in aire large small aire_rounds; do
            run="$out/$shape-$variant/aire-sdf-$activation/run"
            if [ ! -f "$run/eval.json" ]; then
                begin=$(date +%s)
                ns-train "aire-sdf-$activation" --output-dir "$out" --experiment-name "$shape-$variant" --timestamp run \
                    --data "$mesh" --max-num-iterations "$sdf_steps" --steps-per-save 5000 --vis tensorboard \
                    --steps-per-eval-batch 1000000 --logging.local-writer.enable False \
                    --pipeline.model.eval-resolution 512 --pipeline.model.variant "$variant" \
                    > "$out/$shape-$activation-$variant.log" 2>&1
                echo "$(( $(date +%s) - begin ))" > "$run/seconds"
                ns-eval --load-config "$run/config.yml" --output-path "$run/eval.json" \
                    >> "$out/$shape-$activation-$variant.log" 2>&1
            fi
            echo "$shape $activation $variant $(cat "$run/seconds") s | $(python -m aire_nerfstudio.summary "$run")" \
                | tee -a "$out/surfaces.txt"
        done
    done
done
if [ -n "${MESHES:-}" ] && [ -f "$MESHES/armadillo.ply" ]; then
    python scripts/bench_surface.py 256 60000 | tee "$out/bench_surface.txt"
    for variant in large aire; do
        run="$out/flow-$variant/aire-flow-siren/run"
        [ -d "$run/nerfstudio_models" ] || ns-train aire-flow-siren --output-dir "$out" --experiment-name "flow-$variant" \
            --timestamp run --data "$MESHES/armadillo.ply" --vis tensorboard --steps-per-eval-batch 1000000 \
            --logging.local-writer.enable False --pipeline.model.variant "$variant" > "$out/flow-$variant.log" 2>&1
    done
    aire-export compare --load-config "$out/flow-large/aire-flow-siren/run/config.yml" --resolution 512 \
        --other-config "$out/flow-aire/aire-flow-siren/run/config.yml" --output-path "$out/flow.json"
fi

# Step overhead of nerfstudio's trainer at the paper's size.
python scripts/bench_overhead.py --rays 4096 --width 182 | tee "$out/overhead.txt"

for activation in siren finer; do
    for variant in aire large small; do
        run="$out/$variant/aire-$activation/run"
        if [ ! -f "$run/eval.json" ]; then
            begin=$(date +%s)
            ns-train "aire-$activation" --output-dir "$out" --experiment-name "$variant" --timestamp run --data "$scene" \
                --max-num-iterations "$steps" --steps-per-save 5000 --vis tensorboard \
                --logging.local-writer.max-log-size 0 --logging.steps-per-log 1000 \
                --pipeline.model.variant "$variant" > "$out/$activation-$variant.log" 2>&1
            echo "$(( $(date +%s) - begin ))" > "$run/seconds"
            ns-eval --load-config "$run/config.yml" --output-path "$run/eval.json" >> "$out/$activation-$variant.log" 2>&1
        fi
        echo "$activation $variant $(cat "$run/seconds") s | $(python -m aire_nerfstudio.summary "$run")" | tee -a "$out/results.txt"
    done
done
