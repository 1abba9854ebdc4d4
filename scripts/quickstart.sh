#!/usr/bin/env bash
# Set up, then train, evaluate and render the demo scene: a few minutes on two CPU cores, no download of data.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"

run="outputs/quickstart/aire-siren/$(date +%Y-%m-%d_%H%M%S)"

# Small networks and a short run; --vis viewer lets you watch at the address it prints.
ns-train aire-siren \
    --experiment-name quickstart --timestamp "${run##*/}" \
    --max-num-iterations 2000 --steps-per-save 1000 \
    --vis viewer --viewer.quit-on-train-completion True \
    --logging.local-writer.max-log-size 0 --logging.steps-per-log 100 \
    --pipeline.datamanager.train-num-rays-per-batch 2048 \
    --optimizers.fields.optimizer.lr 1e-3 \
    --pipeline.model.density-widths 96 96 96 --pipeline.model.colour-widths 64 64 --pipeline.model.n-features 48 \
    --pipeline.model.hidden-omega 20 \
    --pipeline.model.grid-resolution 64 --pipeline.model.max-steps-per-ray 256 --pipeline.model.grid-decay 0.8 \
    --pipeline.model.adaptation.densify-at 10 --pipeline.model.adaptation.densify-count 32 \
    --pipeline.model.adaptation.decay-start 30 --pipeline.model.adaptation.prune-at 70

ns-eval --load-config "$run/config.yml" --output-path "$run/eval.json"

ns-render interpolate --load-config "$run/config.yml" --pose-source eval --interpolation-steps 4 --frame-rate 12 \
    --rendered-output-names rgb normals --output-path "$run/turntable.mp4"

python -m aire_nerfstudio.summary "$run"
