// Vectors of LANES floats, sine and cosine, and the matrix-product kernel, for whatever the compiler's flags allow.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__FMA__)
#include <immintrin.h>
#endif

#if defined(AIRE_BF16_TERMS)
constexpr int LANES = 16, MR = 16, ROW_STEP = 32;  // the tile unit's
#elif defined(__AVX512F__)
constexpr int LANES = 16, MR = 12, ROW_STEP = MR;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8, MR = 6, ROW_STEP = MR;
#else
constexpr int LANES = 4, MR = 4, ROW_STEP = MR;
#endif
// The kernel keeps MR rows by two vectors of results in registers; tiles of rows are multiples of ROW_STEP.
constexpr int NR = 2 * LANES;

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef float vf_anywhere __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline vf load(const float* p) { return *reinterpret_cast<const vf_anywhere*>(p); }
static inline void store(float* p, vf v) { *reinterpret_cast<vf_anywhere*>(p) = v; }
static inline vf splat(float x) { return x - vf{}; }
static inline vi bits(vf v) { return (vi)v; }
static inline vf floats(vi v) { return (vf)v; }
static inline vf select(vi mask, vf yes, vf no) { return floats((bits(yes) & mask) | (bits(no) & ~mask)); }
static inline vf magnitude(vf v) { return floats(bits(v) & 0x7fffffff); }

static inline float sum(vf v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

// a - b c, rounded once: the reduction below rests on it, whatever the compiler makes of other expressions.
#if defined(__AVX512F__)
static inline vf minus_product(vf a, vf b, float c) { return (vf)_mm512_fnmadd_ps((__m512)b, _mm512_set1_ps(c), (__m512)a); }
#elif defined(__AVX2__) && defined(__FMA__)
static inline vf minus_product(vf a, vf b, float c) { return (vf)_mm256_fnmadd_ps((__m256)b, _mm256_set1_ps(c), (__m256)a); }
#endif

// Largest |x| that the reduction below takes to full accuracy; a network that diverges goes beyond.
constexpr float LARGEST_ANGLE = 3e4f;

static void __attribute__((noinline)) sincos_slow(vf x, vf& s, vf& c) {
    for (int i = 0; i < LANES; i++) {
        s[i] = std::sin(x[i]);
        c[i] = std::cos(x[i]);
    }
}

// Sine and cosine, absolute error below 2e-7. Reduction to [-pi/4, pi/4] in two parts, then Cephes' polynomials.
static inline void sincos(vf x, vf& s, vf& c) {
#if defined(__FMA__)
    vi beyond = ~(magnitude(x) <= splat(LARGEST_ANGLE));  // true of NaN as well
    bool any = false;
#if defined(__AVX512F__)
    any = _mm512_test_epi32_mask((__m512i)beyond, (__m512i)beyond) != 0;
#else
    any = _mm256_movemask_ps((__m256)beyond) != 0;
#endif
    if (__builtin_expect(any, 0)) return sincos_slow(x, s, c);
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    vf shifted = x * 0.636619772f + magic;
    vf q = shifted - magic;
    vi quadrant = bits(shifted);
    vf r = minus_product(minus_product(x, q, 1.57079637050628662f), q, -4.37113900018624283e-8f);
    vf r2 = r * r;
    vf ps = r2 * -1.9515295891e-4f + 8.3321608736e-3f;
    ps = ps * r2 - 1.6666654611e-1f;
    ps = (ps * r2) * r + r;
    vf pc = r2 * 2.443315711809948e-5f - 1.388731625493765e-3f;
    pc = pc * r2 + 4.166664568298827e-2f;
    pc = pc * r2 - 0.5f;
    pc = pc * r2 + 1.0f;
    vi odd = -(quadrant & 1);
    s = floats(bits(select(odd, pc, ps)) ^ ((quadrant & 2) << 30));
    c = floats(bits(select(odd, ps, pc)) ^ (((quadrant + 1) & 2) << 30));
#else
    sincos_slow(x, s, c);  // without fused multiply-add the reduction above is not exact
#endif
}

// acc = A B for ROWS of A and NR columns of B: A[i * lda + k] (or A[k * lda + i] where TRANSPOSED), B[k * NR + n].
template <bool TRANSPOSED, int ROWS = MR>
static inline __attribute__((always_inline)) void multiply(
    const float* A, int64_t lda, const float* B, int64_t ldb, int64_t depth, vf (*acc)[2]) {
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = vf{};
    for (int64_t k = 0; k < depth; k++) {
        vf b0 = load(B), b1 = load(B + LANES);
        B += ldb;
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; i++) {
            float a = TRANSPOSED ? A[k * lda + i] : A[i * lda + k];
            acc[i][0] += a * b0;
            acc[i][1] += a * b1;
        }
    }
}
