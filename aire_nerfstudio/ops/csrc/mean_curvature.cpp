// Gradient of a sine network f(x, y, z[, t]) and |grad f| div(grad f / |grad f|) = laplace f - n H n in space, and what a
// loss on both asks of weights and biases. Called through ctypes by ops/mean_curvature.py, which checks all arguments.
//
// Carried through the layers: values h, tangents J_k = dh/dx_k, and with the normal n one second-order stream
//   M_l = act'(z_l) (M_(l-1) W_l) + act''(z_l) q_l,   q_l = |J^z_l|^2 - (n . J^z_l)^2  (space only),   J^z_l = J_(l-1) W_l.
// Backward does it again tile by tile (nothing is kept) and goes back through M, n, J and h.

#include "network.h"

namespace {

constexpr float TINY = 1e-20f;  // as safe_norm in fields/differential.py
constexpr int SPACE = 3;
constexpr int MOTION_ROWS = 2 * MR;  // rows at a time; more would leave the cache

// Of one layer of a tile; the J's hold one block of rows a coordinate.
struct Layer {
    float *h, *slope, *bend, *third, *q, *Mz, *M, *slope_bar, *bend_bar, *Jz, *J, *Jz_bar;
};

struct Workspace {
    int64_t tile;
    Buffer x, memory, one, other, J_bar, g, n, norm, n_bar, g_bar;
    std::vector<Layer> layers;
    Workspace(const Network& net, int64_t rows)
        : tile(rows), x(rows * net.in()), memory(floats(net, rows)), one(rows * row_length(net.widest())),
          other(rows * row_length(net.widest())), J_bar(net.in() * rows * row_length(net.widest())), g(rows * 4),
          n(rows * 4), norm(rows), n_bar(rows * 4), g_bar(rows * 4) {
        float* p = memory.p;
        for (int l = 0; l < net.layers; l++) {
            int64_t size = rows * row_length(net.width(l));
            Layer layer;
            for (float** single : {&layer.h, &layer.slope, &layer.bend, &layer.third, &layer.q, &layer.Mz, &layer.M,
                                   &layer.slope_bar, &layer.bend_bar}) {
                *single = p;
                p += size;
            }
            for (float** several : {&layer.Jz, &layer.J, &layer.Jz_bar}) {
                *several = p;
                p += net.in() * size;
            }
            layers.push_back(layer);
        }
    }
    static int64_t floats(const Network& net, int64_t rows) {
        int64_t total = 0;
        for (int l = 0; l < net.layers; l++) total += (9 + 3 * net.in()) * rows * row_length(net.width(l));
        return total;
    }
};

// C = A times panels; C has rows of ldc floats.
void plain_product(const float* A, int64_t lda, int64_t rows, int64_t depth, const float* panels, int64_t columns,
                   float* C, int64_t ldc) {
    product(A, lda, rows, depth, panels, columns, [=](int64_t r, int64_t n, vf(&acc)[MR][2]) {
        for (int i = 0; i < MR; i++) {
            store(C + (r + i) * ldc + n, acc[i][0]);
            store(C + (r + i) * ldc + n + LANES, acc[i][1]);
        }
    });
}

// For each row: sum over the columns of w A.
void weigh(const float* A, int64_t ld, int64_t rows, const float* w, int64_t columns, float* out, int64_t stride) {
    for (int64_t r = 0; r < rows; r++) {
        vf total{};
        for (int64_t j = 0; j < columns; j += LANES) total += load(w + j) * load(A + r * ld + j);
        out[r * stride] = sum(total);
    }
}

// Fills work; all rows of the tile are computed, those that do not exist at x = 0.
template <int KIND>
void forward_tile(const Network& net, const DerivativeWeights& weights, const float* x, int64_t rows, Workspace& work,
                  float* motion) {
    int L = net.layers;
    int64_t d = net.in(), R = work.tile;
    std::memcpy(work.x.p, x, 4 * rows * d);
    std::memset(work.x.p + rows * d, 0, 4 * (R - rows) * d);
    for (int l = 0; l < L; l++) {
        const Layer& here = work.layers[l];
        int64_t columns = up(net.width(l), NR), ld = row_length(net.width(l));
        const float* panels = weights.packed.forward[l].p;
        if (l == 0) {
            plain_product(work.x.p, d, R, d, panels, columns, here.h, ld);
            for (int64_t k = 0; k < d; k++)
                for (int64_t r = 0; r < R; r++)
                    std::memcpy(here.Jz + (k * R + r) * ld, weights.first.p + k * columns, 4 * columns);
        } else {
            const Layer& before = work.layers[l - 1];
            int64_t lda = row_length(net.width(l - 1));
            plain_product(before.h, lda, R, net.width(l - 1), panels, columns, here.h, ld);
            plain_product(before.J, lda, d * R, net.width(l - 1), panels, columns, here.Jz, ld);
        }
        float w = net.omega[l];
        for (int64_t r = 0; r < R; r++)
            for (int64_t j = 0; j < columns; j += LANES) {
                int64_t at = r * ld + j;
                vf v, s, t, c;
                activate3<KIND>(load(here.h + at) + load(weights.packed.bias[l].p + j), w, v, s, t, c);
                store(here.h + at, v);
                store(here.slope + at, s);
                store(here.bend + at, t);
                store(here.third + at, c);
                for (int64_t k = 0; k < d; k++) store(here.J + k * R * ld + at, s * load(here.Jz + k * R * ld + at));
            }
    }
    int64_t top = up(net.width(L - 1), NR), ld_top = row_length(net.width(L - 1));
    for (int64_t k = 0; k < d; k++)
        weigh(work.layers[L - 1].J + k * R * ld_top, ld_top, R, weights.last.p, top, work.g.p + k, 4);
    for (int64_t r = 0; r < R; r++) {
        const float* g = work.g.p + 4 * r;
        float norm = std::sqrt(g[0] * g[0] + g[1] * g[1] + g[2] * g[2] + TINY);
        work.norm.p[r] = norm;
        for (int k = 0; k < SPACE; k++) work.n.p[4 * r + k] = g[k] / norm;
    }
    for (int l = 0; l < L; l++) {
        const Layer& here = work.layers[l];
        int64_t columns = up(net.width(l), NR), ld = row_length(net.width(l)), block = R * ld;
        if (l == 0) {
            std::memset(here.Mz, 0, 4 * block);
        } else {
            plain_product(work.layers[l - 1].M, row_length(net.width(l - 1)), R, net.width(l - 1),
                          weights.packed.forward[l].p, columns, here.Mz, ld);
        }
        for (int64_t r = 0; r < R; r++) {
            const float* n = work.n.p + 4 * r;
            for (int64_t j = 0; j < columns; j += LANES) {
                int64_t at = r * ld + j;
                vf a = load(here.Jz + at), b = load(here.Jz + block + at), c = load(here.Jz + 2 * block + at);
                vf along = n[0] * a + n[1] * b + n[2] * c, q = a * a + b * b + c * c - along * along;
                store(here.q + at, q);
                store(here.M + at, load(here.slope + at) * load(here.Mz + at) + load(here.bend + at) * q);
            }
        }
    }
    weigh(work.layers[L - 1].M, ld_top, rows, weights.last.p, top, motion, 1);
}

// After forward_tile: adds what gg [rows, d] (of the gradient) and gm [rows] (of the motion) ask for.
void backward_tile(const Network& net, const DerivativeWeights& weights, const float* gg, const float* gm, int64_t rows,
                   Workspace& work, Gradients& grads) {
    int L = net.layers;
    int64_t d = net.in(), R = work.tile;
    int64_t top = up(net.width(L - 1), NR), ld_top = row_length(net.width(L - 1));
    std::memset(work.n_bar.p, 0, 4 * 4 * R);
    float *M_bar = work.one.p, *Mz_bar = work.other.p;
    for (int64_t r = 0; r < R; r++) {
        float weight = r < rows ? gm[r] : 0;
        for (int64_t j = 0; j < top; j += LANES) {
            store(M_bar + r * ld_top + j, weight * load(weights.last.p + j));
            store(grads.tile_last.p + j, load(grads.tile_last.p + j) + weight * load(work.layers[L - 1].M + r * ld_top + j));
        }
    }
    for (int l = L - 1; l >= 0; l--) {
        const Layer& here = work.layers[l];
        int64_t columns = up(net.width(l), NR), ld = row_length(net.width(l)), block = R * ld;
        for (int64_t r = 0; r < R; r++) {
            const float* n = work.n.p + 4 * r;
            vf n0{}, n1{}, n2{};
            for (int64_t j = 0; j < columns; j += LANES) {
                int64_t at = r * ld + j;
                vf bar = load(M_bar + at), a = load(here.Jz + at), b = load(here.Jz + block + at);
                vf c = load(here.Jz + 2 * block + at), along = n[0] * a + n[1] * b + n[2] * c;
                vf q_bar = bar * load(here.bend + at), by_along = -2 * q_bar * along;
                store(here.slope_bar + at, bar * load(here.Mz + at));
                store(here.bend_bar + at, bar * load(here.q + at));
                store(here.Jz_bar + at, 2 * q_bar * a + by_along * n[0]);
                store(here.Jz_bar + block + at, 2 * q_bar * b + by_along * n[1]);
                store(here.Jz_bar + 2 * block + at, 2 * q_bar * c + by_along * n[2]);
                for (int64_t k = SPACE; k < d; k++) store(here.Jz_bar + k * block + at, vf{});
                n0 += by_along * a;
                n1 += by_along * b;
                n2 += by_along * c;
                store(Mz_bar + at, bar * load(here.slope + at));
            }
            work.n_bar.p[4 * r] += sum(n0);
            work.n_bar.p[4 * r + 1] += sum(n1);
            work.n_bar.p[4 * r + 2] += sum(n2);
        }
        if (l == 0) break;
        int64_t before = net.width(l - 1), lda = row_length(before);
        add_outer(Mz_bar, ld, net.width(l), work.layers[l - 1].M, lda, before, R, grads.W[l].p);
        plain_product(Mz_bar, ld, R, net.width(l), weights.packed.backward[l].p, up(before, NR), M_bar, lda);
    }
    for (int64_t r = 0; r < R; r++) {
        const float *n = work.n.p + 4 * r, *n_bar = work.n_bar.p + 4 * r;
        float along = n[0] * n_bar[0] + n[1] * n_bar[1] + n[2] * n_bar[2];
        for (int64_t k = 0; k < d; k++) {
            float bar = r < rows ? gg[r * d + k] : 0;
            if (k < SPACE) bar += (n_bar[k] - n[k] * along) / work.norm.p[r];
            work.g_bar.p[4 * r + k] = bar;
        }
    }
    float* J_bar = work.J_bar.p;
    for (int64_t k = 0; k < d; k++)
        for (int64_t r = 0; r < R; r++) {
            float weight = work.g_bar.p[4 * r + k];
            int64_t row = (k * R + r) * ld_top;
            for (int64_t j = 0; j < top; j += LANES) {
                store(J_bar + row + j, weight * load(weights.last.p + j));
                store(grads.tile_last.p + j, load(grads.tile_last.p + j) + weight * load(work.layers[L - 1].J + row + j));
            }
        }
    for (int l = L - 1; l >= 0; l--) {
        const Layer& here = work.layers[l];
        int64_t columns = up(net.width(l), NR), ld = row_length(net.width(l)), block = R * ld;
        for (int64_t r = 0; r < R; r++)
            for (int64_t j = 0; j < columns; j += LANES) {
                int64_t at = r * ld + j;
                vf slope = load(here.slope + at), slope_bar = load(here.slope_bar + at);
                for (int64_t k = 0; k < d; k++) {
                    vf bar = load(J_bar + k * block + at);
                    slope_bar += bar * load(here.Jz + k * block + at);
                    store(here.Jz_bar + k * block + at, load(here.Jz_bar + k * block + at) + slope * bar);
                }
                store(here.slope_bar + at, slope_bar);
            }
        if (l == 0) break;
        int64_t before = net.width(l - 1), lda = row_length(before);
        add_outer(here.Jz_bar, ld, net.width(l), work.layers[l - 1].J, lda, before, d * R, grads.W[l].p);
        plain_product(here.Jz_bar, ld, d * R, net.width(l), weights.packed.backward[l].p, up(before, NR), J_bar, lda);
    }
    // The values: z gets h's, slope's and bend's shares.
    int64_t first = up(net.width(0), NR), ld_first = row_length(net.width(0));
    float *h_bar = work.one.p, *z_bar = work.other.p;
    std::memset(h_bar, 0, 4 * R * ld_top);
    for (int l = L - 1; l >= 0; l--) {
        const Layer& here = work.layers[l];
        int64_t columns = up(net.width(l), NR), ld = row_length(net.width(l));
        float* db = grads.tile_b[l].p;
        for (int64_t r = 0; r < R; r++)
            for (int64_t j = 0; j < columns; j += LANES) {
                int64_t at = r * ld + j;
                vf z = load(h_bar + at) * load(here.slope + at) + load(here.slope_bar + at) * load(here.bend + at) +
                       load(here.bend_bar + at) * load(here.third + at);
                store(z_bar + at, z);
                store(db + j, load(db + j) + z);
            }
        if (l == 0) break;
        int64_t before = net.width(l - 1), lda = row_length(before);
        add_outer(z_bar, ld, net.width(l), work.layers[l - 1].h, lda, before, R, grads.W[l].p);
        plain_product(z_bar, ld, R, net.width(l), weights.packed.backward[l].p, up(before, NR), h_bar, lda);
    }
    add_outer_narrow(z_bar, ld_first, net.width(0), work.x.p, d, d, R, grads.W[0].p);
    for (int64_t k = 0; k < d; k++)
        for (int64_t r = 0; r < R; r++)
            for (int64_t j = 0; j < first; j += LANES) {
                float* dW = grads.tile_first.p + k * first + j;
                store(dW, load(dW) + load(work.layers[0].Jz_bar + (k * R + r) * ld_first + j));
            }
    grads.end_tile(net);
    grads.end_tile_weights(net);
}

}  // namespace

// Both return 0, or 1 where memory ran out, 2 for another activation, 3 for fewer than 3 or more than 4 coordinates.
extern "C" {

int aire_mean_curvature(int kind, int layers, const int64_t* sizes, const float* const* W, const float* const* b,
                        const float* omega, const float* x, int64_t rows, float* gradient, float* motion, int threads) {
    if (kind != SIREN && kind != FINER) return 2;
    if (sizes[0] < SPACE || sizes[0] > 4) return 3;
    try {
        Network net{layers, sizes, W, b, omega};
        DerivativeWeights weights(net);
        over_tiles<Workspace>(net, MOTION_ROWS, rows, threads, [&](int, int64_t r, int64_t count, Workspace& work) {
            auto run = kind == SIREN ? forward_tile<SIREN> : forward_tile<FINER>;
            run(net, weights, x + r * net.in(), count, work, motion + r);
            for (int64_t i = 0; i < count; i++)
                std::memcpy(gradient + (r + i) * net.in(), work.g.p + 4 * i, 4 * net.in());
        });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int aire_mean_curvature_backward(int kind, int layers, const int64_t* sizes, const float* const* W,
                                 const float* const* b, const float* omega, const float* x, const float* gg,
                                 const float* gm, int64_t rows, float* const* dW, float* const* db, int threads) {
    if (kind != SIREN && kind != FINER) return 2;
    if (sizes[0] < SPACE || sizes[0] > 4) return 3;
    try {
        Network net{layers, sizes, W, b, omega};
        DerivativeWeights weights(net);
        auto parts = gradients(net, threads);
        over_tiles<Workspace>(net, MOTION_ROWS, rows, threads, [&](int id, int64_t r, int64_t count, Workspace& work) {
            float motion[MOTION_ROWS];
            auto run = kind == SIREN ? forward_tile<SIREN> : forward_tile<FINER>;
            run(net, weights, x + r * net.in(), count, work, motion);
            backward_tile(net, weights, gg + r * net.in(), gm + r, count, work, *parts[id]);
        });
        reduce(net, parts, dW, db, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // extern "C"
