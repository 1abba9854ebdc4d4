// Sine networks, layer after layer on tiles of rows that stay in the cache: value, gradient of a loss, one-pass fits.
// No torch headers: a build takes seconds. Called through ctypes by ops/sine_network.py, which checks all arguments.

#include "network.h"

namespace {

// Every sine layer's values of a tile, rows of row_length(width).
struct Layers {
    std::vector<float*> value, slope;
};

// Whether a layer's slopes are wanted beside its values, or its pre-activations z, or neither.
enum Keep { NOTHING, SLOPE, Z };

template <int KIND, Keep KEEP>
void sine_layer(const float* A, int64_t lda, int64_t rows, const Network& net, const Packed& packed, int l,
                float* value, float* kept) {
    int64_t ld = row_length(net.width(l));
    const float* bias = packed.bias[l].p;
    float w = net.omega[l];
    product(A, lda, rows, net.sizes[l], packed.forward[l].p, up(net.width(l), NR), [=](int64_t r, int64_t n, vf(&acc)[MR][2]) {
        for (int h = 0; h < 2; h++) {
            vf b = load(bias + n + h * LANES);
            for (int i = 0; i < MR; i++) {
                vf z = acc[i][h] + b, v, s;
                activate<KIND>(z, w, v, s);
                int64_t at = (r + i) * ld + n + h * LANES;
                store(value + at, v);
                if (KEEP == SLOPE) store(kept + at, s);
                if (KEEP == Z) store(kept + at, z);
            }
        }
    });
}

// y = H W^T + b of the last layer; y is dense, rows of out floats.
void output_layer(const float* H, int64_t rows, const Network& net, const Packed& packed, float* y) {
    int L = net.layers;
    int64_t k = net.width(L - 1), n = net.out(), ld = row_length(k);
    const float* bias = net.b[L];
    if (n <= NARROW) {
        const float* W = net.W[L];
        int64_t whole = k / LANES * LANES;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t o = 0; o < n; o++) {
                vf acc{};
                for (int64_t i = 0; i < whole; i += LANES) acc += load(H + r * ld + i) * load(W + o * k + i);
                float total = sum(acc) + bias[o];
                for (int64_t i = whole; i < k; i++) total += H[r * ld + i] * W[o * k + i];
                y[r * n + o] = total;
            }
        return;
    }
    product(H, ld, up(rows, MR), k, packed.forward[L].p, up(n, NR), [=](int64_t r, int64_t c, vf(&acc)[MR][2]) {
        for (int i = 0; i < MR && r + i < rows; i++) {
            float line[NR];
            store(line, acc[i][0]);
            store(line + LANES, acc[i][1]);
            int64_t count = std::min<int64_t>(NR, n - c);
            for (int64_t j = 0; j < count; j++) y[(r + i) * n + c + j] = line[j] + bias[c + j];
        }
    });
}

// Everything a thread needs for one tile after the other.
struct Workspace {
    Buffer x, wide, back;
    Workspace(const Network& net, int64_t tile)
        : x((tile + MR) * net.in()), wide((tile + MR) * row_length(net.widest())),
          back((tile + MR) * row_length(net.widest())) {}
};

// kept: slopes or z of each layer, as KEEP says; values may share buffers where only the last is wanted.
template <int KIND, Keep KEEP>
void forward_tile(const Network& net, const Packed& packed, const float* x, int64_t rows,
                  const std::vector<float*>& value, const std::vector<float*>& kept, Workspace& work, float* y) {
    // A copy: the kernel reads whole multiples of MR rows.
    std::memcpy(work.x.p, x, 4 * rows * net.in());
    int64_t whole = up(rows, MR);
    std::memset(work.x.p + rows * net.in(), 0, 4 * (whole - rows) * net.in());
    for (int l = 0; l < net.layers; l++) {
        const float* A = l == 0 ? work.x.p : value[l - 1];
        int64_t lda = l == 0 ? net.in() : row_length(net.width(l - 1));
        sine_layer<KIND, KEEP>(A, lda, whole, net, packed, l, value[l], KEEP == NOTHING ? nullptr : kept[l]);
    }
    output_layer(value[net.layers - 1], rows, net, packed, y);
}

// Values and slopes again from z: cheaper than to bring them back from memory.
template <int KIND>
void from_z(const Network& net, const std::vector<float*>& z, int64_t rows, const Layers& layers) {
    for (int l = 0; l < net.layers; l++) {
        int64_t ld = row_length(net.width(l)), columns = up(net.width(l), NR);
        float w = net.omega[l];
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c += LANES) {
                vf v, s;
                activate<KIND>(load(z[l] + r * ld + c), w, v, s);
                store(layers.value[l] + r * ld + c, v);
                store(layers.slope[l] + r * ld + c, s);
            }
    }
}

// Adds the tile's gradients to grads, and writes dx (dense rows) where it is not null.
void backward_tile(const Network& net, const Packed& packed, const float* x, const float* gy, int64_t rows,
                   const Layers& layers, Workspace& work, Gradients& grads, float* dx) {
    int L = net.layers;
    int64_t whole = up(rows, MR), n = net.out(), k = net.width(L - 1), ld = row_length(k);
    float *G = work.wide.p, *next = work.back.p;
    for (int64_t o = 0; o < n; o++) {
        float total = 0;
        for (int64_t r = 0; r < rows; r++) total += gy[r * n + o];
        grads.tile_b[L].p[o] += total;
    }
    const float *value = layers.value[L - 1], *slope = layers.slope[L - 1];
    float* db = grads.tile_b[L - 1].p;
    if (n <= NARROW) {
        const float* panels = packed.backward[L].p;  // [ceil(k / NR)][n][NR]
        add_outer_narrow(value, ld, k, gy, n, n, rows, grads.W[L].p);
        for (int64_t i = 0; i < up(k, NR); i += LANES) {
            const float* W = panels + i / NR * n * NR + i % NR;
            vf bias = load(db + i);
            for (int64_t r = 0; r < rows; r++) {
                vf g{};
                for (int64_t o = 0; o < n; o++) g += gy[r * n + o] * load(W + o * NR);
                g *= load(slope + r * ld + i);
                bias += g;
                store(G + r * ld + i, g);
            }
            for (int64_t r = rows; r < whole; r++) store(G + r * ld + i, vf{});
            store(db + i, bias);
        }
    } else {
        int64_t ldy = row_length(n);
        std::memset(next, 0, 4 * whole * ldy);
        for (int64_t r = 0; r < rows; r++) std::memcpy(next + r * ldy, gy + r * n, 4 * n);
        add_outer(next, ldy, n, value, ld, k, rows, grads.W[L].p);
        product(next, ldy, whole, n, packed.backward[L].p, up(k, NR), [=](int64_t r, int64_t i, vf(&acc)[MR][2]) {
            for (int h = 0; h < 2; h++) {
                vf bias = load(db + i + h * LANES);
                for (int q = 0; q < MR; q++) {
                    vf g = acc[q][h] * load(slope + (r + q) * ld + i + h * LANES);
                    if (r + q >= rows) g = vf{};  // the slopes of rows that do not exist may be anything
                    bias += g;
                    store(G + (r + q) * ld + i + h * LANES, g);
                }
                store(db + i + h * LANES, bias);
            }
        });
    }
    for (int l = L - 1; l >= 1; l--) {
        int64_t here = net.width(l), before = net.width(l - 1), ldg = row_length(here), lda = row_length(before);
        add_outer(G, ldg, here, layers.value[l - 1], lda, before, rows, grads.W[l].p);
        float* db_before = grads.tile_b[l - 1].p;
        const float* slope_before = layers.slope[l - 1];
        product(G, ldg, whole, here, packed.backward[l].p, up(before, NR), [=](int64_t r, int64_t i, vf(&acc)[MR][2]) {
            for (int h = 0; h < 2; h++) {
                vf bias = load(db_before + i + h * LANES);
                for (int q = 0; q < MR; q++) {
                    vf g = acc[q][h] * load(slope_before + (r + q) * lda + i + h * LANES);
                    if (r + q >= rows) g = vf{};
                    bias += g;
                    store(next + (r + q) * lda + i + h * LANES, g);
                }
                store(db_before + i + h * LANES, bias);
            }
        });
        std::swap(G, next);
    }
    int64_t first = net.width(0), ldg = row_length(first), in = net.in();
    if (in <= NARROW) {
        add_outer_narrow(G, ldg, first, x, in, in, rows, grads.W[0].p);
    } else {
        int64_t ldx = row_length(in);
        std::memset(next, 0, 4 * whole * ldx);
        for (int64_t r = 0; r < rows; r++) std::memcpy(next + r * ldx, x + r * in, 4 * in);
        add_outer(G, ldg, first, next, ldx, in, rows, grads.W[0].p);
    }
    grads.end_tile(net);
    if (dx)
        product(G, ldg, whole, first, packed.backward[0].p, up(in, NR), [=](int64_t r, int64_t i, vf(&acc)[MR][2]) {
            for (int q = 0; q < MR && r + q < rows; q++) {
                float line[NR];
                store(line, acc[q][0]);
                store(line + LANES, acc[q][1]);
                std::memcpy(dx + (r + q) * in + i, line, 4 * std::min<int64_t>(NR, in - i));
            }
        });
}

// One pointer a layer into memory of `rows` rows each, at a row.
std::vector<float*> places(const Network& net, float* memory, int64_t rows, int64_t row) {
    std::vector<float*> layers;
    for (int l = 0; l < net.layers; l++) {
        layers.push_back(memory + row * row_length(net.width(l)));
        memory += up(rows, MR) * row_length(net.width(l));
    }
    return layers;
}

// A workspace with room for every layer's values and slopes of a tile, and for its outputs.
struct LayeredWorkspace : Workspace {
    Buffer values, slopes, y;
    Layers layers;
    LayeredWorkspace(const Network& net, int64_t tile)
        : Workspace(net, tile), values(layer_floats(net, tile)), slopes(layer_floats(net, tile)), y(tile * net.out()),
          layers{places(net, values.p, tile, 0), places(net, slopes.p, tile, 0)} {}
};

template <int KIND>
void forward(const Network& net, const float* x, int64_t rows, float* y, float* memory, int threads) {
    Packed packed(net, false);
    over_tiles<Workspace>(net, tile_rows(net), rows, threads, [&](int, int64_t r, int64_t count, Workspace& work) {
        std::vector<float*> value;  // two buffers in turn
        for (int l = 0; l < net.layers; l++) value.push_back(l % 2 ? work.wide.p : work.back.p);
        const float* points = x + r * net.in();
        if (memory)
            forward_tile<KIND, Z>(net, packed, points, count, value, places(net, memory, rows, r), work, y + r * net.out());
        else
            forward_tile<KIND, NOTHING>(net, packed, points, count, value, {}, work, y + r * net.out());
    });
}

// Whether forward leaves its pre-activations to backward, which otherwise computes them again: memory is slower than
// products over few columns, and than those of the tile unit.
bool keeps_z(const Network& net) {
#if defined(AIRE_BF16_TERMS)
    return false;
#else
    return net.widest() >= 160;
#endif
}

template <int KIND>
void backward(const Network& net, const float* x, const float* gy, int64_t rows, float* memory, float* const* dW,
              float* const* db, float* dx, int threads) {
    Packed packed(net, true);
    threads = busy(threads, tile_rows(net), rows);
    auto parts = gradients(net, threads);
    over_tiles<LayeredWorkspace>(
        net, tile_rows(net), rows, threads, [&](int id, int64_t r, int64_t count, LayeredWorkspace& work) {
            const Layers& layers = work.layers;
            if (memory)
                from_z<KIND>(net, places(net, memory, rows, r), up(count, MR), layers);
            else
                forward_tile<KIND, SLOPE>(net, packed, x + r * net.in(), count, layers.value, layers.slope, work, work.y.p);
            backward_tile(net, packed, x + r * net.in(), gy + r * net.out(), count, work.layers, work, *parts[id],
                          dx ? dx + r * net.in() : nullptr);
        });
    reduce(net, parts, dW, db, threads);
}

// Mean squared error and its gradients, nothing kept between forward and backward.
template <int KIND>
double fit(const Network& net, const float* x, const float* target, int64_t rows, float* const* dW, float* const* db,
           int threads) {
    Packed packed(net, true);
    int64_t n = net.out();
    threads = busy(threads, tile_rows(net), rows);
    auto parts = gradients(net, threads);
    std::vector<double> errors(threads * 8, 0.0);  // a cache line each
    float scale = 2.0f / float(rows * n);
    over_tiles<LayeredWorkspace>(
        net, tile_rows(net), rows, threads, [&](int id, int64_t r, int64_t count, LayeredWorkspace& work) {
            float* y = work.y.p;
            forward_tile<KIND, SLOPE>(net, packed, x + r * net.in(), count, work.layers.value, work.layers.slope, work, y);
            double total = 0;
            for (int64_t i = 0; i < count * n; i++) {
                float difference = y[i] - target[r * n + i];
                total += double(difference) * difference;
                y[i] = scale * difference;
            }
            errors[id * 8] += total;
            backward_tile(net, packed, x + r * net.in(), y, count, work.layers, work, *parts[id], nullptr);
        });
    reduce(net, parts, dW, db, threads);
    double total = 0;
    for (int id = 0; id < threads; id++) total += errors[id * 8];
    return total / double(rows * n);
}

}  // namespace

#define FOR_KIND(CALL)                                  \
    switch (kind) {                                     \
        case SIREN: { constexpr int K = SIREN; CALL; break; }                   \
        case FINER: { constexpr int K = FINER; CALL; break; }                   \
        case FINER_DETACHED: { constexpr int K = FINER_DETACHED; CALL; break; } \
        case SPDER: { constexpr int K = SPDER; CALL; break; }                   \
        default: return 2;                              \
    }

// All return 0, or 1 where memory ran out, 2 for an unknown activation. memory is null where aire_kept_floats is 0.
extern "C" {

int64_t aire_kept_floats(int layers, const int64_t* sizes, int64_t rows) {
    const Network net{layers, sizes, nullptr, nullptr, nullptr};
    return keeps_z(net) ? layer_floats(net, rows) : 0;
}

int aire_forward(int kind, int layers, const int64_t* sizes, const float* const* W, const float* const* b,
                 const float* omega, const float* x, int64_t rows, float* y, float* memory, int threads) {
    try {
        const Network net{layers, sizes, W, b, omega};
        FOR_KIND(forward<K>(net, x, rows, y, memory, threads))
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int aire_backward(int kind, int layers, const int64_t* sizes, const float* const* W, const float* const* b, const float* omega,
                  const float* x, const float* gy, int64_t rows, float* memory, float* const* dW, float* const* db,
                  float* dx, int threads) {
    try {
        const Network net{layers, sizes, W, b, omega};
        FOR_KIND(backward<K>(net, x, gy, rows, memory, dW, db, dx, threads))
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int aire_fit(int kind, int layers, const int64_t* sizes, const float* const* W, const float* const* b,
             const float* omega, const float* x, const float* target, int64_t rows, float* const* dW,
             float* const* db, double* error, int threads) {
    try {
        const Network net{layers, sizes, W, b, omega};
        FOR_KIND(*error = fit<K>(net, x, target, rows, dW, db, threads))
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // extern "C"
