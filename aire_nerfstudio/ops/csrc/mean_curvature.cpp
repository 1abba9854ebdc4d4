// Gradient of a sine network f(x, y, z[, t]) and |grad f| div(grad f / |grad f|) = laplace f - n H n in space, and what a
// loss on both asks of weights and biases. Called through ctypes by ops/mean_curvature.py, which checks all arguments.
//
// laplace f - n H n is u H u + v H v for directions u, v across the normal n, and of a network of one output that needs no
// second-order stream: with a_l = df/dh_l and s_i = dz_l / du_i it is the sum over layers and neurons of
//   a_l act''(z_l) q_l,   q_l = s_1^2 + s_2^2.
// Forward: values h, their adjoint a and e = a act'(z) back to the gradient, tangents s and t = s act'(z) along u and v.
// Backward has z, a and s from it, or where that costs more than it saves does all of it again, tile by tile. With m the
// loss's gradient with respect to the motion, it first goes back through the tangents,
//   c_i = sigma_i,(l+1) W_(l+1);    sigma_i = c_i act'(z) + 2 m a act''(z) s_i,
// which at the points is what m asks of u and v, 2 m H u and 2 m H v. Their parts along n are what the motion changes by
// through the normal: divided by |grad f| and subtracted, along u and v, from the loss's gradient with respect to grad f they
// make d. Then forward and back once more,
//   tau_l = T_(l-1) W_l, T_0 = d;   T_l = tau act'(z) + m act''(z) q
//   dz_l = (dz_(l+1) W_(l+1)) act'(z) + a (tau act''(z) + m act'''(z) q) + (s_1 c_1 + s_2 c_2) act''(z)
// and dW_l = dz h + sigma_1 t_1 + sigma_2 t_2 + e T, one product over four rows a point. Where the gradient vanishes, and
// there is no normal, the third axis is taken.

#include "network.h"

namespace {

constexpr float TINY = 1e-20f;  // as safe_norm in ops/vectors.py
constexpr int SPACE = 3;
constexpr int MOTION_ROWS = 2 * MR;  // rows at a time; one or four times as many take as long

// From so many neurons on four products are dearer than what they give is to keep. The tile unit's are cheap: by how fast it
// multiplies and memory answers there is nothing to gain, which was not measured.
#if defined(AIRE_BF16_TERMS) && defined(__AMX_BF16__)
constexpr int64_t KEEP_FROM = INT64_MAX;
#else
constexpr int64_t KEEP_FROM = 96;
#endif

// Of one layer of a tile, blocks of its rows one behind the other.
struct Layer {
    float* right;  // h, t_1, t_2, T
    float* left;   // dz, sigma_1, sigma_2, e
    float *slope, *bend, *third;
    float* added;      // to dz, by sigmas and T
    float *z, *a, *s;  // s_1, s_2; the three may lie where they are kept
    static constexpr int64_t OWN = 4 + 4 + 4, KEPT = 4;
};

struct Workspace {
    int64_t tile;
    Buffer points, memory, kept, scratch, gradient, norm, motion;
    std::vector<Layer> layers;
    Workspace(const Network& net, int64_t rows)
        : tile(rows), points(4 * rows * net.in()), memory(Layer::OWN * layer_floats(net, rows)),
          kept(kept_floats(net, rows)), scratch(2 * rows * row_length(net.widest())), gradient(rows * 4), norm(rows),
          motion(rows) {
        float* p = memory.p;
        for (int l = 0; l < net.layers; l++) {
            int64_t size = rows * row_length(net.width(l));
            layers.push_back({p, p + 4 * size, p + 8 * size, p + 9 * size, p + 10 * size, p + 11 * size, 0, 0, 0});
            p += Layer::OWN * size;
        }
        keep_in(net, kept.p);
    }
    static int64_t kept_floats(const Network& net, int64_t rows) { return Layer::KEPT * layer_floats(net, rows); }
    void keep_in(const Network& net, float* p) {
        for (int l = 0; l < net.layers; l++) {
            int64_t size = tile * row_length(net.width(l));
            layers[l].z = p;
            layers[l].a = p + size;
            layers[l].s = p + 2 * size;
            p += Layer::KEPT * size;
        }
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

// A network's layer, its inputs' right block (points, u, v, and n or d for the first layer) and its rows' lengths.
struct Place {
    const Layer& here;
    int64_t columns, ld, block;
    const float* before;
    int64_t depth, ld_before;
};

Place place_of(const Network& net, const Workspace& work, int l) {
    int64_t ld = row_length(net.width(l));
    bool is_first = l == 0;
    return {work.layers[l], up(net.width(l), NR), ld, work.tile * ld, is_first ? work.points.p : work.layers[l - 1].right,
            is_first ? net.in() : net.width(l - 1), is_first ? net.in() : row_length(net.width(l - 1))};
}

// Two unit vectors across the unit vector n, as across in ops/vectors.py.
void frame(const float* n, float* u, float* v) {
    float sign = n[2] < 0 ? -1 : 1, a = -1 / (sign + n[2]), b = n[0] * n[1] * a;
    u[0] = 1 + sign * n[0] * n[0] * a;
    u[1] = sign * b;
    u[2] = -sign * n[0];
    v[0] = b;
    v[1] = sign + n[1] * n[1] * a;
    v[2] = -n[1];
}

// The rows of a tile, those that do not exist at x = 0.
void take_points(const float* x, int64_t rows, int64_t d, Workspace& work) {
    std::memcpy(work.points.p, x, 4 * rows * d);
    std::fill(work.points.p + rows * d, work.points.p + work.tile * d, 0.0f);
}

// From the first layer's e: the gradient, its length, and the directions across and along it.
void take_frame(const Network& net, const DerivativeWeights& weights, Workspace& work) {
    int64_t d = net.in(), R = work.tile;
    Place first = place_of(net, work, 0);
    for (int64_t k = 0; k < d; k++)
        weigh(first.here.left + 3 * first.block, first.ld, R, weights.first.p + k * first.columns, first.columns,
              work.gradient.p + k, 4);
    float *u = work.points.p + R * d, *v = u + R * d, *n = v + R * d;
    std::memset(u, 0, 4 * 3 * R * d);
    for (int64_t r = 0; r < R; r++) {
        const float* g = work.gradient.p + 4 * r;
        float norm = std::sqrt(g[0] * g[0] + g[1] * g[1] + g[2] * g[2] + TINY);
        work.norm.p[r] = norm;
        for (int k = 0; k < SPACE; k++) n[r * d + k] = g[k] / norm;
        frame(n + r * d, u + r * d, v + r * d);
    }
}

// Fills work; the third derivative only for backward.
template <int KIND, bool IS_FOR_BACKWARD>
void forward_tile(const Network& net, const DerivativeWeights& weights, const float* x, int64_t rows, Workspace& work) {
    int L = net.layers;
    int64_t d = net.in(), R = work.tile;
    take_points(x, rows, d, work);
    for (int l = 0; l < L; l++) {
        Place at = place_of(net, work, l);
        const Layer& here = at.here;
        plain_product(at.before, at.ld_before, R, at.depth, weights.packed.forward[l].p, at.columns, here.z, at.ld);
        float w = net.omega[l];
        for (int64_t r = 0; r < R; r++)
            for (int64_t j = 0; j < at.columns; j += LANES) {
                int64_t i = r * at.ld + j;
                vf z = load(here.z + i) + load(weights.packed.bias[l].p + j), v, s, t, c;
                activate3<KIND>(z, w, v, s, t, c);
                store(here.z + i, z);
                store(here.right + i, v);
                store(here.slope + i, s);
                store(here.bend + i, t);
                if (IS_FOR_BACKWARD) store(here.third + i, c);
            }
    }
    for (int l = L - 1; l >= 0; l--) {
        Place at = place_of(net, work, l);
        const Layer& here = at.here;
        float* e = here.left + 3 * at.block;
        if (l == L - 1) {
            for (int64_t r = 0; r < R; r++) std::memcpy(here.a + r * at.ld, weights.last.p, 4 * at.columns);
        } else {
            int64_t ld = row_length(net.width(l + 1));
            plain_product(work.layers[l + 1].left + 3 * R * ld, ld, R, net.width(l + 1), weights.packed.backward[l + 1].p,
                          at.columns, here.a, at.ld);
        }
        for (int64_t r = 0; r < R; r++)
            for (int64_t j = 0; j < at.columns; j += LANES) {
                int64_t i = r * at.ld + j;
                store(e + i, load(here.a + i) * load(here.slope + i));
            }
    }
    take_frame(net, weights, work);
    std::memset(work.motion.p, 0, 4 * R);
    for (int l = 0; l < L; l++) {
        Place at = place_of(net, work, l);
        const Layer& here = at.here;
        plain_product(at.before + R * at.ld_before, at.ld_before, 2 * R, at.depth, weights.packed.forward[l].p, at.columns,
                      here.s, at.ld);
        for (int64_t r = 0; r < R; r++) {
            vf motion{};
            for (int64_t j = 0; j < at.columns; j += LANES) {
                int64_t i = r * at.ld + j;
                vf slope = load(here.slope + i), s1 = load(here.s + i), s2 = load(here.s + at.block + i);
                motion += load(here.a + i) * load(here.bend + i) * (s1 * s1 + s2 * s2);
                store(here.right + at.block + i, s1 * slope);
                store(here.right + 2 * at.block + i, s2 * slope);
            }
            work.motion.p[r] += sum(motion);
        }
    }
}

// What forward_tile fills work with, from what was kept of it.
template <int KIND>
void restore_tile(const Network& net, const DerivativeWeights& weights, const float* x, int64_t rows, Workspace& work) {
    take_points(x, rows, net.in(), work);
    for (int l = 0; l < net.layers; l++) {
        Place at = place_of(net, work, l);
        const Layer& here = at.here;
        float w = net.omega[l];
        for (int64_t r = 0; r < work.tile; r++)
            for (int64_t j = 0; j < at.columns; j += LANES) {
                int64_t i = r * at.ld + j;
                vf v, s, t, c;
                activate3<KIND>(load(here.z + i), w, v, s, t, c);
                store(here.right + i, v);
                store(here.right + at.block + i, load(here.s + i) * s);
                store(here.right + 2 * at.block + i, load(here.s + at.block + i) * s);
                store(here.left + 3 * at.block + i, load(here.a + i) * s);
                store(here.slope + i, s);
                store(here.bend + i, t);
                store(here.third + i, c);
            }
    }
    take_frame(net, weights, work);
}

// After forward_tile or restore_tile: adds what gg [rows, d] (of the gradient) and gm [rows] (of the motion) ask for.
void backward_tile(const Network& net, const DerivativeWeights& weights, const float* gg, const float* gm, int64_t rows,
                   Workspace& work, Gradients& grads) {
    int L = net.layers;
    int64_t d = net.in(), R = work.tile;
    float* scratch = work.scratch.p;
    std::memset(scratch, 0, 4 * 2 * R * row_length(net.width(L - 1)));
    for (int l = L - 1; l >= 0; l--) {
        Place at = place_of(net, work, l);
        const Layer& here = at.here;
        for (int64_t r = 0; r < R; r++) {
            float m = r < rows ? 2 * gm[r] : 0;
            for (int64_t j = 0; j < at.columns; j += LANES) {
                int64_t i = r * at.ld + j;
                vf slope = load(here.slope + i), bend = load(here.bend + i), weight = m * load(here.a + i) * bend;
                vf s1 = load(here.s + i), s2 = load(here.s + at.block + i);
                vf c1 = load(scratch + i), c2 = load(scratch + at.block + i);
                store(here.left + at.block + i, c1 * slope + weight * s1);
                store(here.left + 2 * at.block + i, c2 * slope + weight * s2);
                store(here.added + i, (s1 * c1 + s2 * c2) * bend);
            }
        }
        if (l > 0)
            plain_product(here.left + at.block, at.ld, 2 * R, net.width(l), weights.packed.backward[l].p, up(at.depth, NR),
                          scratch, at.ld_before);
    }
    // Along n, what the first layer's sigmas ask of u and v is their product with its tangent along n.
    Place first = place_of(net, work, 0);
    const float *u = work.points.p + R * d, *v = u + R * d;
    float* direction = work.points.p + 3 * R * d;
    plain_product(direction, d, R, d, weights.packed.forward[0].p, first.columns, scratch, first.ld);
    for (int64_t r = 0; r < R; r++) {
        vf of_u{}, of_v{};
        for (int64_t j = 0; j < first.columns; j += LANES) {
            int64_t i = r * first.ld + j;
            vf along = load(scratch + i);
            of_u += along * load(first.here.left + first.block + i);
            of_v += along * load(first.here.left + 2 * first.block + i);
        }
        // Where there is no normal its derivative, which is divided by that length, says nothing.
        float norm = work.norm.p[r], by_u = norm > 1e-9f ? sum(of_u) / norm : 0, by_v = norm > 1e-9f ? sum(of_v) / norm : 0;
        for (int64_t k = 0; k < d; k++)
            direction[r * d + k] = (r < rows ? gg[r * d + k] : 0) - by_u * u[r * d + k] - by_v * v[r * d + k];
    }
    for (int l = 0; l < L; l++) {
        Place at = place_of(net, work, l);
        const Layer& here = at.here;
        plain_product(at.before + 3 * R * at.ld_before, at.ld_before, R, at.depth, weights.packed.forward[l].p, at.columns,
                      scratch, at.ld);
        for (int64_t r = 0; r < R; r++) {
            float m = r < rows ? gm[r] : 0;
            for (int64_t j = 0; j < at.columns; j += LANES) {
                int64_t i = r * at.ld + j;
                vf tau = load(scratch + i), s1 = load(here.s + i), s2 = load(here.s + at.block + i);
                vf curved = m * (s1 * s1 + s2 * s2), bend = load(here.bend + i);
                store(here.right + 3 * at.block + i, tau * load(here.slope + i) + curved * bend);
                vf added = load(here.a + i) * (tau * bend + curved * load(here.third + i));
                store(here.added + i, load(here.added + i) + added);
            }
        }
    }
    Place top = place_of(net, work, L - 1);
    for (int64_t r = 0; r < R; r++)
        for (int64_t j = 0; j < top.columns; j += LANES)
            store(grads.tile_last.p + j,
                  load(grads.tile_last.p + j) + load(top.here.right + 3 * top.block + r * top.ld + j));
    std::memset(scratch, 0, 4 * top.block);
    for (int l = L - 1; l >= 0; l--) {
        Place at = place_of(net, work, l);
        const Layer& here = at.here;
        float* db = grads.tile_b[l].p;
        for (int64_t r = 0; r < R; r++)
            for (int64_t j = 0; j < at.columns; j += LANES) {
                int64_t i = r * at.ld + j;
                vf z = load(scratch + i) * load(here.slope + i) + load(here.added + i);
                store(here.left + i, z);
                store(db + j, load(db + j) + z);
            }
        if (l == 0) {
            add_outer_narrow(here.left, at.ld, net.width(0), work.points.p, d, d, 4 * R, grads.W[0].p);
            break;
        }
        add_outer(here.left, at.ld, net.width(l), at.before, at.ld_before, at.depth, 4 * R, grads.W[l].p);
        plain_product(here.left, at.ld, R, net.width(l), weights.packed.backward[l].p, up(at.depth, NR), scratch,
                      at.ld_before);
    }
    grads.end_tile(net);
    grads.end_tile_weights(net);
}

}  // namespace

// The last two return 0, or 1 where memory ran out, 2 for another activation, 3 for fewer than 3 or more than 4 coordinates.
extern "C" {

// What forward keeps for backward; where it is 0, memory is null, as it is where there will be no backward.
int64_t aire_mean_curvature_floats(int layers, const int64_t* sizes, int64_t rows) {
    Network net{layers, sizes, nullptr, nullptr, nullptr};
    if (net.widest() < KEEP_FROM) return 0;
    return (rows + MOTION_ROWS - 1) / MOTION_ROWS * Workspace::kept_floats(net, MOTION_ROWS);
}

int aire_mean_curvature(int kind, int layers, const int64_t* sizes, const float* const* W, const float* const* b,
                        const float* omega, const float* x, int64_t rows, float* gradient, float* motion, float* memory,
                        int threads) {
    if (kind != SIREN && kind != FINER) return 2;
    if (sizes[0] < SPACE || sizes[0] > 4) return 3;
    try {
        Network net{layers, sizes, W, b, omega};
        DerivativeWeights weights(net);
        auto run = kind == SIREN ? (memory ? forward_tile<SIREN, true> : forward_tile<SIREN, false>)
                                 : (memory ? forward_tile<FINER, true> : forward_tile<FINER, false>);
        over_tiles<Workspace>(net, MOTION_ROWS, rows, threads, [&](int, int64_t r, int64_t count, Workspace& work) {
            if (memory) work.keep_in(net, memory + r / MOTION_ROWS * Workspace::kept_floats(net, MOTION_ROWS));
            run(net, weights, x + r * net.in(), count, work);
            for (int64_t i = 0; i < count; i++) {
                std::memcpy(gradient + (r + i) * net.in(), work.gradient.p + 4 * i, 4 * net.in());
                motion[r + i] = work.motion.p[i];
            }
        });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int aire_mean_curvature_backward(int kind, int layers, const int64_t* sizes, const float* const* W,
                                 const float* const* b, const float* omega, const float* x, const float* gg,
                                 const float* gm, int64_t rows, float* memory, float* const* dW, float* const* db,
                                 int threads) {
    if (kind != SIREN && kind != FINER) return 2;
    if (sizes[0] < SPACE || sizes[0] > 4) return 3;
    try {
        Network net{layers, sizes, W, b, omega};
        DerivativeWeights weights(net);
        threads = busy(threads, MOTION_ROWS, rows);
        auto parts = gradients(net, threads);
        auto run = kind == SIREN ? (memory ? restore_tile<SIREN> : forward_tile<SIREN, true>)
                                 : (memory ? restore_tile<FINER> : forward_tile<FINER, true>);
        over_tiles<Workspace>(net, MOTION_ROWS, rows, threads, [&](int id, int64_t r, int64_t count, Workspace& work) {
            if (memory) work.keep_in(net, memory + r / MOTION_ROWS * Workspace::kept_floats(net, MOTION_ROWS));
            run(net, weights, x + r * net.in(), count, work);
            backward_tile(net, weights, gg + r * net.in(), gm + r, count, work, *parts[id]);
        });
        reduce(net, parts, dW, db, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // extern "C"
