#!/usr/bin/env bash
# The compiled CPU ops under AddressSanitizer and UndefinedBehaviorSanitizer: their tests, with sources built for it.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export AIRE_OPS_CACHE="$PWD/.sanitize" AIRE_OPS_FLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
# The C++ library beside it: without it the sanitizer cannot pass on exceptions that torch throws.
runtime="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
# Python's own leaks are not ours; the loader must find the sanitizer first. A build that two processes race for is left
# out: the compiler itself would run under the sanitizer.
LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0 .venv/bin/python -m aire_nerfstudio.ops
LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 .venv/bin/python -m pytest -q -p no:cacheprovider \
    tests/test_sine_network.py tests/test_value_gradient.py tests/test_mean_curvature.py tests/test_matmul_precision.py \
    tests/test_ray_ops.py tests/test_padded_samples.py tests/test_ray_marching.py -k "not build and not built and not processors and not status and not cuda and not nvcc" "$@"
