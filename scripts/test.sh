#!/usr/bin/env bash
# Lint, types and tests. Extra arguments go to pytest, e.g. `bash scripts/test.sh -k surgery`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
