// What happens along one ray, and to one voxel: the same source for the processor and for CUDA, so that both find the
// same samples. Compiled without contraction of a * b + c, so that they are PyTorch's to the bit as well.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define AIRE_BOTH __host__ __device__ __forceinline__
#else
#define AIRE_BOTH inline
#endif

// Spreads the lowest 10 bits out: bit i goes to 3 i.
AIRE_BOTH uint32_t spread(uint32_t v) {
    v &= 0x3ff;
    v = (v | v << 16) & 0x030000ff;
    v = (v | v << 8) & 0x0300f00f;
    v = (v | v << 4) & 0x030c30c3;
    return (v | v << 2) & 0x09249249;
}
AIRE_BOTH uint32_t gather(uint32_t v) {
    v &= 0x09249249;
    v = (v | v >> 2) & 0x030c30c3;
    v = (v | v >> 4) & 0x0300f00f;
    v = (v | v >> 8) & 0x030000ff;
    return (v | v >> 16) & 0x3ff;
}
// x in the lowest of each three bits.
AIRE_BOTH uint32_t morton(uint32_t x, uint32_t y, uint32_t z) { return spread(x) | spread(y) << 1 | spread(z) << 2; }

AIRE_BOTH int64_t between(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }

// Occupancy of [-1, 1]^3: one bit a voxel in Morton order, so that 64 bits are a block of 4 x 4 x 4. Where contracted, that
// cube holds all of space.
struct Bits {
    const uint64_t* words;
    int32_t resolution;
    bool contracted;
};

// Largest component of a point, whose place in the cube that holds all of space it is scaled to: [-1, 1]^3 takes the middle
// half of each side, what lies outside the rest.
AIRE_BOTH float contract(float (&p)[3]) {
    float size = fmaxf(fmaxf(fabsf(p[0]), fabsf(p[1])), fabsf(p[2]));
    float scale = 0.5f * (size > 1.0f ? (2.0f - 1.0f / size) / size : 1.0f);
    for (int k = 0; k < 3; k++) p[k] *= scale;
    return size;
}

// Whether the voxel at v (in voxels) is occupied; if not, level says that the whole block of 2^level voxels a side is empty.
AIRE_BOTH bool is_occupied(const Bits& grid, const int32_t (&voxel)[3], int& level) {
    uint32_t at = morton(voxel[0], voxel[1], voxel[2]);
    uint64_t word = grid.words[at >> 6];
    level = 2;
    if (word == 0) return false;
    level = 1;
    if ((word >> (at & 56) & 0xff) == 0) return false;
    level = 0;
    return word >> (at & 63) & 1;
}

struct Ray {
    float o[3], d[3], near, far, first;  // the first sample begins at first; where steps do not grow, sample i at first + i step
};

// Largest component of the ray's point at t.
AIRE_BOTH float size_at(const Ray& ray, float t) {
    float size = 0.0f;
    for (int k = 0; k < 3; k++) size = fmaxf(size, fabsf(ray.o[k] + t * ray.d[k]));
    return size;
}

// Length of the sample that begins at t: max(step, growth t), and where the grid is contracted what makes samples on a ray
// towards the middle equally long there; outwards, where that would have no bound, as much.
AIRE_BOTH float length_at(const Ray& ray, bool contracted, float step, float growth, float t) {
    float length = step;
    if (contracted) {
        float beyond = fmaxf(1.0f, size_at(ray, t));
        length = fmaxf(step, step * (beyond * beyond) / (1.0f + step * beyond));
    }
    return fmaxf(length, growth * t);
}

AIRE_BOTH Ray ray_at(const float* origins, const float* directions, const float* near, const float* far,
                     const float* jitter, bool contracted, float step, float growth, int64_t n) {
    Ray ray;
    float sum = 0.0f;
    for (int k = 0; k < 3; k++) {
        ray.o[k] = origins[3 * n + k];
        ray.d[k] = directions[3 * n + k];
        sum += ray.o[k] + ray.d[k];
    }
    ray.near = near[n];
    ray.far = fabsf(sum) < INFINITY ? far[n] : -INFINITY;  // of a ray that is none there are no samples
    ray.first = near[n];
    if (jitter) ray.first += (jitter[n] - 1.0f) * length_at(ray, contracted, step, growth, near[n]);
    return ray;
}

// What rounding of a point's place may amount to, as a distance along the ray: on a face that a ray grazes a great deal.
AIRE_BOTH float doubt(const Ray& ray, float t, int k) {
    return 5e-7f * fmaxf(1.0f, fabsf(ray.o[k]) + fabsf(t * ray.d[k])) / fabsf(ray.d[k]);
}

// The voxel of a place in [-1, 1]^3, which becomes one in voxels.
AIRE_BOTH void to_voxel(const Bits& grid, float (&place)[3], int32_t (&voxel)[3]) {
    const float half = 0.5f * float(grid.resolution);
    for (int k = 0; k < 3; k++) {
        place[k] = (place[k] + 1.0f) * half;
        voxel[k] = int32_t(fminf(fmaxf(place[k], 0.0f), float(grid.resolution - 1)));
    }
}

// How far it is from the ray's point at t, at `place` in voxels, to the end of its block of 2^level voxels a side, along
// whichever axis that comes first; rate is voxels a unit.
AIRE_BOTH float left_of_block(const Ray& ray, float t, const float (&place)[3], const int32_t (&voxel)[3], int level, float rate) {
    float left = INFINITY;
    for (int k = 0; k < 3; k++) {
        if (fabsf(ray.d[k]) < 1e-12f) continue;
        int32_t block = voxel[k] >> level;
        float edge = float((ray.d[k] > 0 ? block + 1 : block) << level);
        left = fminf(left, (edge - place[k]) / (ray.d[k] * rate) - doubt(ray, t, k));
    }
    return left;
}

// A float holds integers up to here; a ray has fewer samples, or never ends.
constexpr int32_t MOST_STEPS = 1 << 24;

// take(start, end) for each sample in an occupied voxel, from index `begin` on and at most `most` of them. Returns the index to
// go on from, MOST_STEPS once the ray has ended.
template <class Take>
AIRE_BOTH int32_t march(const Ray& ray, const Bits& grid, float step, int32_t begin, int64_t most, Take take) {
    const float half = 0.5f * float(grid.resolution);
    // Rounding must not jump over a sample that lies on a voxel's edge.
    const float margin = fmaxf(0.01f * step, 1e-5f);
    int64_t found = 0;
    for (int32_t i = begin; i < MOST_STEPS;) {
        if (found == most) return i;
        float start = ray.first + float(i) * step, middle = start + 0.5f * step;
        if (!(middle < ray.far)) break;
        if (middle < ray.near) {
            i++;
            continue;
        }
        float place[3];
        int32_t voxel[3];
        for (int k = 0; k < 3; k++) place[k] = ray.o[k] + middle * ray.d[k];
        to_voxel(grid, place, voxel);
        int level;
        if (is_occupied(grid, voxel, level)) {
            take(start, start + step);
            found++;
            i++;
            continue;
        }
        float left = fminf(4.0f, left_of_block(ray, middle, place, voxel, level, half));
        float steps = (left - margin) / step;
        i += steps > 0.0f ? 1 + int32_t(steps) : 1;
    }
    return MOST_STEPS;
}

// As march, but samples have length_at, and the grid may be contracted. Goes on from the distance t, which a sample may
// begin at; MOST_STEPS once the ray has ended.
template <class Take>
AIRE_BOTH float march_growing(const Ray& ray, const Bits& grid, float step, float growth, float t, int64_t most, Take take) {
    const float rate = (grid.contracted ? 0.25f : 0.5f) * float(grid.resolution);
    int64_t found = 0;
    float until = -INFINITY;
    while (true) {
        if (found == most) return t;
        float length = length_at(ray, grid.contracted, step, growth, t);
        float middle = t + 0.5f * length, next = t + length;
        if (!(middle < ray.far) || !(next > t)) return float(MOST_STEPS);
        if (middle < ray.near || middle < until) {
            t = next;
            continue;
        }
        float point[3], place[3], size = 0.0f;
        for (int k = 0; k < 3; k++) place[k] = point[k] = ray.o[k] + middle * ray.d[k];
        if (grid.contracted) size = contract(place);
        int32_t voxel[3];
        to_voxel(grid, place, voxel);
        int level;
        if (is_occupied(grid, voxel, level)) {
            take(t, next);
            found++;
        } else if (size <= 1.0f) {
            // To the end of the empty block, and where space is contracted no further than that begins.
            float left = left_of_block(ray, middle, place, voxel, level, rate);
            for (int k = 0; k < 3 && grid.contracted; k++) {
                if (fabsf(ray.d[k]) < 1e-12f) continue;
                left = fminf(left, ((ray.d[k] > 0 ? 1.0f : -1.0f) - point[k]) / ray.d[k] - doubt(ray, middle, k));
            }
            until = middle + left - fmaxf(fmaxf(0.01f * step, 1e-5f), 1e-6f * middle);
        }
        t = next;
    }
}

// The samples of a ray from `begin` on, which is 0 at first, by whichever march it takes; where to go on.
template <class Take>
AIRE_BOTH float march_on(const Ray& ray, const Bits& grid, float step, float growth, float begin, int64_t most, Take take) {
    if (growth > 0.0f || grid.contracted)
        return march_growing(ray, grid, step, growth, begin == 0.0f ? ray.first : begin, most, take);
    return float(march(ray, grid, step, int32_t(begin), most, take));
}

// First of the samples, sorted by ray, that belongs to ray n or a later one.
AIRE_BOTH int64_t first_of(const int64_t* ray_indices, int64_t samples, int64_t n) {
    int64_t low = 0, high = samples;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (ray_indices[middle] < n)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
