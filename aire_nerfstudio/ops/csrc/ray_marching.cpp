// Ray marching and volume rendering on processors.

#include <cstdint>

#define AIRE_LAMBDA

template <class What>
static int for_each(int64_t threads, int64_t count, What what) {
    // Rays differ in length: small shares, so that none waits long for the last.
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic, 64)
    for (int64_t n = 0; n < count; n++) what(n);
    return 0;
}

#include "ray_marching.h"
#include "rays_alone.h"
