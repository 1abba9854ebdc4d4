#!/usr/bin/env bash
# Which versions work: `bash scripts/matrix.sh FOLDER CASE...`, a case being PYTHON/TORCH/NERFSTUDIO such as 3.12/2.11.0/1.1.5
# (of the command pythonPYTHON; TORCH "newest" for what the index has). For each an environment is made in FOLDER,
# removed afterwards unless KEEP=1, and these tests run in it; a line each goes to FOLDER/matrix.md.
set -uo pipefail
[ $# -ge 2 ] || { echo "usage: $0 FOLDER PYTHON/TORCH/NERFSTUDIO..." >&2; exit 2; }
root="$(cd "$(dirname "$0")/.." && pwd)" folder="$(mkdir -p "$1" && cd "$1" && pwd)"
shift
tests="${TESTS:-tests/test_soak.py tests/test_guard.py tests/test_ns_commands.py tests/test_image_model.py tests/test_sdf_model.py
    tests/test_flow.py tests/test_hostile.py tests/test_distributed.py tests/test_surgery.py tests/test_sine_network.py
    tests/test_value_gradient.py tests/test_mean_curvature.py tests/test_ray_ops.py tests/test_report.py tests/test_control.py tests/test_on_cuda.py}"
for case in "$@"; do
    [[ "$case" =~ ^3\.[0-9]+/[^/]+/[^/]+$ ]] && command -v "python${case%%/*}" > /dev/null && continue
    echo "error: $case is not like 3.12/2.11.0/1.1.5, or there is no python${case%%/*}" >&2
    exit 2
done
out="$folder/matrix.md" failures=0
[ -f "$out" ] || printf '| Python | torch | nerfstudio | numpy | tests | |\n|---|---|---|---|---|---|\n' > "$out"

env_of() { echo "$folder/env-${1//\//-}"; }
log_of() { echo "$folder/${1//\//-}.log"; }

install() {
    local python torch nerfstudio env pin
    IFS=/ read -r python torch nerfstudio <<< "$1"
    env="$(env_of "$1")" pin="torch==$torch"
    [ "$torch" = newest ] && pin=torch
    "python$python" -m venv "$env" && "$env/bin/pip" install -q --upgrade pip \
        && "$env/bin/pip" install -q "$pin" torchvision "nerfstudio==$nerfstudio" "viser==0.2.7" \
        && "$env/bin/pip" install -q -e "$root[dev]" "$pin"
}

# One tests while the next is installed, which mostly waits for the network.
install "$1" > "$(log_of "$1")" 2>&1 &
while [ $# -gt 0 ]; do
    case="$1" env="$(env_of "$1")" log="$(log_of "$1")"
    shift
    IFS=/ read -r python torch nerfstudio <<< "$case"
    echo "[matrix] $case: installing"
    wait $!
    installed=$?
    [ $# -gt 0 ] && { install "$1" > "$(log_of "$1")" 2>&1 & }
    if [ $installed != 0 ]; then
        why="$(grep -i 'error' "$log" | tail -1 | cut -c1-120)"
        echo "| $python | $torch | $nerfstudio | | does not install | ${why//|/ } |" >> "$out"
        rm -rf "$env"
        failures=1
        continue
    fi
    [ -e "$env/bin/ffmpeg" ] || ln -s "$("$env/bin/python" -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')" "$env/bin/ffmpeg"
    echo "[matrix] $case: testing"
    # shellcheck disable=SC2086
    (cd "$root" && PATH="$env/bin:$PATH" OMP_NUM_THREADS=1 "$env/bin/python" -m pytest -q -n 2 --dist loadfile -p no:cacheprovider $tests) >> "$log" 2>&1 || failures=1
    versions="$("$env/bin/python" -c 'from importlib.metadata import version as v; import platform; print(" | ".join([platform.python_version(), v("torch"), v("nerfstudio"), v("numpy")]))')"
    failed="$(grep -E '^(FAILED|ERROR) ' "$log" | head -3 | cut -d' ' -f2 | paste -sd' ')"
    echo "| $versions | $(grep -E '(passed|failed|error)' "$log" | tail -1 | sed 's/=//g; s/, [0-9]* warnings*//; s/^ *//; s/ in .*//') | $failed |" >> "$out"
    [ "${KEEP:-}" = 1 ] || rm -rf "$env"
done
cat "$out"
exit $failures
