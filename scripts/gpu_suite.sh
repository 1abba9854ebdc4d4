#!/usr/bin/env bash
# What only a GPU can show, most telling first, into one report: whether the CUDA ops are right, how fast they are, and the
# paper's protocols. Usage:
#   bash scripts/gpu_suite.sh OUTPUT_FOLDER [first] [second] [ops] [bench] [images] [surfaces] [nerf] [compare]     (default: the last six)
# first and second are the most telling, some ten minutes each, each part with a limit: whether ops are right, a NeRF's steps and a minute
# of Lego beside other methods; speed of steps and derivatives, steps of ns-train, fits.
# from a clone, with ns-train and python (with pytest and hypothesis) on the PATH. Sections that lack their data are left out
# and say so: PICTURES=folder (DIV2K; NAMES="03 11": only these) for images, MESHES=folder (.ply) for surfaces,
# SCENE=folder (Lego, Blender format) for nerf and compare; STEPS (37500) are those of the NeRF runs. Finished fits and runs are kept.
# On a host without network: scripts/offline_bundle.sh.
set -uo pipefail
[ $# -ge 1 ] || { echo "usage: $0 OUTPUT_FOLDER [first] [second] [ops] [bench] [images] [surfaces] [nerf] [compare]" >&2; exit 2; }
cd "$(dirname "$0")/.." && source_folder="$PWD" && cd - > /dev/null || exit 1
out="$1"; shift
wanted="${*:-ops bench images surfaces nerf compare}" steps="${STEPS:-37500}"
# Ours at their fastest.
graphs="--matmul-precision medium --pipeline.model.cuda-graph True --steps-per-iteration 10"
for section in $wanted; do
    case "$section" in first|second|ops|bench|images|surfaces|nerf|compare) ;; *)
        echo "error: there is no section $section; choose from first second ops bench images surfaces nerf compare" >&2; exit 2;; esac
done
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
    || { echo "error: no CUDA device; this suite measures one (CPU: aire-bench, scripts/lego_cpu.sh)" >&2; exit 1; }
mkdir -p "$out"
# All is run away from the clone, whose folders would be taken for the installed package.
out="$(cd "$out" && pwd)" || exit 1
for name in PICTURES MESHES SCENE; do
    [ -z "${!name:-}" ] || declare "$name=$(realpath "${!name}")"
done
cd "$out" || exit 1
report="$out/report.md" failed=0
{ echo "# GPU suite, $(date -u +%F)"; echo; nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
  python -c 'import torch; print("torch", torch.__version__)'; echo; } | tee -a "$report"

# run TITLE COMMAND...: its output into a log and the report, its failure remembered.
run() {
    local title="$1" begin status log; shift
    log="$out/$(echo "$title" | tr -c 'a-zA-Z0-9\n' '-').log"
    echo "[suite] $title"
    begin=$(date +%s)
    timeout -k 10 "${SUITE_LIMIT:-0}" "$@" > "$log" 2>&1; status=$?  # 0: none
    [ "$status" = 0 ] || failed=$((failed + 1))
    { echo; echo "## $title"; echo; echo "\`$*\`: $( [ "$status" = 0 ] && echo done || echo "FAILED ($status)"), $(( $(date +%s) - begin )) s"
      echo; echo '```'; tail -n "${TAIL:-40}" "$log"; echo '```'; } >> "$report"
}
left_out() { echo "[suite] left out: $1"; { echo; echo "## Left out: $1"; } >> "$report"; }

for section in $wanted; do case "$section" in
first)
    # Each test as it ends, several at a time: what a limit cuts off has then still been seen.
    many=""
    python -c 'import xdist' 2> /dev/null && many="-n 8"
    export SUITE_LIMIT=180
    # shellcheck disable=SC2086
    TAIL=150 run "Ops are right, at first" python -m pytest $many -v --tb=short -rfEs -p no:cacheprovider "$source_folder"/tests/test_graphed.py \
        "$source_folder"/tests/test_triton_network.py "$source_folder"/tests/test_triton_derivatives.py "$source_folder"/tests/test_padded_samples.py \
        "$source_folder"/tests/test_ray_ops.py "$source_folder"/tests/test_radiance.py "$source_folder"/tests/test_rays_manager.py -k "not sources and not compile and not interpreter and not cpu"
    if [ -n "${SCENE:-}" ]; then
        export SUITE_LIMIT=120
        run "Steps of ns-train, NeRF" python "$source_folder"/scripts/time_steps.py --task nerf --width 182 --batch 4096 --data "$SCENE" \
            --block 100 --blocks 3 --each 10 --kernels 45
        export SUITE_LIMIT=600
        TAIL=30 run "Lego, a minute each" aire-compare --data "$SCENE" --minutes 1 --views 20 --quiet --output-dir "$out/first-lego" \
            --methods "ours-20=aire-siren $graphs --pipeline.model.hidden-omega 20" "ours=aire-siren $graphs" nerfacto instant-ngp vanilla-nerf
    else left_out "NeRF: SCENE names no folder"; fi
    unset SUITE_LIMIT
    ;;
second)
    export SUITE_LIMIT=120 first_name="${NAMES:-png}"
    TAIL=60 run "Kernels of a step" python "$source_folder"/scripts/profile_cuda.py --precisions medium
    TAIL=120 run "Speed" aire-bench --widths 256 512 --batches 65536 --cases image --repeats 5 --out "$out/second" \
        --ways "eager, high" "torch.compile, graph, high" "ours, graph, medium" "ours, medium"
    TAIL=80 run "Speed of derivatives" aire-bench --widths 256 --batches 16384 65536 --cases surface flow --repeats 5 --no-compile \
        --precisions high medium --out "$out/second-derivatives"
    for loss in surface flow; do
        TAIL=40 run "Kernels of a step, $loss" python "$source_folder"/scripts/profile_cuda.py --widths 256 --precisions medium --loss "$loss"
    done
    for task in image surface flow; do
        run "Steps of ns-train, $task" python "$source_folder"/scripts/time_steps.py --task "$task" --precisions high medium --blocks 3
    done
    TAIL=80 run "Speed of rays" aire-bench --cases rays --batches 4096 65536 --repeats 5 --out "$out/second-rays"
    export SUITE_LIMIT=400
    if [ -n "${PICTURES:-}" ]; then
        run "Fits of table 3" python "$source_folder"/scripts/time_fit.py --data "$PICTURES" \
            --image "$(ls "$PICTURES" | grep -m 1 "${first_name%% *}")" --precisions medium high --seeds 1 2
    else left_out "a fit: PICTURES names no folder"; fi
    unset SUITE_LIMIT
    ;;
ops)
    run "What is built" python -m aire_nerfstudio.ops
    # The reference, odd sizes, no points at all, double backward, on CPU and CUDA.
    run "Ops are right" python -m pytest -q -rs "$source_folder"/tests/test_ray_ops.py "$source_folder"/tests/test_ray_marching.py \
        "$source_folder"/tests/test_padded_samples.py "$source_folder"/tests/test_triton_network.py "$source_folder"/tests/test_tcnn.py \
        "$source_folder"/tests/test_radiance.py \
        "$source_folder"/tests/test_triton_derivatives.py "$source_folder"/tests/test_triton_adam.py \
        "$source_folder"/tests/test_graphed.py "$source_folder"/tests/test_rays_manager.py
    if command -v compute-sanitizer > /dev/null; then
        run "Ops under compute-sanitizer" compute-sanitizer --error-exitcode 9 python -m pytest -q -x \
            "$source_folder"/tests/test_ray_ops.py -k cuda
    else left_out "compute-sanitizer is not on the PATH"; fi
    ;;
bench)
    TAIL=400 run "aire-bench" aire-bench --widths 64 128 256 512 --batches 65536 --out "$out/bench"
    for task in image surface; do
        run "Steps of ns-train, $task" python "$source_folder"/scripts/time_steps.py --task "$task" --precisions highest high medium
    done
    run "Steps of ns-train, NeRF" python "$source_folder"/scripts/time_steps.py --task nerf --width 182 --batch 4096 ${SCENE:+--data "$SCENE"}
    run "Overhead of nerfstudio's trainer" python "$source_folder"/scripts/bench_overhead.py --rays 4096 --width 182
    ;;
images)
    if [ -n "${PICTURES:-}" ]; then
        for table in images-table3 images-table2 images-figure5 images-table9; do
            # shellcheck disable=SC2086
            TAIL=80 run "$table" aire-reproduce "$table" --budget paper --data "$PICTURES" ${NAMES:+--images $NAMES} --jobs 4 --out "$out/images"
        done
    else left_out "images: PICTURES names no folder"; fi
    ;;
surfaces)
    if [ -n "${MESHES:-}" ]; then
        for table in sdf-table6 sdf-table5 sdf-figure4 sdf-table1; do
            TAIL=80 run "$table" aire-reproduce "$table" --budget paper --data "$MESHES" --jobs 4 --out "$out/surfaces"
        done
        TAIL=80 run sdf-table7 aire-reproduce sdf-table7 --budget paper --data "$MESHES" --out "$out/surfaces"
        run "Samples and meshing" python "$source_folder"/scripts/bench_surface.py 256 60000
        [ ! -f "$MESHES/armadillo.ply" ] || \
            TAIL=80 run flow aire-reproduce flow --budget paper --data "$MESHES" --shapes armadillo --jobs 3 --out "$out/surfaces"
    else left_out "surfaces: MESHES names no folder"; fi
    ;;
nerf)
    [ -n "${SCENE:-}" ] || { left_out "nerf: SCENE names no folder"; continue; }
    if [ "$(cat "$out/nerf-inputs" 2>/dev/null || echo "$SCENE $steps")" != "$SCENE $steps" ]; then
        left_out "nerf: $out holds runs of '$(cat "$out/nerf-inputs")', not of '$SCENE $steps'; choose another folder"
        continue
    fi
    for activation in siren finer; do for variant in aire large small; do
        folder="$out/$variant/aire-$activation/run"
        if [ ! -f "$folder/eval.json" ]; then
            rm -rf "$folder"  # what was interrupted
            begin=$(date +%s)
            run "$activation $variant: training" ns-train "aire-$activation" --output-dir "$out" --experiment-name "$variant" \
                --timestamp run --data "$SCENE" --max-num-iterations "$steps" --steps-per-save 5000 --vis tensorboard \
                --logging.local-writer.max-log-size 0 --logging.steps-per-log 1000 --pipeline.model.variant "$variant"
            echo "$SCENE $steps" > "$out/nerf-inputs"
            echo "$(( $(date +%s) - begin ))" > "$folder/seconds"
            run "$activation $variant: evaluation" ns-eval --load-config "$folder/config.yml" --output-path "$folder/eval.json"
        fi
        TAIL=3 run "$activation $variant" python -m aire_nerfstudio.summary "$folder"
    done; done
    ;;
compare)
    [ -n "${SCENE:-}" ] || { left_out "compare: SCENE names no folder"; continue; }
    for minutes in 1 3 5; do
        TAIL=60 run "Other methods, $minutes min" aire-compare --data "$SCENE" --minutes "$minutes" --views 20 --quiet \
            --output-dir "$out/compare-$minutes" --methods "siren=aire-siren $graphs" "finer=aire-finer $graphs" \
            "siren-20=aire-siren $graphs --pipeline.model.hidden-omega 20" \
            "early=aire-siren $graphs --pipeline.model.variant aire_early" nerfacto instant-ngp splatfacto vanilla-nerf
        [ ! -f "$out/compare-$minutes/comparison.md" ] || { echo; cat "$out/compare-$minutes/comparison.md"; } >> "$report"
    done
    ;;
esac; done
echo "[suite] $report, $failed failed"
[ "$failed" = 0 ]
