#!/usr/bin/env bash
# Write locked.txt anew: every package of the tested set with the hashes that the index gives for its archives. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv > /dev/null || { echo "error: uv is not installed; pip install uv" >&2; exit 1; }
{
    echo "# The tested set with all it needs, for Python 3.11 and later, by hash: LOCKED=1 bash scripts/setup.sh. Written by scripts/lock.sh."
    uv pip compile pyproject.toml --extra dev --constraint versions.txt --universal --python-version 3.11 \
        --generate-hashes --no-annotate --no-header --quiet
} > locked.new
mv locked.new locked.txt
