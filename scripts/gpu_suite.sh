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

if [ -n "${MESHES:-}" ]; then
    for table in sdf-table6 sdf-table5 sdf-figure4 sdf-table1; do
        aire-reproduce "$table" --budget paper --data "$MESHES" --jobs 4 --out "$out/surfaces"
    done
    aire-reproduce sdf-table7 --budget paper --data "$MESHES" --out "$out/surfaces"
    python scripts/bench_surface.py 256 60000 | tee "$out/bench_surface.txt"
    if [ -f "$MESHES/armadillo.ply" ]; then
        aire-reproduce flow --budget paper --data "$MESHES" --shapes armadillo --jobs 3 --out "$out/surfaces"
    fi
fi

# Eager float32, torch.compile and the closed forms of derivatives.
aire-bench --widths 64 128 256 512 --batches 65536 --out "$out/bench"

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
