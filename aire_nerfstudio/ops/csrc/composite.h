// Volume rendering along one ray. Three channels have their sums in registers, and nothing that is written is read again
// through another pointer.
#pragma once

#include "ray.h"

// Samples begin to end of a ray. before: optical depth in front of them; CHANNELS: 3, or 0 for any number.
template <int CHANNELS>
AIRE_BOTH void composite_ray(int64_t begin, int64_t end, int64_t channels, const float* __restrict__ sigmas,
                             const float* __restrict__ rgbs, const float* __restrict__ starts,
                             const float* __restrict__ ends, float& before, float* __restrict__ weights,
                             float* __restrict__ colour, float& accumulation, float& distance) {
    constexpr int KEPT = CHANNELS > 0 ? CHANNELS : 1;
    float sums[KEPT];
    for (int c = 0; c < CHANNELS; c++) sums[c] = colour[c];
    for (int64_t i = begin; i < end; i++) {
        float start = starts[i], stop = ends[i];
        float here = sigmas[i] * (stop - start);
        float weight = expf(-before) * -expm1f(-here);
        weights[i] = weight;
        if (CHANNELS > 0)
            for (int c = 0; c < CHANNELS; c++) sums[c] += weight * rgbs[i * CHANNELS + c];
        else
            for (int64_t c = 0; c < channels; c++) colour[c] += weight * rgbs[i * channels + c];
        accumulation += weight;
        distance += weight * (0.5f * (start + stop));
        before += here;
    }
    for (int c = 0; c < CHANNELS; c++) colour[c] = sums[c];
}

// g_weights may be null; g_colour [channels] is the ray's.
template <int CHANNELS>
AIRE_BOTH void composite_ray_backward(int64_t begin, int64_t end, int64_t channels, const float* __restrict__ sigmas,
                                      const float* __restrict__ rgbs, const float* __restrict__ starts,
                                      const float* __restrict__ ends, const float* __restrict__ weights,
                                      const float* __restrict__ g_weights, const float* __restrict__ g_colour,
                                      float g_accumulation, float g_distance, float* __restrict__ d_sigmas,
                                      float* __restrict__ d_rgbs) {
    const int64_t count = CHANNELS > 0 ? CHANNELS : channels;
    float depth = 0;
    for (int64_t i = begin; i < end; i++) {
        depth += sigmas[i] * (ends[i] - starts[i]);
        d_sigmas[i] = expf(-depth);  // what passes the sample; kept here until the way back
    }
    float behind = 0;  // sum of gradient times weight over the samples behind
    for (int64_t i = end - 1; i >= begin; i--) {
        float start = starts[i], stop = ends[i], weight = weights[i];
        float g = g_accumulation + g_distance * (0.5f * (start + stop));
        if (g_weights) g += g_weights[i];
        for (int64_t c = 0; c < count; c++) {
            g += g_colour[c] * rgbs[i * count + c];
            d_rgbs[i * count + c] = weight * g_colour[c];
        }
        d_sigmas[i] = (stop - start) * (g * d_sigmas[i] - behind);
        behind += g * weight;
    }
}
