#!/usr/bin/env bash
# Lines and branches of the package that the tests execute: `bash scripts/coverage.sh FOLDER [PYTEST ARGUMENTS]`; a page and
# a table in FOLDER. Counts the tests' own processes and the commands they fork, not what those start or kill in their turn.
# Needs `pip install pytest-cov`. Takes about twice the tests' time.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [PYTEST ARGUMENTS]" >&2; exit 2; }
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
[ -x "$python" ] || { echo "error: $python is not there; bash scripts/setup.sh makes it" >&2; exit 1; }
"$python" -c 'import pytest_cov' 2> /dev/null || { echo "error: pytest-cov is not installed; $python -m pip install pytest-cov" >&2; exit 1; }
folder="$(mkdir -p "$1" && cd "$1" && pwd)"
shift
export AIRE_COVERAGE="$folder/settings" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
cat > "$AIRE_COVERAGE" <<EOF
[run]
branch = true
parallel = true
source_pkgs = aire_nerfstudio
data_file = $folder/data
disable_warnings = no-data-collected,module-not-measured,already-imported
[report]
exclude_also =
    if TYPE_CHECKING:
    raise NotImplementedError
    ^ *\\.\\.\\.$
EOF
status=0
"$python" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder --cov --cov-config="$AIRE_COVERAGE" --cov-report= "$@" \
    || status=$?
"$python" -m coverage combine --rcfile="$AIRE_COVERAGE" --append "$folder" > /dev/null || true
"$python" -m coverage html --rcfile="$AIRE_COVERAGE" -q -d "$folder/html"
"$python" -m coverage report --rcfile="$AIRE_COVERAGE" --format=markdown > "$folder/coverage.md"
tail -1 "$folder/coverage.md"
exit $status
