#!/usr/bin/env bash
# Make .venv with the tested set of packages and this project, editable. Safe to run again: it does only what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

python="${PYTHON:-}"
if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3; do
        if command -v "$candidate" >/dev/null 2>&1; then python="$candidate"; break; fi
    done
fi
[ -n "$python" ] || die "no Python found; install Python 3.11 or 3.12, or set PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
    || die "$("$python" --version) is outside the supported range 3.10 to 3.12 (tested: 3.11, 3.12); set PYTHON to another one"

if [ ! -x .venv/bin/python ]; then
    say "creating .venv with $("$python" --version)"
    "$python" -m venv .venv
fi

stamp=.venv/.aire-setup
wanted="$(cat versions.txt pyproject.toml | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    say "installing the tested set (about 7 GB with torch's CUDA libraries; several minutes)"
    .venv/bin/python -m pip install --quiet --upgrade pip
    .venv/bin/python -m pip install --quiet --constraint versions.txt torch torchvision nerfstudio
    .venv/bin/python -m pip install --quiet --constraint versions.txt --editable '.[dev]'
    printf '%s\n' "$wanted" > "$stamp"
fi
say "ready: $(.venv/bin/python --version), torch $(.venv/bin/python -c 'from importlib.metadata import version as v; print(v("torch"), "| nerfstudio", v("nerfstudio"))')"
