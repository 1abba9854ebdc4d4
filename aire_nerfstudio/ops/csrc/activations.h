// The three activations with their derivatives by z; fields/sine_layers.py has the table.
#pragma once

#include "vectors.h"

enum Kind { SIREN = 0, FINER = 1, FINER_DETACHED = 2, SPDER = 3 };

template <int KIND>
static inline __attribute__((always_inline)) void activate(vf z, float w, vf& value, vf& slope) {
    vf s, c;
    if (KIND == SIREN) {
        sincos(w * z, s, c);
        value = s;
        slope = w * c;
    } else if (KIND == FINER || KIND == FINER_DETACHED) {
        vf size = magnitude(z);
        sincos(w * (1 + size) * z, s, c);
        value = s;
        slope = w * (KIND == FINER ? 1 + 2 * size : 1 + size) * c;
    } else {
        vf u = w * z;
        sincos(u, s, c);
        vf root;
        for (int i = 0; i < LANES; i++) root[i] = std::sqrt(std::fabs(u[i]));
        vi is_zero = u == vf{};
        vf sign = floats((bits(u) & (int32_t)0x80000000) | 0x3f800000);
        vf steep = w * (c * root + s * sign / (2 * select(is_zero, splat(1), root)));
        value = s * root;
        slope = select(is_zero, vf{}, steep);
    }
}

// With the second and third derivative; where FINER's second jumps (z = 0) it is the mean of both sides. Not for SPDER,
// whose second derivative has no bound at 0.
template <int KIND>
static inline __attribute__((always_inline)) void activate3(vf z, float w, vf& value, vf& slope, vf& bend, vf& third) {
    vf s, c;
    if (KIND == SIREN) {
        sincos(w * z, s, c);
        value = s;
        slope = w * c;
        bend = (-w * w) * s;
        third = (-w * w * w) * c;
    } else {
        vf size = magnitude(z);
        sincos(w * (1 + size) * z, s, c);
        vf rate = w * (1 + 2 * size);
        vi is_zero = z == vf{};
        vf jump = 2 * w * select(is_zero, vf{}, floats((bits(z) & (int32_t)0x80000000) | 0x3f800000));
        value = s;
        slope = rate * c;
        bend = jump * c - rate * rate * s;
        third = -(rate * rate * rate) * c - 3 * rate * jump * s;
    }
}

// With the second derivative alone.
template <int KIND>
static inline __attribute__((always_inline)) void activate2(vf z, float w, vf& value, vf& slope, vf& bend) {
    vf third;  // left out by the compiler
    activate3<KIND>(z, w, value, slope, bend, third);
}
