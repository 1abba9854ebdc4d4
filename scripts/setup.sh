#!/usr/bin/env bash
# Make .venv with the tested set of packages and this project, editable. Safe to run again: it does only what is missing.
# LOCKED=1, where there is no .venv yet: from the archives of locked.txt, each checked by its hash; later calls keep it so.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

stamp=.venv/.aire-setup
case "${LOCKED:-}" in ''|1) ;; *) die "LOCKED is '$LOCKED'; it must be 1, or left out";; esac
if grep -qs '^locked' "$stamp"; then
    LOCKED=1  # the other scripts call this one, and are not to undo it
elif [ "${LOCKED:-}" = 1 ] && [ -e .venv ]; then
    die ".venv was made without LOCKED, and pip does not check what is there already; remove .venv and start again"
fi

python="${PYTHON:-}"
[ -x .venv/bin/python ] && python=.venv/bin/python
if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3.13 python3.10 python3; do
        if command -v "$candidate" >/dev/null 2>&1; then python="$candidate"; break; fi
    done
fi
[ -n "$python" ] || die "no Python found; install Python 3.10 to 3.13, or set PYTHON=/path/to/python"
command -v "$python" >/dev/null || die "PYTHON is $python, which is not there"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
    || die "$("$python" --version) is outside the range that was tried, 3.10 to 3.13; set PYTHON to another one"
if [ "${LOCKED:-}" = 1 ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' \
        || die "$("$python" --version): locked.txt is for Python 3.11 and later; set PYTHON to another one, or leave LOCKED out"
fi

if [ ! -x .venv/bin/python ]; then
    say "creating .venv with $("$python" --version)"
    "$python" -m venv .venv || { rm -rf .venv; die "no environment can be made (Debian, Ubuntu: sudo apt-get install python3-venv)"; }
    [ "${LOCKED:-}" != 1 ] || echo 'locked, unfinished' > "$stamp"
fi

wanted="${LOCKED:+locked }$(cat versions.txt pyproject.toml locked.txt | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    say "installing the tested set (about 7 GB with torch's CUDA libraries; several minutes)"
    if [ "${LOCKED:-}" = 1 ]; then
        .venv/bin/python -m pip install --quiet --require-hashes --requirement locked.txt
        .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
    else
        .venv/bin/python -m pip install --quiet --upgrade pip
        .venv/bin/python -m pip install --quiet --constraint versions.txt torch torchvision nerfstudio
        .venv/bin/python -m pip install --quiet --constraint versions.txt --editable '.[dev]'
    fi
    printf '%s\n' "$wanted" > "$stamp"
fi
# nerfstudio calls ffmpeg by name to write videos; the imageio-ffmpeg wheel brings one where the system has none.
if ! command -v ffmpeg >/dev/null 2>&1 && [ ! -e .venv/bin/ffmpeg ]; then
    ln -s "$(.venv/bin/python -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')" .venv/bin/ffmpeg
fi
# Open3D (ns-export) loads libusb and libGL at import; only it does, so their absence stops nothing else.
if ! .venv/bin/python -c 'import open3d' >/dev/null 2>&1; then
    packages="libusb-1.0-0 libgl1 libgomp1"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 \
        && { apt-get install -y -qq $packages || { apt-get update -qq && apt-get install -y -qq $packages; }; } >/dev/null 2>&1; then
        say "installed $packages, which Open3D (ns-export) needs"
    else
        say "note: ns-export will not run until Open3D's libraries are there: sudo apt-get install $packages"
    fi
fi
say "ready: $(.venv/bin/python --version), torch $(.venv/bin/python -c 'from importlib.metadata import version as v; print(v("torch"), "| nerfstudio", v("nerfstudio"))')"
