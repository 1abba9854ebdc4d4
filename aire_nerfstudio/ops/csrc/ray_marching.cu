// Ray marching and volume rendering on CUDA. No torch headers: nvcc takes seconds.

#include <cstdint>
#include <cuda_runtime.h>

#define AIRE_LAMBDA __device__

template <class What>
__global__ void run(int64_t count, What what) {
    int64_t n = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
    if (n < count) what(n);
}

template <class What>
static int for_each(int64_t stream, int64_t count, What what) {
    constexpr int THREADS = 128;
    if (count == 0) return 0;
    run<<<unsigned((count + THREADS - 1) / THREADS), THREADS, 0, reinterpret_cast<cudaStream_t>(stream)>>>(count, what);
    return int(cudaGetLastError());
}

#include "ray_marching.h"

extern "C" const char* aire_error(int status) { return cudaGetErrorString(cudaError_t(status)); }
