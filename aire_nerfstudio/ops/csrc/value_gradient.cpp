// f and df/dx of a sine network with one output, and the gradients of a loss on both by weights and biases, in closed
// form: forward through the layers, back through their transposes, and the same two ways again. Called through ctypes by
// ops/value_gradient.py, which checks all arguments.
//
// z_l = W_l h_(l-1) + b_l, h_l = act(z_l), f = w . h_L + b; v_L = w act'(z_L), u_l = v_(l+1) W_(l+1), v_l = u_l act'(z_l),
// df/dx = v_1 W_1. Kept of each layer are z and u;
// h, act', v and u act'' follow from them, cheaper than to bring them back from memory.

#include "network.h"

namespace {

// Of each layer of a tile: h, act', v and u act''.
struct Layers {
    std::vector<float*> value, slope, back, bend;
};

// What is kept of each layer between forward and backward.
struct Kept {
    std::vector<float*> z, u;
};

Kept kept_at(const Network& net, float* memory, int64_t rows, int64_t row) {
    Kept kept;
    if (!memory) return kept;
    for (auto* list : {&kept.z, &kept.u})
        for (int l = 0; l < net.layers; l++) {
            int64_t ld = row_length(net.width(l));
            list->push_back(memory + row * ld);
            memory += up(rows, MR) * ld;
        }
    return kept;
}

// Memory of one thread.
struct Workspace {
    Buffer x, one, other, tile_values;
    Layers layers;
    Workspace(const Network& net, int64_t tile)
        : x((tile + MR) * net.in()), one((tile + MR) * row_length(net.widest())),
          other((tile + MR) * row_length(net.widest())), tile_values(4 * layer_floats(net, tile)) {
        float* memory = tile_values.p;
        for (int l = 0; l < net.layers; l++)
            for (auto* list : {&layers.value, &layers.slope, &layers.back, &layers.bend}) {
                list->push_back(memory);
                memory += up(tile, MR) * row_length(net.width(l));
            }
    }
};

template <int KIND, bool KEEP>
void forward_tile(const Network& net, const DerivativeWeights& weights, const float* x, int64_t rows, const Kept& kept,
                  Workspace& work, float* f, float* gradient) {
    int L = net.layers;
    const Layers& layers = work.layers;
    int64_t d = net.in(), whole = up(rows, MR);
    std::memcpy(work.x.p, x, 4 * rows * d);
    std::memset(work.x.p + rows * d, 0, 4 * (whole - rows) * d);
    for (int l = 0; l < L; l++) {
        int64_t ld = row_length(net.width(l));
        const float *A = l == 0 ? work.x.p : layers.value[l - 1], *bias = weights.packed.bias[l].p;
        int64_t lda = l == 0 ? d : row_length(net.width(l - 1));
        float w = net.omega[l], *value = layers.value[l], *slope = layers.slope[l], *keep = KEEP ? kept.z[l] : nullptr;
        product(A, lda, whole, net.sizes[l], weights.packed.forward[l].p, up(net.width(l), NR),
                [=](int64_t r, int64_t n, vf(&acc)[MR][2]) {
                    for (int h = 0; h < 2; h++) {
                        int64_t c = n + h * LANES;
                        vf b = load(bias + c);
                        for (int i = 0; i < MR; i++) {
                            vf z = acc[i][h] + b, v, s;
                            activate<KIND>(z, w, v, s);
                            store(value + (r + i) * ld + c, v);
                            store(slope + (r + i) * ld + c, s);
                            if (KEEP) store(keep + (r + i) * ld + c, z);
                        }
                    }
                });
    }
    int64_t k = net.width(L - 1), ld = row_length(k);
    for (int64_t r = 0; r < whole; r++) {
        vf total{};
        for (int64_t i = 0; i < up(k, NR); i += LANES) {
            int64_t at = r * ld + i;
            vf w = load(weights.last.p + i);
            total += w * load(layers.value[L - 1] + at);
            store(layers.back[L - 1] + at, w * load(layers.slope[L - 1] + at));
        }
        if (r < rows) f[r] = sum(total) + net.b[L][0];
    }
    for (int l = L - 1; l >= 1; l--) {
        int64_t before = row_length(net.width(l - 1));
        float *slope = layers.slope[l - 1], *back = layers.back[l - 1], *keep = KEEP ? kept.u[l - 1] : nullptr;
        product(layers.back[l], row_length(net.width(l)), whole, net.width(l), weights.packed.backward[l].p,
                up(net.width(l - 1), NR), [=](int64_t r, int64_t n, vf(&acc)[MR][2]) {
                    for (int h = 0; h < 2; h++)
                        for (int i = 0; i < MR; i++) {
                            int64_t at = (r + i) * before + n + h * LANES;
                            store(back + at, acc[i][h] * load(slope + at));
                            if (KEEP) store(keep + at, acc[i][h]);
                        }
                });
    }
    int64_t first = up(net.width(0), NR), ld0 = row_length(net.width(0));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < d; i++) {
            vf total{};
            for (int64_t j = 0; j < first; j += LANES)
                total += load(layers.back[0] + r * ld0 + j) * load(weights.first.p + i * first + j);
            gradient[r * d + i] = sum(total);
        }
}

// h, act', v and u act'' of a tile from z and u.
template <int KIND>
void from_kept(const Network& net, const DerivativeWeights& weights, const Kept& kept, int64_t rows, const Layers& layers) {
    for (int l = 0; l < net.layers; l++) {
        int64_t ld = row_length(net.width(l)), columns = up(net.width(l), NR);
        bool is_last = l == net.layers - 1;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c += LANES) {
                int64_t at = r * ld + c;
                vf v, s, t, u = load(is_last ? weights.last.p + c : kept.u[l] + at);
                activate2<KIND>(load(kept.z[l] + at), net.omega[l], v, s, t);
                store(layers.value[l] + at, v);
                store(layers.slope[l] + at, s);
                store(layers.back[l] + at, u * s);
                store(layers.bend[l] + at, u * t);
            }
    }
}

// Adds to grads what a loss with df/d(loss) = gf [rows] and d(loss)/d(gradient) = gg [rows, d] gives.
void backward_tile(const Network& net, const DerivativeWeights& weights, const float* x, const float* gf, const float* gg,
                   int64_t rows, Workspace& work, Gradients& grads) {
    int L = net.layers;
    const Layers& layers = work.layers;
    int64_t d = net.in(), whole = up(rows, MR);
    float *here = work.one.p, *next = work.other.p;
    // Up the layers: what v gets; ``here`` holds (d loss / d v) act', and bend becomes (d loss / d v) u act''.
    int64_t first = up(net.width(0), NR), ld0 = row_length(net.width(0));
    add_outer_narrow(layers.back[0], ld0, net.width(0), gg, d, d, rows, grads.W[0].p);
    for (int64_t r = 0; r < whole; r++)
        for (int64_t j = 0; j < first; j += LANES) {
            vf v{};
            if (r < rows)
                for (int64_t i = 0; i < d; i++) v += gg[r * d + i] * load(weights.first.p + i * first + j);
            int64_t at = r * ld0 + j;
            store(here + at, v * load(layers.slope[0] + at));
            store(layers.bend[0] + at, v * load(layers.bend[0] + at));
        }
    for (int l = 1; l < L; l++) {
        int64_t before = net.width(l - 1), ld = row_length(net.width(l));
        float *slope = layers.slope[l], *bend = layers.bend[l];
        add_outer(layers.back[l], ld, net.width(l), here, row_length(before), before, rows, grads.W[l].p);
        product(here, row_length(before), whole, before, weights.packed.forward[l].p, up(net.width(l), NR),
                [=](int64_t r, int64_t n, vf(&acc)[MR][2]) {
                    for (int h = 0; h < 2; h++)
                        for (int i = 0; i < MR; i++) {
                            int64_t at = (r + i) * ld + n + h * LANES;
                            store(next + at, acc[i][h] * load(slope + at));
                            store(bend + at, acc[i][h] * load(bend + at));
                        }
                });
        std::swap(here, next);
    }
    // The output, and down again: ``here`` becomes d loss / d z.
    int64_t k = net.width(L - 1), ld = row_length(k);
    for (int64_t j = 0; j < up(k, NR); j += LANES) {
        vf w = load(weights.last.p + j), dw{}, db{};
        for (int64_t r = 0; r < rows; r++) {
            int64_t at = r * ld + j;
            dw += load(here + at) + gf[r] * load(layers.value[L - 1] + at);
            vf z = gf[r] * w * load(layers.slope[L - 1] + at) + load(layers.bend[L - 1] + at);
            db += z;
            store(here + at, z);
        }
        for (int64_t r = rows; r < whole; r++) store(here + r * ld + j, vf{});
        store(grads.W[L].p + j, load(grads.W[L].p + j) + dw);
        store(grads.tile_b[L - 1].p + j, db);
    }
    for (int64_t r = 0; r < rows; r++) grads.tile_b[L].p[0] += gf[r];
    for (int l = L - 1; l >= 1; l--) {
        int64_t before = net.width(l - 1), lda = row_length(before), ldg = row_length(net.width(l));
        const float *slope = layers.slope[l - 1], *bend = layers.bend[l - 1];
        float* db = grads.tile_b[l - 1].p;
        add_outer(here, ldg, net.width(l), layers.value[l - 1], lda, before, rows, grads.W[l].p);
        product(here, ldg, whole, net.width(l), weights.packed.backward[l].p, up(before, NR),
                [=](int64_t r, int64_t n, vf(&acc)[MR][2]) {
                    for (int h = 0; h < 2; h++) {
                        int64_t c = n + h * LANES;
                        vf bias = load(db + c);
                        for (int i = 0; i < MR; i++) {
                            int64_t at = (r + i) * lda + c;
                            vf z{};
                            if (r + i < rows) z = acc[i][h] * load(slope + at) + load(bend + at);
                            bias += z;
                            store(next + at, z);
                        }
                        store(db + c, bias);
                    }
                });
        std::swap(here, next);
    }
    add_outer_narrow(here, ld0, net.width(0), x, d, d, rows, grads.W[0].p);
    grads.end_tile(net);
}

}  // namespace

// All return 0, or 1 where memory ran out, 2 for an activation without a second derivative. memory is null where no
// backward pass will come.
extern "C" {

int64_t aire_value_gradient_floats(int layers, const int64_t* sizes, int64_t rows) {
    return 2 * layer_floats(Network{layers, sizes, nullptr, nullptr, nullptr}, rows);
}

int aire_value_gradient(int kind, int layers, const int64_t* sizes, const float* const* W, const float* const* b,
                        const float* omega, const float* x, int64_t rows, float* f, float* gradient, float* memory,
                        int threads) {
    if (kind != SIREN && kind != FINER) return 2;
    try {
        Network net{layers, sizes, W, b, omega};
        DerivativeWeights weights(net);
        auto run = kind == SIREN ? (memory ? forward_tile<SIREN, true> : forward_tile<SIREN, false>)
                                 : (memory ? forward_tile<FINER, true> : forward_tile<FINER, false>);
        over_tiles<Workspace>(net, tile_rows(net, 5), rows, threads, [&](int, int64_t r, int64_t count, Workspace& work) {
            Kept kept = kept_at(net, memory, rows, r);
            run(net, weights, x + r * net.in(), count, kept, work, f + r, gradient + r * net.in());
        });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int aire_value_gradient_backward(int kind, int layers, const int64_t* sizes, const float* const* W, const float* const* b,
                                 const float* omega, const float* x, const float* gf, const float* gg, int64_t rows,
                                 float* memory, float* const* dW, float* const* db, int threads) {
    if (kind != SIREN && kind != FINER) return 2;
    try {
        Network net{layers, sizes, W, b, omega};
        DerivativeWeights weights(net);
        threads = busy(threads, tile_rows(net, 5), rows);
        auto parts = gradients(net, threads);
        over_tiles<Workspace>(net, tile_rows(net, 5), rows, threads, [&](int id, int64_t r, int64_t count, Workspace& work) {
            auto prepare = kind == SIREN ? from_kept<SIREN> : from_kept<FINER>;
            prepare(net, weights, kept_at(net, memory, rows, r), up(count, MR), work.layers);
            backward_tile(net, weights, x + r * net.in(), gf + r, gg + r * net.in(), count, work, *parts[id]);
        });
        reduce(net, parts, dW, db, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // extern "C"
