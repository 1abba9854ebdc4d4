// All samples of a batch of rays on CUDA: each ray is a warp's, whose 32 lanes take as many of its samples at a time. A batch
// of some thousand rays is too few for a GPU whose threads would take one each, and wait for memory sample after sample.
//
// Names and arguments are those of rays_alone.h. Samples are the same to the bit, and so is what light reaches: optical
// depths are added one after the other. Other sums are added as a tree.
//
// Wants for_each_warp(queue, count, what(n, lane)); votes_for(vote) and from_lane(x, lane), which all lanes call together;
// ones(bits), how many there are.
#pragma once

#include "ray.h"

constexpr int LANES = 32;
constexpr uint32_t EVERYONE = 0xffffffffu;

// How many of a warp's first lanes voted for.
AIRE_WARP int until_first_against(uint32_t votes) { return ones(votes & ~(votes + 1)); }

// First of the samples, sorted by ray, that belongs to ray n or a later one.
AIRE_WARP int64_t first_of_together(const int64_t* ray_indices, int64_t samples, int64_t n, int lane) {
    int64_t low = 0, high = samples;
    while (low < high) {
        int64_t stride = (high - low + LANES - 1) / LANES, at = low + lane * stride;
        int64_t before = ones(votes_for(at < high && ray_indices[at] < n));
        if (before == 0) return low;
        int64_t end = low + before * stride;
        low = end - stride + 1;
        if (end < high) high = end;
    }
    return low;
}

// What lies before each lane's number and its warp's before: sums as of one thread, which adds one after the other. total,
// the sum so far, grows by all.
AIRE_WARP float before_each(float here, float& total, int lane) {
    float before = total;
    for (int other = 0; other < LANES; other++) {
        float x = from_lane(here, other);
        if (other < lane) before += x;
        total += x;
    }
    return before;
}

// The sum of all lanes' numbers, in all of them.
AIRE_WARP float sum_of_all(float x, int lane) {
    for (int apart = 1; apart < LANES; apart *= 2) x += from_lane(x, lane ^ apart);
    return x;
}

// The sum of later lanes' numbers; total, that of all.
AIRE_WARP float behind_each(float here, float& total, int lane) {
    float sum = here;
    for (int apart = 1; apart < LANES; apart *= 2) {
        float x = from_lane(sum, (lane + apart) % LANES);
        if (lane + apart < LANES) sum += x;
    }
    total = from_lane(sum, 0);
    float behind = from_lane(sum, (lane + 1) % LANES);
    return lane + 1 < LANES ? behind : 0.0f;
}

// take(samples, start, end) by all lanes at once, for each 32 candidates of which some are samples: samples has a bit for each
// lane that has one, from start to end.
template <class Take>
AIRE_WARP void march_together(const Ray& ray, const Bits& grid, float step, float growth, int lane, Take take) {
    if (growth > 0.0f || grid.contracted) {
        // Where a sample begins is known from the one before: the first lane goes alone, and hands on one at a time.
        float at = ray.first, start = 0.0f, end = 0.0f;
        while (true) {
            bool found = false;
            if (lane == 0)
                at = march_growing(ray, grid, step, growth, at, 1, [&](float from, float to) {
                    found = true;
                    start = from;
                    end = to;
                });
            uint32_t samples = votes_for(found);
            if (samples == 0) return;
            take(samples, start, end);
        }
    }
    for (int32_t begin = 0; begin < MOST_STEPS; begin += LANES) {
        float start = ray.first + float(begin + lane) * step, middle = start + 0.5f * step;
        bool there = middle < ray.far, found = false;
        if (there && !(middle < ray.near)) {
            float place[3];
            int32_t voxel[3];
            int level;
            for (int k = 0; k < 3; k++) place[k] = ray.o[k] + middle * ray.d[k];
            to_voxel(grid, place, voxel);
            found = is_occupied(grid, voxel, level);
        }
        uint32_t samples = votes_for(found);
        if (samples) take(samples, start, start + step);
        if (votes_for(there) != EVERYONE) return;
    }
}

extern "C" {

int aire_march_count(int64_t rays, const float* origins, const float* directions, const float* near, const float* far,
                     const float* jitter, const uint64_t* words, int64_t resolution, int64_t contracted, float step,
                     float growth, int64_t* counts, int64_t queue) {
    Bits grid{words, int32_t(resolution), contracted != 0};
    return for_each_warp(queue, rays, [=] AIRE_LAMBDA(int64_t n, int lane) {
        int64_t found = 0;
        Ray ray = ray_at(origins, directions, near, far, jitter, grid.contracted, step, growth, n);
        march_together(ray, grid, step, growth, lane, [&](uint32_t samples, float, float) { found += ones(samples); });
        if (lane == 0) counts[n] = found;
    });
}

int aire_march_fill(int64_t rays, const float* origins, const float* directions, const float* near, const float* far,
                    const float* jitter, const uint64_t* words, int64_t resolution, int64_t contracted, float step,
                    float growth, const int64_t* offsets, const int64_t* counts, int64_t capacity, float* starts, float* ends,
                    int64_t* ray_indices, int64_t queue) {
    Bits grid{words, int32_t(resolution), contracted != 0};
    return for_each_warp(queue, rays, [=] AIRE_LAMBDA(int64_t n, int lane) {
        if (offsets[n] > capacity) return;
        int64_t at = offsets[n] - counts[n];
        Ray ray = ray_at(origins, directions, near, far, jitter, grid.contracted, step, growth, n);
        march_together(ray, grid, step, growth, lane, [&](uint32_t samples, float start, float end) {
            int64_t own = at + ones(samples & ((1u << lane) - 1));
            if (samples >> lane & 1) {
                starts[own] = start;
                ends[own] = end;
                ray_indices[own] = n;
            }
            at += ones(samples);
        });
    });
}

int aire_reached(int64_t rays, int64_t samples, const float* sigmas, const float* starts, const float* ends,
                 const int64_t* ray_indices, float limit, int64_t* counts, int64_t queue) {
    return for_each_warp(queue, rays, [=] AIRE_LAMBDA(int64_t n, int lane) {
        int64_t found = 0, begin = first_of_together(ray_indices, samples, n, lane);
        float depth = 0.0f;
        for (int lit = LANES; lit == LANES; begin += LANES) {
            int64_t i = begin + lane;
            bool own = i < samples && ray_indices[i] == n;
            float before = before_each(own ? sigmas[i] * (ends[i] - starts[i]) : 0.0f, depth, lane);
            lit = until_first_against(votes_for(own && before < limit));
            found += lit;
        }
        if (lane == 0) counts[n] = found;
    });
}

int aire_compact(int64_t rays, int64_t samples, const float* starts, const float* ends, const int64_t* ray_indices,
                 const int64_t* offsets, const int64_t* counts, int64_t capacity, float* new_starts, float* new_ends,
                 int64_t* new_indices, int64_t queue) {
    return for_each_warp(queue, rays, [=] AIRE_LAMBDA(int64_t n, int lane) {
        if (offsets[n] > capacity || counts[n] == 0) return;
        int64_t from = first_of_together(ray_indices, samples, n, lane), to = offsets[n] - counts[n];
        for (int64_t i = lane; i < counts[n]; i += LANES) {
            new_starts[to + i] = starts[from + i];
            new_ends[to + i] = ends[from + i];
            new_indices[to + i] = n;
        }
    });
}

int aire_composite(int64_t rays, int64_t samples, int64_t channels, const float* sigmas, const float* rgbs,
                   const float* starts, const float* ends, const int64_t* ray_indices, float* thickness, float* weights,
                   float* colour, float* accumulation, float* distance, int64_t queue) {
    return for_each_warp(queue, rays, [=] AIRE_LAMBDA(int64_t n, int lane) {
        int64_t begin = first_of_together(ray_indices, samples, n, lane);
        int64_t end = first_of_together(ray_indices, samples, n + 1, lane);
        float depth = thickness[n], total = 0.0f, far = 0.0f;
        for (int64_t at = begin; at < end; at += LANES) {
            int64_t i = at + lane;
            bool own = i < end;
            float start = own ? starts[i] : 0.0f, stop = own ? ends[i] : 0.0f;
            float here = own ? sigmas[i] * (stop - start) : 0.0f;
            float before = before_each(here, depth, lane), weight = own ? expf(-before) * -expm1f(-here) : 0.0f;
            if (own) weights[i] = weight;
            total += weight;
            far += weight * (0.5f * (start + stop));
        }
        total = sum_of_all(total, lane);
        far = sum_of_all(far, lane);
        for (int64_t c = 0; c < channels; c++) {
            float sum = 0.0f;
            for (int64_t i = begin + lane; i < end; i += LANES) sum += weights[i] * rgbs[i * channels + c];
            sum = sum_of_all(sum, lane);
            if (lane == 0) colour[n * channels + c] += sum;
        }
        if (lane > 0) return;
        thickness[n] = depth;
        accumulation[n] += total;
        distance[n] += far;
    });
}

int aire_composite_backward(int64_t rays, int64_t samples, int64_t channels, const float* sigmas, const float* rgbs,
                            const float* starts, const float* ends, const int64_t* ray_indices, const float* weights,
                            const float* g_weights, const float* g_colour, const float* g_accumulation,
                            const float* g_distance, float* d_sigmas, float* d_rgbs, int64_t queue) {
    return for_each_warp(queue, rays, [=] AIRE_LAMBDA(int64_t n, int lane) {
        int64_t begin = first_of_together(ray_indices, samples, n, lane);
        int64_t end = first_of_together(ray_indices, samples, n + 1, lane);
        float depth = 0.0f;
        for (int64_t at = begin; at < end; at += LANES) {
            int64_t i = at + lane;
            float here = i < end ? sigmas[i] * (ends[i] - starts[i]) : 0.0f;
            float before = before_each(here, depth, lane);
            // What passes the sample; kept here until this lane comes back.
            if (i < end) d_sigmas[i] = expf(-(before + here));
        }
        float behind = 0.0f;  // sum of gradient times weight over the samples behind
        for (int64_t at = begin + (end - begin + LANES - 1) / LANES * LANES - LANES; at >= begin; at -= LANES) {
            int64_t i = at + lane;
            bool own = i < end;
            float length = 0.0f, g = 0.0f, weight = 0.0f, all = 0.0f;
            if (own) {
                float start = starts[i], stop = ends[i];
                length = stop - start;
                weight = weights[i];
                g = g_accumulation[n] + g_distance[n] * (0.5f * (start + stop));
                if (g_weights) g += g_weights[i];
                for (int64_t c = 0; c < channels; c++) {
                    g += g_colour[n * channels + c] * rgbs[i * channels + c];
                    d_rgbs[i * channels + c] = weight * g_colour[n * channels + c];
                }
            }
            float after = behind + behind_each(own ? g * weight : 0.0f, all, lane);
            if (own) d_sigmas[i] = length * (g * d_sigmas[i] - after);
            behind += all;
        }
    });
}

}  // extern "C"
