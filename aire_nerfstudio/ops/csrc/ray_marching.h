// Ray marching and volume rendering, through for_each(queue, count, what): ray_marching.cpp has one for processors (queue
// is a number of threads), ray_marching.cu one for CUDA (queue is a stream). Called through ctypes by
// ops/ray_marching.py, ops/compositing.py and ops/occupancy.py, which check all arguments.
//
// Rays are [N][3], samples are packed: those of ray 0, then of ray 1, ...; ray_indices [M] ascends. What goes through all
// samples of a batch of rays, which are few for CUDA, is in rays_alone.h for processors and in rays_by_warps.h for CUDA.
#pragma once

#include "ray.h"

// All return 0, or what for_each returns where it fails.
extern "C" {

int aire_near_far(int64_t rays, const float* origins, const float* directions, const float* aabb, float min_near,
                  float* near, float* far, int64_t queue) {
    return for_each(queue, rays, [=] AIRE_LAMBDA(int64_t n) {
        float first = min_near, last = INFINITY;
        for (int k = 0; k < 3; k++) {
            float o = origins[3 * n + k], d = directions[3 * n + k];
            if (fabsf(d) < 1e-12f) d = 1e-12f;
            float a = (aabb[k] - o) / d, b = (aabb[3 + k] - o) / d;
            first = fmaxf(first, fminf(a, b));
            last = fminf(last, fmaxf(a, b));
        }
        near[n] = first;
        far[n] = fmaxf(last, first);
    });
}

// The next samples of the rays alive [A], at most `most` each: starts and ends [A][most], counts [A]; next [N] goes on.
int aire_march_some(int64_t count, const int64_t* alive, const float* origins, const float* directions, const float* near,
                    const float* far, const uint64_t* words, int64_t resolution, int64_t contracted, float step,
                    float growth, int64_t most, float* next, float* starts, float* ends, int64_t* counts, int64_t queue) {
    Bits grid{words, int32_t(resolution), contracted != 0};
    return for_each(queue, count, [=] AIRE_LAMBDA(int64_t a) {
        int64_t n = alive[a], found = 0;
        Ray ray = ray_at(origins, directions, near, far, nullptr, grid.contracted, step, growth, n);
        next[n] = march_on(ray, grid, step, growth, next[n], most, [&](float start, float end) {
            starts[a * most + found] = start;
            ends[a * most + found++] = end;
        });
        counts[a] = found;
    });
}

// reached [M]: whether light reaches a sample, that is, the optical depth before it is below limit. depth [N] is what lies
// before the first of these samples on each ray, and afterwards what lies before the next.
int aire_visibility(int64_t rays, int64_t samples, const float* sigmas, const float* starts, const float* ends,
                    const int64_t* ray_indices, float limit, float* depth, bool* reached, int64_t queue) {
    return for_each(queue, rays, [=] AIRE_LAMBDA(int64_t n) {
        float before = depth[n];
        for (int64_t i = first_of(ray_indices, samples, n); i < samples && ray_indices[i] == n; i++) {
            reached[i] = before < limit;
            before += sigmas[i] * (ends[i] - starts[i]);
        }
        depth[n] = before;
    });
}

// points [M][3], the middle of each sample, and ways [M][3], its ray's direction; 0 where there is no such ray.
int aire_places(int64_t samples, int64_t rays, const float* starts, const float* ends, const int64_t* ray_indices,
                const float* origins, const float* directions, float* points, float* ways, int64_t queue) {
    return for_each(queue, samples, [=] AIRE_LAMBDA(int64_t i) {
        int64_t n = ray_indices[i];
        float middle = 0.5f * (starts[i] + ends[i]);
        for (int k = 0; k < 3; k++) {
            float way = n < rays ? directions[3 * n + k] : 0.0f, origin = n < rays ? origins[3 * n + k] : 0.0f;
            points[3 * i + k] = origin + middle * way;
            ways[3 * i + k] = way;
        }
    });
}

// morton [N] of coordinates [N][3], each in [0, 1023].
int aire_morton(int64_t count, const int32_t* coordinates, int32_t* indices, int64_t queue) {
    return for_each(queue, count, [=] AIRE_LAMBDA(int64_t n) {
        indices[n] = int32_t(morton(coordinates[3 * n], coordinates[3 * n + 1], coordinates[3 * n + 2]));
    });
}

int aire_morton_invert(int64_t count, const int32_t* indices, int32_t* coordinates, int64_t queue) {
    return for_each(queue, count, [=] AIRE_LAMBDA(int64_t n) {
        for (int k = 0; k < 3; k++) coordinates[3 * n + k] = int32_t(gather(uint32_t(indices[n]) >> k));
    });
}

// bytes [side^3 / 8] in Morton order from grid [G][G][G] (x slowest): a bit is set where the value is above threshold.
int aire_packbits(int64_t bytes, const float* grid, int64_t resolution, float threshold, uint8_t* out, int64_t queue) {
    return for_each(queue, bytes, [=] AIRE_LAMBDA(int64_t n) {
        uint32_t bits = 0;
        for (uint32_t b = 0; b < 8; b++) {
            uint32_t at = uint32_t(n) * 8 + b;
            int64_t x = gather(at), y = gather(at >> 1), z = gather(at >> 2);
            if (x < resolution && y < resolution && z < resolution)
                bits |= uint32_t(grid[(x * resolution + y) * resolution + z] > threshold) << b;
        }
        out[n] = uint8_t(bits);
    });
}

// density[index] = max(density[index], fresh), for distinct indices.
int aire_grid_raise(int64_t count, const int64_t* index, const float* fresh, float* density, int64_t queue) {
    return for_each(queue, count, [=] AIRE_LAMBDA(int64_t n) { density[index[n]] = fmaxf(density[index[n]], fresh[n]); });
}

}  // extern "C"
