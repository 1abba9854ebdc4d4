#!/usr/bin/env bash
# Build the documentation into site/, strictly and without network. `bash scripts/docs.sh serve`: watch it while writing.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
# Material's notice about MkDocs' future is not about this project.
export NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true
if [ "${1:-}" = serve ]; then exec .venv/bin/mkdocs serve; fi
exec .venv/bin/mkdocs build --strict --clean "$@"
