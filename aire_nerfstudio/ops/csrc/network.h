// A sine network as the kernels see it: padded widths, weights packed into panels, gradients of one thread.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "activations.h"
#if defined(AIRE_BF16_TERMS)
#include "bfloat16.h"
#endif

static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
// Floats between two rows of a layer's values: whole panels, and a step off powers of two, which would share cache sets.
static inline int64_t row_length(int64_t width) { return up(width, NR) + 16; }

// Zeroed, aligned memory.
struct Buffer {
    float* p;
    explicit Buffer(int64_t count) {
        size_t bytes = up(count * 4 + 64, 64);
        p = static_cast<float*>(std::aligned_alloc(64, bytes));
        if (!p) throw std::bad_alloc();
        std::memset(p, 0, bytes);
    }
    Buffer(const Buffer&) = delete;
    Buffer(Buffer&& other) noexcept : p(other.p) { other.p = nullptr; }
    ~Buffer() { std::free(p); }
};

struct Network {
    int layers;              // sine layers; weights and biases have one more
    const int64_t* sizes;    // in, widths..., out: layers + 2 numbers
    const float* const* W;   // [sizes[l + 1], sizes[l]]
    const float* const* b;
    const float* omega;      // of each sine layer
    int64_t in() const { return sizes[0]; }
    int64_t out() const { return sizes[layers + 1]; }
    int64_t width(int l) const { return sizes[l + 1]; }  // of sine layer l, 0 first
    int64_t widest() const { return *std::max_element(sizes, sizes + layers + 2); }
};

// Panels of W^T: NR outputs at a time, [ceil(n / NR)][k][NR].
static Buffer pack_forward(const float* W, int64_t n, int64_t k) {
    Buffer packed(up(n, NR) * k);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < k; i++) packed.p[(j / NR) * k * NR + i * NR + j % NR] = W[j * k + i];
    return packed;
}

// Panels of W: NR inputs at a time, [ceil(k / NR)][n][NR].
static Buffer pack_backward(const float* W, int64_t n, int64_t k) {
    Buffer packed(up(k, NR) * n);
    for (int64_t i0 = 0; i0 < k; i0 += NR)
        for (int64_t j = 0; j < n; j++)
            std::memcpy(packed.p + i0 * n + j * NR, W + j * k + i0, 4 * std::min<int64_t>(NR, k - i0));
    return packed;
}

static Buffer pad(const float* values, int64_t n) {
    Buffer padded(up(n, NR));
    std::memcpy(padded.p, values, 4 * n);
    return padded;
}

// Inputs and outputs of up to so many columns have kernels of their own: padded to NR they would cost as a layer does.
// They are float32 in every build: coordinates do not bear rounding.
constexpr int64_t NARROW = 8;

// Panels for product() over a depth of k: W[n][k] transposed, as a layer applies it.
static Buffer panels_forward(const float* W, int64_t n, int64_t k) {
#if defined(AIRE_BF16_TERMS)
    if (k > NARROW) {
        Buffer turned(n * k), laid(operand_floats(n, k));
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < k; i++) turned.p[i * n + j] = W[j * k + i];
        lay_pairs(turned.p, n, k, n, laid.p);
        return laid;
    }
#endif
    return pack_forward(W, n, k);
}

// Panels for product() over a depth of n: W as it is, as gradients go back.
static Buffer panels_backward(const float* W, int64_t n, int64_t k) {
#if defined(AIRE_BF16_TERMS)
    if (n > NARROW) {
        Buffer laid(operand_floats(k, n));
        lay_pairs(W, k, n, k, laid.p);
        return laid;
    }
#endif
    return pack_backward(W, n, k);
}

struct Packed {
    std::vector<Buffer> forward, backward, bias;
    Packed(const Network& net, bool with_backward) {
        for (int l = 0; l <= net.layers; l++) {
            int64_t k = net.sizes[l], n = net.sizes[l + 1];
            forward.push_back(panels_forward(net.W[l], n, k));
            bias.push_back(pad(net.b[l], n));
            if (with_backward) backward.push_back(panels_backward(net.W[l], n, k));
        }
    }
};

#if defined(AIRE_BF16_TERMS)

// Where a thread lays out what it multiplies: so many rows of the widest layer at a time.
struct Operands {
    int64_t rows;
    Buffer left, right;
    Operands(const Network& net, int64_t tile)
        : rows(up(std::max<int64_t>(128, tile), DEPTH)), left(operand_floats(rows, net.widest())),
          right(operand_floats(rows, net.widest())) {}
};
static thread_local Operands* operands;

// A thread between the first of its products and the last.
struct Multiplier {
    TileUnit unit;
    explicit Multiplier(Operands& mine) { operands = &mine; }
};

// rows of A times panels; take(row, column, acc) gets MR rows by NR columns at a time.
template <class Take>
static inline __attribute__((always_inline)) void product(
    const float* A, int64_t lda, int64_t rows, int64_t depth, const float* panels, int64_t columns, Take take) {
    if (depth <= NARROW) {
        constexpr int STEP = 4;
        for (int64_t n = 0; n < columns; n += NR)
            for (int64_t r = 0; r < rows; r += MR) {
                vf acc[MR][2];
                for (int i = 0; i < MR; i += STEP) multiply<false, STEP>(A + (r + i) * lda, lda, panels + n * depth, NR, depth, acc + i);
                take(r, n, acc);
            }
        return;
    }
    for (int64_t r0 = 0; r0 < rows; r0 += operands->rows) {
        int64_t count = std::min(operands->rows, rows - r0);
        lay_rows(A + r0 * lda, lda, count, depth, operands->left.p);
        multiply_laid(operands->left.p, count, panels, columns, depth,
                      [&](int64_t r, int64_t n, vf(&acc)[MR][2]) __attribute__((always_inline)) { take(r0 + r, n, acc); });
    }
}

// dW[n, k] += sum over rows of G[r, n] H[r, k]; dW has rows of row_length(k) floats and up(n, MR) of them.
static void add_outer(
    const float* G, int64_t ldg, int64_t n, const float* H, int64_t ldh, int64_t k, int64_t rows, float* dW) {
    int64_t ld = row_length(k);
    for (int64_t r0 = 0; r0 < rows; r0 += operands->rows) {
        int64_t count = std::min(operands->rows, rows - r0);
        lay_columns(G + r0 * ldg, ldg, count, n, operands->left.p);
        lay_pairs(H + r0 * ldh, ldh, count, k, operands->right.p);
        multiply_laid(operands->left.p, up(n, SIDE), operands->right.p, up(k, NR), count,
                      [=](int64_t j, int64_t i, vf(&acc)[MR][2]) {
                          for (int q = 0; q < MR; q++) {
                              float* d = dW + (j + q) * ld + i;
                              store(d, load(d) + acc[q][0]);
                              store(d + LANES, load(d + LANES) + acc[q][1]);
                          }
                      });
    }
}

#else

struct Operands {
    Operands(const Network&, int64_t) {}
};
struct Multiplier {
    explicit Multiplier(Operands&) {}
};

// rows of A times packed panels; take(row, column, acc) gets MR rows by NR columns at a time.
template <class Take>
static inline __attribute__((always_inline)) void product(
    const float* A, int64_t lda, int64_t rows, int64_t depth, const float* panels, int64_t columns, Take take) {
    // Panels outside: one stays in the first-level cache while the rows pass by.
    for (int64_t n = 0; n < columns; n += NR)
        for (int64_t r = 0; r < rows; r += MR) {
            vf acc[MR][2];
            multiply<false>(A + r * lda, lda, panels + n * depth, NR, depth, acc);
            take(r, n, acc);
        }
}

// dW[n, k] += sum over rows of G[r, n] H[r, k]; dW has rows of row_length(k) floats and up(n, MR) of them.
static void add_outer(
    const float* G, int64_t ldg, int64_t n, const float* H, int64_t ldh, int64_t k, int64_t rows, float* dW) {
    int64_t ld = row_length(k);
    for (int64_t i = 0; i < k; i += NR)
        for (int64_t j = 0; j < n; j += MR) {
            vf acc[MR][2];
            multiply<true>(G + j, ldg, H + i, ldh, rows, acc);
            for (int q = 0; q < MR; q++) {
                float* d = dW + (j + q) * ld + i;
                store(d, load(d) + acc[q][0]);
                store(d + LANES, load(d + LANES) + acc[q][1]);
            }
        }
}

#endif

template <int K>
static void add_outer_of(
    const float* G, int64_t ldg, int64_t n, const float* X, int64_t ldx, int64_t rows, float* dW) {
    int64_t ld = up(n, NR);
    for (int64_t j = 0; j < ld; j += LANES) {
        vf acc[K];
#pragma GCC unroll 8
        for (int i = 0; i < K; i++) acc[i] = vf{};
        for (int64_t r = 0; r < rows; r++) {
            vf g = load(G + r * ldg + j);
#pragma GCC unroll 8
            for (int i = 0; i < K; i++) acc[i] += X[r * ldx + i] * g;
        }
#pragma GCC unroll 8
        for (int i = 0; i < K; i++) store(dW + i * ld + j, load(dW + i * ld + j) + acc[i]);
    }
}

// dW += (G^T X)^T, [k][up(n, NR)], where X has k <= NARROW columns, which are broadcast.
static void add_outer_narrow(
    const float* G, int64_t ldg, int64_t n, const float* X, int64_t ldx, int64_t k, int64_t rows, float* dW) {
    using Function = void (*)(const float*, int64_t, int64_t, const float*, int64_t, int64_t, float*);
    static const Function of[] = {add_outer_of<1>, add_outer_of<2>, add_outer_of<3>, add_outer_of<4>,
                                  add_outer_of<5>, add_outer_of<6>, add_outer_of<7>, add_outer_of<8>};
    of[k - 1](G, ldg, n, X, ldx, rows, dW);
}

// What one thread has summed up. Vectors are summed within a tile first: one long float32 sum would lose digits.
struct Gradients {
    std::vector<Buffer> W, b, tile_b;
    Buffer tile_first, tile_last;  // [in][up(n, NR)] and [up(k, NR)], for those who sum weights row by row
    explicit Gradients(const Network& net)
        : tile_first(net.in() * up(net.width(0), NR)), tile_last(up(net.width(net.layers - 1), NR)) {
        for (int l = 0; l <= net.layers; l++) {
            int64_t k = net.sizes[l], n = net.sizes[l + 1];
            W.emplace_back(is_narrow(net, l) ? std::max(k * up(n, NR), n * up(k, NR)) : up(n, MR) * row_length(k));
            b.emplace_back(up(n, NR));
            tile_b.emplace_back(up(n, NR));
        }
    }
    static void move(Buffer& from, Buffer& to, int64_t count) {
        for (int64_t i = 0; i < count; i += LANES) {
            store(to.p + i, load(to.p + i) + load(from.p + i));
            store(from.p + i, vf{});
        }
    }
    // Add the tile's vectors to the thread's.
    void end_tile(const Network& net) {
        for (int l = 0; l <= net.layers; l++) move(tile_b[l], b[l], up(net.sizes[l + 1], NR));
    }
    // The same of the first and last weight, where these are narrow.
    void end_tile_weights(const Network& net) {
        move(tile_first, W[0], net.in() * up(net.width(0), NR));
        move(tile_last, W[net.layers], up(net.width(net.layers - 1), NR));
    }
    // Narrow layers are kept transposed at the input, [k][up(n)], and as they are at the output, [n][up(k)].
    static bool is_narrow(const Network& net, int l) {
        return (l == 0 && net.in() <= NARROW) || (l == net.layers && net.out() <= NARROW);
    }
    float at(const Network& net, int l, int64_t j, int64_t i) const {
        if (l == 0 && net.in() <= NARROW) return W[l].p[i * up(net.sizes[1], NR) + j];
        if (l == net.layers && net.out() <= NARROW) return W[l].p[j * up(net.sizes[l], NR) + i];
        return W[l].p[j * row_length(net.sizes[l]) + i];
    }
};

// Sum the threads' gradients into dW [n, k] and db [n] of every layer.
static void reduce(const Network& net, const std::vector<std::unique_ptr<Gradients>>& parts, float* const* dW,
                   float* const* db, int threads) {
    for (int l = 0; l <= net.layers; l++) {
        int64_t k = net.sizes[l], n = net.sizes[l + 1];
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t j = 0; j < n; j++) {
            float bias = 0;
            for (const auto& part : parts) bias += part->b[l].p[j];
            db[l][j] = bias;
            for (int64_t i = 0; i < k; i++) {
                float total = 0;
                for (const auto& part : parts) total += part->at(net, l, j, i);
                dW[l][j * k + i] = total;
            }
        }
    }
}

// Floats that one value a neuron takes over so many rows, all sine layers together.
static inline int64_t layer_floats(const Network& net, int64_t rows) {
    int64_t total = 0;
    for (int l = 0; l < net.layers; l++) total += up(rows, MR) * row_length(net.width(l));
    return total;
}

// Rows at a time: as many as keep so many buffers of a layer in half a megabyte of cache, a multiple of ROW_STEP.
static inline int64_t tile_rows(const Network& net, int buffers = 3) {
    int64_t rows = (1 << 17) / (buffers * row_length(net.widest()));
    return up(std::min<int64_t>(384, std::max<int64_t>(72, rows)), ROW_STEP);
}

// Weights of a network with one output whose derivatives are wanted: panels for both directions, the first weight
// transposed, [in][up(n, NR)], the last one padded.
struct DerivativeWeights {
    Packed packed;
    Buffer first, last;
    explicit DerivativeWeights(const Network& net)
        : packed(net, true), first(net.in() * up(net.width(0), NR)),
          last(pad(net.W[net.layers], net.width(net.layers - 1))) {
        for (int64_t j = 0; j < net.width(0); j++)
            for (int64_t d = 0; d < net.in(); d++) first.p[d * up(net.width(0), NR) + j] = net.W[0][j * net.in() + d];
    }
};

// Threads that get a tile of so many rows: each has a workspace and gradients of its own, which are dear.
static inline int busy(int threads, int64_t tile, int64_t rows) {
    return int(std::max<int64_t>(1, std::min<int64_t>(threads, (rows + tile - 1) / tile)));
}

static inline std::vector<std::unique_ptr<Gradients>> gradients(const Network& net, int threads) {
    std::vector<std::unique_ptr<Gradients>> parts;
    for (int i = 0; i < threads; i++) parts.push_back(std::make_unique<Gradients>(net));
    return parts;
}

// what(thread, first row, rows, workspace) for every tile. Each thread has its own workspace, made beforehand, since an
// exception must not leave a parallel region, and the same tiles every time, so that sums do not depend on timing.
template <class Workspace, class Do>
static inline void over_tiles(const Network& net, int64_t tile, int64_t rows, int threads, Do what) {
    const int64_t tiles = (rows + tile - 1) / tile;
    threads = busy(threads, tile, rows);
    std::vector<std::unique_ptr<Workspace>> all;
    std::vector<std::unique_ptr<Operands>> operands;
    for (int i = 0; i < threads; i++) {
        all.push_back(std::make_unique<Workspace>(net, tile));
        operands.push_back(std::make_unique<Operands>(net, tile));
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int id = 0; id < threads; id++) {
        Multiplier multiplier(*operands[id]);
        for (int64_t t = tiles * id / threads; t < tiles * (id + 1) / threads; t++)
            what(id, t * tile, std::min(tile, rows - t * tile), *all[id]);
    }
}
