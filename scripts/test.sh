#!/usr/bin/env bash
# Lint, types and tests. Extra arguments go to pytest, e.g. `bash scripts/test.sh -k surgery`. TEST_WORKERS: tests at a
# time (default 2), each with one thread.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile "$@"
