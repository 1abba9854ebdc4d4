// Products of float32 matrices through bfloat16 units: the tile unit (AMX) where the flags allow it, vdpbf16ps elsewhere.
//
// A float32 number is taken as the sum of TERMS bfloat16 numbers. With two, a product is three (low x low is left out)
// and its relative error is below 2^-16; with one it is plain bfloat16, 2^-8. Sums are float32 in both.
// Operands are laid out as 16 x 32 tiles of a kilobyte, the terms of a tile one after the other, highest first.
#pragma once

#include <immintrin.h>

#include "vectors.h"

constexpr int TERMS = AIRE_BF16_TERMS;
constexpr int64_t SIDE = 16, DEPTH = 32;      // of a tile: rows (or columns), and what is summed over
constexpr int64_t TILE = SIDE * DEPTH / 2;    // in floats
static_assert(MR == SIDE && NR == 2 * SIDE && LANES == SIDE, "the tile unit's shape");

static inline int64_t tiles(int64_t n, int64_t of) { return (n + of - 1) / of; }
// Floats that an operand of n rows (or columns) by depth takes, laid out.
static inline int64_t operand_floats(int64_t n, int64_t depth) { return tiles(n, NR) * 2 * tiles(depth, DEPTH) * TERMS * TILE; }

// x = high + rest, high having the bits of a bfloat16 (rounded half up in magnitude).
static inline __m512 high_part(__m512 x) {
    __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(0xffff0000)));
}

// Two vectors' upper halves as one of 32: a's elements, then b's.
static inline __m512i side_by_side(__m512 a, __m512 b) {
    const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                         23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(_mm512_castps_si512(a), odd, _mm512_castps_si512(b));
}

// Two vectors' upper halves as pairs: a's element in the low half of each 32 bits, b's in the high.
static inline __m512i in_pairs(__m512 a, __m512 b) {
    return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(a), 16), _mm512_castps_si512(b));
}

// What a tile's row takes of two vectors: put(term, 32 bfloat16), joined by JOIN.
template <__m512i (*JOIN)(__m512, __m512), class Put>
static inline __attribute__((always_inline)) void split(__m512 a, __m512 b, Put put) {
    __m512 a0 = high_part(a), b0 = high_part(b);
    put(0, JOIN(a0, b0));
    if (TERMS == 2) put(1, JOIN(high_part(_mm512_sub_ps(a, a0)), high_part(_mm512_sub_ps(b, b0))));
}

static inline __mmask16 first(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }
static inline __m512i* tile_row(float* tile, int64_t row) { return reinterpret_cast<__m512i*>(tile + row * SIDE); }

// Left operand from rows of A: [rows / 16][depth / 32][term][16][32]. rows: a multiple of 16.
static void lay_rows(const float* A, int64_t lda, int64_t rows, int64_t depth, float* out) {
    int64_t steps = tiles(depth, DEPTH);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < steps; s++) {
            const float* from = A + r * lda + s * DEPTH;
            float* tile = out + ((r / SIDE * steps + s) * TERMS) * TILE;
            int64_t left = depth - s * DEPTH;
            __m512 a = _mm512_maskz_loadu_ps(first(left), from), b = _mm512_maskz_loadu_ps(first(left - 16), from + 16);
            split<side_by_side>(a, b, [=](int t, __m512i v) { _mm512_storeu_si512(tile_row(tile + t * TILE, r % SIDE), v); });
        }
}

// Right operand from B given as B[k][column], k < depth: [columns / 16][depth / 32][term][16 pairs of k][16][2].
static void lay_pairs(const float* B, int64_t ldb, int64_t depth, int64_t columns, float* out) {
    int64_t steps = tiles(depth, DEPTH);
    for (int64_t k = 0; k < steps * DEPTH; k += 2)
        for (int64_t c = 0; c < tiles(columns, NR) * 2; c++) {
            const float* from = B + k * ldb + c * SIDE;
            __mmask16 there = first(columns - c * SIDE);
            __m512 a = k < depth ? _mm512_maskz_loadu_ps(there, from) : _mm512_setzero_ps();
            __m512 b = k + 1 < depth ? _mm512_maskz_loadu_ps(there, from + ldb) : _mm512_setzero_ps();
            float* tile = out + ((c * steps + k / DEPTH) * TERMS) * TILE;
            split<in_pairs>(a, b, [=](int t, __m512i v) { _mm512_storeu_si512(tile_row(tile + t * TILE, k % DEPTH / 2), v); });
        }
}

// 16 x 16 of 32 bits, transposed.
static inline void transpose(__m512i (&v)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        v[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        v[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

// Left operand from the transpose of G: rows are G's columns, what is summed over are G's rows.
static void lay_columns(const float* G, int64_t ldg, int64_t depth, int64_t columns, float* out) {
    int64_t steps = tiles(depth, DEPTH);
    for (int64_t s = 0; s < steps; s++)
        for (int64_t c = 0; c < tiles(columns, NR) * 2; c++) {
            __m512i rows[TERMS][16];
            __mmask16 there = first(columns - c * SIDE);
            for (int p = 0; p < 16; p++) {
                int64_t k = s * DEPTH + 2 * p;
                const float* from = G + k * ldg + c * SIDE;
                __m512 a = k < depth ? _mm512_maskz_loadu_ps(there, from) : _mm512_setzero_ps();
                __m512 b = k + 1 < depth ? _mm512_maskz_loadu_ps(there, from + ldg) : _mm512_setzero_ps();
                split<in_pairs>(a, b, [&](int t, __m512i v) { rows[t][p] = v; });
            }
            float* tile = out + ((c * steps + s) * TERMS) * TILE;
            for (int t = 0; t < TERMS; t++) {
                transpose(rows[t]);
                for (int r = 0; r < 16; r++) _mm512_storeu_si512(tile_row(tile + t * TILE, r), rows[t][r]);
            }
        }
}

// Sums of 16 rows by 32 columns, as the callers of product() take them.
struct alignas(64) Sums {
    vf of[MR][2];
};

#if defined(__AMX_BF16__)

// Tile registers are a thread's own; to hold them while others run costs at every change of thread.
struct TileUnit {
    TileUnit() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shape;
        asm volatile("" ::: "memory");  // the intrinsic does not say that it reads all of it
        _tile_loadconfig(&shape);
    }
    ~TileUnit() { _tile_release(); }
};

// HEIGHT tiles of rows by two of columns: a at A (and A + a_next), b at B and B + b_next, steps tiles deep.
template <int HEIGHT>
static inline void multiply_tiles(const float* A, int64_t a_next, const float* B, int64_t b_next, int64_t steps, Sums* sums) {
    asm volatile("" ::: "memory");  // nor the loads
    _tile_zero(0);
    _tile_zero(1);
    if (HEIGHT == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    // The smallest terms first; each operand is loaded once.
#define AIRE_TILES_A(TERM)                                                      \
    _tile_loadd(4, A + (TERM) * TILE, 64);                                      \
    if (HEIGHT == 2) _tile_loadd(5, A + a_next + (TERM) * TILE, 64);
#define AIRE_TILES_B(TERM)                                                      \
    _tile_loadd(6, B + (TERM) * TILE, 64);                                      \
    _tile_loadd(7, B + b_next + (TERM) * TILE, 64);
#define AIRE_TILES_MULTIPLY                                                     \
    _tile_dpbf16ps(0, 4, 6);                                                    \
    _tile_dpbf16ps(1, 4, 7);                                                    \
    if (HEIGHT == 2) {                                                          \
        _tile_dpbf16ps(2, 5, 6);                                                \
        _tile_dpbf16ps(3, 5, 7);                                                \
    }
    for (int64_t s = 0; s < steps; s++) {
        AIRE_TILES_B(0)
        if (TERMS == 2) {
            AIRE_TILES_A(1)
            AIRE_TILES_MULTIPLY
        }
        AIRE_TILES_A(0)
        AIRE_TILES_MULTIPLY
        if (TERMS == 2) {
            AIRE_TILES_B(1)
            AIRE_TILES_MULTIPLY
        }
        A += TERMS * TILE;
        B += TERMS * TILE;
    }
#undef AIRE_TILES_A
#undef AIRE_TILES_B
#undef AIRE_TILES_MULTIPLY
    _tile_stored(0, &sums[0].of[0][0], NR * 4);
    _tile_stored(1, &sums[0].of[0][1], NR * 4);
    if (HEIGHT == 2) {
        _tile_stored(2, &sums[1].of[0][0], NR * 4);
        _tile_stored(3, &sums[1].of[0][1], NR * 4);
    }
}

#else

struct TileUnit {};

template <int HEIGHT>
static inline void multiply_tiles(const float* A, int64_t a_next, const float* B, int64_t b_next, int64_t steps, Sums* sums) {
    constexpr int ROWS = 8;  // by two vectors: 16 accumulators
    for (int h = 0; h < HEIGHT; h++)
        for (int r = 0; r < SIDE; r += ROWS) {
            __m512 acc[ROWS][2];
            for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
            for (int64_t s = 0; s < steps; s++)
                // Terms in the order of the tile unit: low x high, high x high, high x low.
                for (int q = TERMS == 2 ? 0 : 1; q < (TERMS == 2 ? 3 : 2); q++) {
                    const float* a = A + h * a_next + (s * TERMS + (q == 0)) * TILE + r * SIDE;
                    const float* b = B + (s * TERMS + (q == 2)) * TILE;
                    for (int p = 0; p < 16; p++) {
                        __m512bh b0 = (__m512bh)_mm512_loadu_ps(b + p * SIDE), b1 = (__m512bh)_mm512_loadu_ps(b + b_next + p * SIDE);
#pragma GCC unroll 8
                        for (int i = 0; i < ROWS; i++) {
                            __m512bh x = (__m512bh)_mm512_set1_ps(a[i * SIDE + p]);
                            acc[i][0] = _mm512_dpbf16_ps(acc[i][0], x, b0);
                            acc[i][1] = _mm512_dpbf16_ps(acc[i][1], x, b1);
                        }
                    }
                }
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < 2; j++) sums[h].of[r + i][j] = (vf)acc[i][j];
        }
}

#endif

// Sums of every 16 rows by 32 columns of A B, both laid out: take(row, column, sums).
template <class Take>
static inline __attribute__((always_inline)) void multiply_laid(
    const float* A, int64_t rows, const float* B, int64_t columns, int64_t depth, Take take) {
    int64_t steps = tiles(depth, DEPTH), next = steps * TERMS * TILE;
    Sums sums[2];
    for (int64_t n = 0; n < columns; n += NR) {
        const float* right = B + n / SIDE * next;
        int64_t r = 0;
        for (; r + 2 * SIDE <= rows; r += 2 * SIDE) {
            multiply_tiles<2>(A + r / SIDE * next, next, right, next, steps, sums);
            take(r, n, sums[0].of);
            take(r + SIDE, n, sums[1].of);
        }
        if (r < rows) {
            multiply_tiles<1>(A + r / SIDE * next, next, right, next, steps, sums);
            take(r, n, sums[0].of);
        }
    }
}
