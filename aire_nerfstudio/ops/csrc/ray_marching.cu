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

#define AIRE_WARP __device__ __forceinline__

// A bit for each lane that votes for.
AIRE_WARP uint32_t votes_for(bool vote) { return __ballot_sync(0xffffffffu, vote); }
AIRE_WARP float from_lane(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
AIRE_WARP int ones(uint32_t bits) { return __popc(bits); }

template <class What>
__global__ void run_warps(int64_t count, What what) {
    int64_t n = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / 32;
    if (n < count) what(n, int(threadIdx.x % 32));
}

// what(n, lane) by 32 lanes, in step with each other, for each n.
template <class What>
static int for_each_warp(int64_t stream, int64_t count, What what) {
    constexpr int WARPS = 4;
    if (count == 0) return 0;
    auto queue = reinterpret_cast<cudaStream_t>(stream);
    run_warps<<<unsigned((count + WARPS - 1) / WARPS), 32 * WARPS, 0, queue>>>(count, what);
    return int(cudaGetLastError());
}

#include "ray_marching.h"
#include "rays_by_warps.h"

extern "C" const char* aire_error(int status) { return cudaGetErrorString(cudaError_t(status)); }
