#!/usr/bin/env bash
# Lint, types and tests. Extra arguments go to pytest, e.g. `bash scripts/test.sh -k surgery`. TEST_WORKERS: tests at a
# time (default 3, since many wait for processes and browsers), each with one thread.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
# The tests of viewer and report look at them in a browser; without one they are skipped, visibly.
if ! command -v chromium >/dev/null 2>&1 && ! command -v google-chrome >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && { apt-get install -y -qq --no-install-recommends chromium \
        || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }; } >/dev/null 2>&1; then
        echo "[test] installed chromium for the browser tests"
    else
        echo "[test] note: no Chromium, the browser tests will be skipped: sudo apt-get install chromium"
    fi
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python scripts/audit.py
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest --numprocesses "${TEST_WORKERS:-3}" --dist loadfile --no-loadscope-reorder "$@"
