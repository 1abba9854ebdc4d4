#!/usr/bin/env bash
# Wheels for a machine without network that has torch: what nerfstudio and this package need to import and train, and the
# package itself. Usage: bash scripts/offline_bundle.sh FOLDER [PYTHON_VERSION]   (default: 3.12; x86-64 Linux)
# There: bash FOLDER/install.sh [VENV]
# Surfaces need pymeshlab, embreex and libigl besides (200 MB): WITH_SURFACES=1 takes them along.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [PYTHON_VERSION]" >&2; exit 2; }
cd "$(dirname "$0")/.."
folder="$1" version="${2:-3.12}" limit_mb=60
[[ "$version" =~ ^3\.[0-9]+$ ]] || { echo "error: PYTHON_VERSION is $version; it must look like 3.12" >&2; exit 2; }
[ ! -e "$folder" ] || [ -z "$(ls -A "$folder")" ] || { echo "error: $folder is not empty; name a new folder" >&2; exit 1; }
python=.venv/bin/python
[ -x "$python" ] || { echo "error: no .venv; run bash scripts/setup.sh first" >&2; exit 1; }
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

packages="$scratch/packages.txt"
cp scripts/offline_bundle.txt "$packages"
if [ "${WITH_SURFACES:-}" = 1 ]; then printf '%s\n' pymeshlab embreex 'libigl>=2.6' scikit-image >> "$packages"; limit_mb=400; fi
# Where this machine's tested set has a version, the same one.
grep -v -E '^(torch|torchvision)[=<>]' versions.txt > "$scratch/constraints.txt" || true
"$python" -m pip download --quiet --no-deps --dest "$scratch/wheels" --constraint "$scratch/constraints.txt" \
    --python-version "$version" --only-binary :all: --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --platform any --requirement "$packages"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$scratch/wheels" .

size="$(du -sm "$scratch/wheels" | cut -f1)"
[ "$size" -lt "$limit_mb" ] || { echo "error: the bundle has $size MB; the limit is $limit_mb. The largest:" >&2
    du -m "$scratch"/wheels/* | sort -rn | head -5 >&2; exit 1; }
cat > "$scratch/install.sh" <<'INSTALL'
#!/usr/bin/env bash
# Installs the wheels beside this script, without network: into VENV, which is made with the system's packages, or, where
# none is named, into the Python that is first on the PATH.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)" python=python3
if [ $# -ge 1 ]; then
    [ -x "$1/bin/python" ] || python3 -m venv --system-site-packages "$1"
    python="$(cd "$1/bin" && pwd)/python"
fi
"$python" -c 'import torch, torchvision' || { echo "error: this Python has no torch and torchvision; they do not travel" >&2; exit 1; }
# Again even where they are: a newer build may have the same version. Bytecode comes with the first import.
"$python" -m pip install --quiet --no-index --no-deps --no-compile --force-reinstall "$here"/wheels/*.whl
cd "$here"  # away from a clone, whose folders are no installed package
"$python" - <<'CHECK'
import importlib, sys, warnings
warnings.simplefilter("ignore")
missing = []
for _ in range(40):  # one name a turn: an import stops at the first that is missing
    try:
        importlib.import_module("nerfstudio.scripts.train")
        import aire_nerfstudio.method_configs.nerf
        break
    except ModuleNotFoundError as error:
        missing.append(error.name)
        sys.modules[error.name] = type(sys)(error.name)
        if missing.count(error.name) > 1:
            break
    except Exception:  # of the stand-ins, once something is missing
        if not missing:
            raise
        break
if missing:
    sys.exit("error: this Python lacks " + ", ".join(dict.fromkeys(missing)) + "; add them to scripts/offline_bundle.txt")
import torch
print(f"ready: Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.cuda.is_available()}")
CHECK
INSTALL
mkdir -p "$folder"
cp -r "$scratch/wheels" "$scratch/install.sh" "$folder/"
echo "$folder: $(ls "$folder/wheels" | wc -l) wheels, $size MB, Python $version; there: bash install.sh [VENV]"
