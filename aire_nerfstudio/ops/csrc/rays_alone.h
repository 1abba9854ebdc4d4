// All samples of a batch of rays, a ray at a time, for processors. CUDA's are in rays_by_warps.h, with the same names and
// arguments; see ray_marching.h.
#pragma once

#include "composite.h"
#include "ray.h"

extern "C" {

// counts [N]: samples of each ray.
int aire_march_count(int64_t rays, const float* origins, const float* directions, const float* near, const float* far,
                     const float* jitter, const uint64_t* words, int64_t resolution, int64_t contracted, float step,
                     float growth, int64_t* counts, int64_t queue) {
    Bits grid{words, int32_t(resolution), contracted != 0};
    return for_each(queue, rays, [=] AIRE_LAMBDA(int64_t n) {
        int64_t found = 0;
        Ray ray = ray_at(origins, directions, near, far, jitter, grid.contracted, step, growth, n);
        march_on(ray, grid, step, growth, 0.0f, INT64_MAX, [&](float, float) { found++; });
        counts[n] = found;
    });
}

// counts [N] are those of aire_march_count, offsets [N] their sums up to each ray, that one included. A ray whose samples end
// beyond capacity is left out.
int aire_march_fill(int64_t rays, const float* origins, const float* directions, const float* near, const float* far,
                    const float* jitter, const uint64_t* words, int64_t resolution, int64_t contracted, float step,
                    float growth, const int64_t* offsets, const int64_t* counts, int64_t capacity, float* starts, float* ends,
                    int64_t* ray_indices, int64_t queue) {
    Bits grid{words, int32_t(resolution), contracted != 0};
    return for_each(queue, rays, [=] AIRE_LAMBDA(int64_t n) {
        if (offsets[n] > capacity) return;
        int64_t at = offsets[n] - counts[n];
        Ray ray = ray_at(origins, directions, near, far, jitter, grid.contracted, step, growth, n);
        march_on(ray, grid, step, growth, 0.0f, INT64_MAX, [&](float start, float end) {
            starts[at] = start;
            ends[at] = end;
            ray_indices[at++] = n;
        });
    });
}

// counts [N]: samples of each ray that light reaches, which are its first ones.
int aire_reached(int64_t rays, int64_t samples, const float* sigmas, const float* starts, const float* ends,
                 const int64_t* ray_indices, float limit, int64_t* counts, int64_t queue) {
    return for_each(queue, rays, [=] AIRE_LAMBDA(int64_t n) {
        int64_t begin = first_of(ray_indices, samples, n), i = begin;
        for (float before = 0.0f; before < limit && i < samples && ray_indices[i] == n; i++)
            before += sigmas[i] * (ends[i] - starts[i]);
        counts[n] = i - begin;
    });
}

// The first counts [N] samples of each ray, packed anew; offsets and capacity as in aire_march_fill.
int aire_compact(int64_t rays, int64_t samples, const float* starts, const float* ends, const int64_t* ray_indices,
                 const int64_t* offsets, const int64_t* counts, int64_t capacity, float* new_starts, float* new_ends,
                 int64_t* new_indices, int64_t queue) {
    return for_each(queue, rays, [=] AIRE_LAMBDA(int64_t n) {
        if (offsets[n] > capacity || counts[n] == 0) return;
        int64_t from = first_of(ray_indices, samples, n), to = offsets[n] - counts[n];
        for (int64_t i = 0; i < counts[n]; i++) {
            new_starts[to + i] = starts[from + i];
            new_ends[to + i] = ends[from + i];
            new_indices[to + i] = n;
        }
    });
}

// Adds to colour [N][C], accumulation [N] and distance [N]; thickness [N] is the optical depth so far.
int aire_composite(int64_t rays, int64_t samples, int64_t channels, const float* sigmas, const float* rgbs,
                   const float* starts, const float* ends, const int64_t* ray_indices, float* thickness, float* weights,
                   float* colour, float* accumulation, float* distance, int64_t queue) {
    return for_each(queue, rays, [=] AIRE_LAMBDA(int64_t n) {
        int64_t begin = first_of(ray_indices, samples, n), end = first_of(ray_indices, samples, n + 1);
        float before = thickness[n], total = accumulation[n], far = distance[n], *own = colour + n * channels;
        if (channels == 3)
            composite_ray<3>(begin, end, 3, sigmas, rgbs, starts, ends, before, weights, own, total, far);
        else
            composite_ray<0>(begin, end, channels, sigmas, rgbs, starts, ends, before, weights, own, total, far);
        thickness[n] = before;
        accumulation[n] = total;
        distance[n] = far;
    });
}

// What weights [M] (or null), colour, accumulation and distance ask of the samples of rays that began with nothing before.
int aire_composite_backward(int64_t rays, int64_t samples, int64_t channels, const float* sigmas, const float* rgbs,
                            const float* starts, const float* ends, const int64_t* ray_indices, const float* weights,
                            const float* g_weights, const float* g_colour, const float* g_accumulation,
                            const float* g_distance, float* d_sigmas, float* d_rgbs, int64_t queue) {
    return for_each(queue, rays, [=] AIRE_LAMBDA(int64_t n) {
        int64_t begin = first_of(ray_indices, samples, n), end = first_of(ray_indices, samples, n + 1);
        const float* own = g_colour + n * channels;
        if (channels == 3)
            composite_ray_backward<3>(begin, end, 3, sigmas, rgbs, starts, ends, weights, g_weights, own,
                                      g_accumulation[n], g_distance[n], d_sigmas, d_rgbs);
        else
            composite_ray_backward<0>(begin, end, channels, sigmas, rgbs, starts, ends, weights, g_weights, own,
                                      g_accumulation[n], g_distance[n], d_sigmas, d_rgbs);
    });
}

}  // extern "C"
