"""Triton kernels of a sine network's gradient and mean-curvature motion, and of their loss's gradients.

laplace f - n H n is u H u + v H v for two directions u, v at right angles to the normal n and to each other, and of a
network of one output it needs no second-order stream: with s_i = dz_l / du_i, a_l = df/dh_l and q = s_1^2 + s_2^2,

    u H u + v H v = sum over layers l and neurons of a_l . act''(z_l) . q_l,     u H n likewise with s_1 s_n.

So there are, after the passes of :mod:`~aire_nerfstudio.ops.triton_gradient_kernels` that give a and n, three tangents
forward (along u, v and n; without gradients two). What the loss leaves in the weights are three more passes, with m the
loss's gradient with respect to the motion and d its gradient with respect to df/dx, to which 2 m / |df/dx| times the
part of H n across n is added, negative, for what the motion changes by through n:

=============  =====================================================================================================
source         tau_l = T_(l-1) W_l^T from T_0 = d; T_l = tau_l . act'(z) + m act''(z) . q
reverse        c_i = sigma_i,(l+1) W_(l+1), sigma_i = c_i . act'(z) + 2 m a . act''(z) . s_i; and dz_l = (dz_(l+1)
               W_(l+1)) . act'(z) + a . (tau . act''(z) + m act'''(z) . q) + (s_1 . c_1 + s_2 . c_2) . act''(z)
=============  =====================================================================================================

dW_l is dz_l^T h_(l-1) + e_l^T T_(l-1) + sigma_1^T t_1 + sigma_2^T t_2, with t_i the tangents before. Matrices are
padded and scaled as there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aire_nerfstudio.ops.triton_activations import derivatives_of, loaded
from aire_nerfstudio.ops.triton_gradient_kernels import largest_of
from aire_nerfstudio.ops.triton_launches import Tile
from aire_nerfstudio.ops.triton_products import (
    entered,
    load_tile,
    points_product,
    product,
    products,
    store_tile,
    tile_of,
)
from aire_nerfstudio.ops.triton_sums import LARGEST, largest_in, slope_bound

# Rows of a program that works through points.
POINTS = 256


def tile(is_entry: bool, kind: int, has_copy_engine: bool) -> Tile:
    """How a layer is shared out where several streams go through it.

    SIREN's is of a few the fastest on an H200 that spill no registers; the others were not measured.
    """
    warps = 4 if has_copy_engine and kind == 0 else 8
    return {"ROWS": 64, "COLUMNS": 32 if is_entry else 64, "DEPTH": 64, "num_warps": warps, "num_stages": 3}


@triton.jit(do_not_specialize=["rows"])
def frame(gradient, directions, rows, INPUTS: tl.constexpr, ROWS: tl.constexpr):
    """Directions [3, rows, INPUTS]: two unit vectors at right angles to each gradient [rows, INPUTS], and its own.

    All in the first three coordinates; the two as in :func:`~aire_nerfstudio.ops.vectors.across`.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = r < rows
    at = r.to(tl.int64) * INPUTS
    stride = rows.to(tl.int64) * INPUTS
    x = tl.load(gradient + at, mask=is_row, other=0.0)
    y = tl.load(gradient + at + 1, mask=is_row, other=0.0)
    z = tl.load(gradient + at + 2, mask=is_row, other=1.0)
    inverse = 1 / tl.sqrt(x * x + y * y + z * z + 1e-20)
    x, y, z = x * inverse, y * inverse, z * inverse
    sign = tl.where(z < 0, -1.0, 1.0)
    a = -1 / (sign + z)
    b = x * y * a
    tl.store(directions + at, 1 + sign * x * x * a, mask=is_row)
    tl.store(directions + at + 1, sign * b, mask=is_row)
    tl.store(directions + at + 2, -sign * x, mask=is_row)
    tl.store(directions + stride + at, b, mask=is_row)
    tl.store(directions + stride + at + 1, sign + y * y * a, mask=is_row)
    tl.store(directions + stride + at + 2, -y, mask=is_row)
    tl.store(directions + 2 * stride + at, x, mask=is_row)
    tl.store(directions + 2 * stride + at + 1, y, mask=is_row)
    tl.store(directions + 2 * stride + at + 2, z, mask=is_row)
    for k in tl.static_range(3, INPUTS):
        for stream in tl.static_range(3):
            tl.store(directions + stream * stride + at + k, tl.zeros((ROWS,), tl.float32), mask=is_row)


@triton.jit(do_not_specialize=["rows"])
def through_normal(
    grad, grad_motion, gradient, directions, bent, out, largest, largest_motion, rows,
    INPUTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Out [rows, INPUTS] = grad - 2 grad_motion / |gradient| times the part of H n across n.

    That part is bent_1 u + bent_2 v, of bent [rows, 3] = motion, u H n, v H n. largest and largest_motion [programs]:
    of |out| and |grad_motion|.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = r < rows
    place = r.to(tl.int64)
    at = place * INPUTS
    stride = rows.to(tl.int64) * INPUTS
    m = tl.load(grad_motion + place, mask=is_row, other=0.0)
    square = tl.zeros((ROWS,), tl.float32)
    for k in tl.static_range(3):
        g = tl.load(gradient + at + k, mask=is_row, other=1.0)
        square += g * g
    gain = -2 * m / tl.sqrt(square + 1e-20)
    first = gain * tl.load(bent + place * 3 + 1, mask=is_row, other=0.0)
    second = gain * tl.load(bent + place * 3 + 2, mask=is_row, other=0.0)
    size = tl.zeros((ROWS,), tl.float32)
    for k in tl.static_range(INPUTS):
        d = tl.load(grad + at + k, mask=is_row, other=0.0)
        if k < 3:
            d += first * tl.load(directions + at + k, mask=is_row, other=0.0)
            d += second * tl.load(directions + stride + at + k, mask=is_row, other=0.0)
        tl.store(out + at + k, d, mask=is_row)
        size = tl.maximum(size, tl.abs(d))
    tl.store(largest + tl.program_id(0), tl.max(size, 0))
    tl.store(largest_motion + tl.program_id(0), tl.max(tl.abs(m), 0))


@triton.jit
def _bent(first, second, third, weighted, shares, tile, place, is_row, rows, STREAMS: tl.constexpr):
    """Sums over columns of weighted (s_1^2 + s_2^2), s_1 s_3 and s_2 s_3, into a share [rows, 3]."""
    share = shares + (tile.to(tl.int64) * rows + place) * 3
    tl.store(share, tl.sum(weighted * (first * first + second * second), 1), mask=is_row)
    if STREAMS == 3:
        tl.store(share + 1, tl.sum(weighted * first * third, 1), mask=is_row)
        tl.store(share + 2, tl.sum(weighted * second * third, 1), mask=is_row)


@triton.jit(do_not_specialize=["rows", "width"])
def tangents_entry(
    points, directions, weight, bias, adjoint, adjoint_scale, scale, out, out_1, out_2, shares, largest,
    rows, columns, width, omega,
    KIND: tl.constexpr, ENTRY: tl.constexpr, STREAMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Out_i [rows, columns] = scale s_i . act'(z) of the first layer, float16, with s_i = directions_i weight^T.

    points [rows, ENTRY], directions [3, rows, ENTRY], weight [width, ENTRY], adjoint [rows, columns] = a adjoint_scale.
    shares [column programs, rows, 3]: see the module. largest [programs].
    """
    _, tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    stride = rows.to(tl.int64)
    keep = entered(points, weight, bias, place, is_row, c, width, omega, KIND, ENTRY)
    _, slope, bend, _ = derivatives_of(keep, omega, KIND)
    a = load_tile(adjoint, where, ROWS, COLUMNS).to(tl.float32) * (1 / tl.load(adjoint_scale))
    scaled = slope * tl.load(scale)
    first = points_product(directions, weight, place, is_row, c, width, ENTRY)
    t = first * scaled
    store_tile(out, t.to(tl.float16), where, ROWS, COLUMNS)
    size = tl.abs(t)
    second = points_product(directions + stride * ENTRY, weight, place, is_row, c, width, ENTRY)
    t = second * scaled
    store_tile(out_1, t.to(tl.float16), where, ROWS, COLUMNS)
    size = tl.maximum(size, tl.abs(t))
    third = first
    if STREAMS == 3:
        third = points_product(directions + 2 * stride * ENTRY, weight, place, is_row, c, width, ENTRY)
        t = third * scaled
        store_tile(out_2, t.to(tl.float16), where, ROWS, COLUMNS)
        size = tl.maximum(size, tl.abs(t))
    _bent(first, second, third, a * bend, shares, tile, place, is_row, rows, STREAMS)
    tl.store(largest + tl.program_id(0), largest_of(size))


@triton.jit(do_not_specialize=["rows", "width"])
def tangents(
    x, x_1, x_2, weight, kept, adjoint, adjoint_scale, last, factor, scale, s_out, s_out_1, out, out_1, out_2, shares,
    largest, rows, depth, columns, width, omega,
    KIND: tl.constexpr, LAST: tl.constexpr, STREAMS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Out_i [rows, columns] = s_i . act'(z) and, of three, s_out_i [rows, columns] = s_1, s_2, both float16.

    s_i = factor x_i weight^T is at ``scale``; x_i [rows, depth], weight [columns, depth]. shares [column tiles, rows,
    3] and adjoint as in :func:`tangents_entry`; where LAST, a is last [width], and there is no out.
    """
    _, tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    first, second, third = products(x, x_1, x_2, weight, where, depth, True, STREAMS, ROWS, COLUMNS, DEPTH)
    gain = tl.load(factor)
    first, second, third = first * gain, second * gain, third * gain
    _, slope, bend, _ = derivatives_of(loaded(load_tile(kept, where, ROWS, COLUMNS), KIND), omega, KIND)
    if STREAMS == 3:
        store_tile(s_out, first.to(tl.float16), where, ROWS, COLUMNS)
        store_tile(s_out_1, second.to(tl.float16), where, ROWS, COLUMNS)
    if LAST:
        a = tl.load(last + c, mask=c < width, other=0.0)[None, :]
    else:
        a = load_tile(adjoint, where, ROWS, COLUMNS).to(tl.float32) * (1 / tl.load(adjoint_scale))
        t = first * slope
        store_tile(out, t.to(tl.float16), where, ROWS, COLUMNS)
        size = tl.abs(t)
        t = second * slope
        store_tile(out_1, t.to(tl.float16), where, ROWS, COLUMNS)
        size = tl.maximum(size, tl.abs(t))
        if STREAMS == 3:
            t = third * slope
            store_tile(out_2, t.to(tl.float16), where, ROWS, COLUMNS)
            size = tl.maximum(size, tl.abs(t))
        tl.store(largest + tl.program_id(0), largest_of(size))
    inverse = 1 / tl.load(scale)
    first, second, third = first * inverse, second * inverse, third * inverse
    _bent(first, second, third, a * bend, shares, tile, place, is_row, rows, STREAMS)


@triton.jit(do_not_specialize=["rows", "width"])
def source_entry(
    points, direction, directions, weight, bias, grad_motion, scales, out, largest, rows, columns, width, omega,
    KIND: tl.constexpr, ENTRY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Out [rows, columns] = scales_0 T of the first layer, float16; all else as in :func:`tangents_entry`."""
    _block, _tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    keep = entered(points, weight, bias, place, is_row, c, width, omega, KIND, ENTRY)
    _, slope, bend, _ = derivatives_of(keep, omega, KIND)
    first = points_product(directions, weight, place, is_row, c, width, ENTRY)
    second = points_product(directions + rows.to(tl.int64) * ENTRY, weight, place, is_row, c, width, ENTRY)
    m = tl.load(grad_motion + place, mask=is_row, other=0.0)[:, None]
    t = points_product(direction, weight, place, is_row, c, width, ENTRY) * slope
    t = (t + m * bend * (first * first + second * second)) * tl.load(scales)
    store_tile(out, t.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest + tl.program_id(0), largest_of(t))


@triton.jit
def _across(s, s_1, s_scale, where, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """S_1 and s_2 of s and s_1 [rows, columns], at s_scale."""
    inverse = 1 / tl.load(s_scale)
    first = load_tile(s, where, ROWS, COLUMNS).to(tl.float32) * inverse
    return first, load_tile(s_1, where, ROWS, COLUMNS).to(tl.float32) * inverse


@triton.jit(do_not_specialize=["rows"])
def source(
    x, before, weight, kept, s, s_1, s_scale, adjoint, adjoint_scale, grad_motion, scales, mixed, out, largest,
    rows, depth, columns, omega,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Out [rows, columns] = scales_0 T, and mixed = scales_1 a . (tau . act''(z) + m act'''(z) . q), both float16.

    x [rows, depth] is T of the layer before times before []; s and s_1 [rows,
    columns] are at s_scale. largest [programs].
    """
    _block, _tile, where, _c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    tau = product(x, weight, where, depth, True, ROWS, COLUMNS, DEPTH) * (1 / tl.load(before))
    _, slope, bend, third = derivatives_of(loaded(load_tile(kept, where, ROWS, COLUMNS), KIND), omega, KIND)
    m = tl.load(grad_motion + place, mask=is_row, other=0.0)[:, None]
    first, second = _across(s, s_1, s_scale, where, ROWS, COLUMNS)
    curved = m * (first * first + second * second)
    t = (tau * slope + curved * bend) * tl.load(scales)
    store_tile(out, t.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest + tl.program_id(0), largest_of(t))
    a = load_tile(adjoint, where, ROWS, COLUMNS).to(tl.float32) * (1 / tl.load(adjoint_scale))
    both = a * (tau * bend + curved * third) * tl.load(scales + 1)
    store_tile(mixed, both.to(tl.float16), where, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["rows", "width"])
def last_source(
    x, before, weight, kept, s, s_1, s_scale, last, grad_motion, scales, out, out_1, out_2, parts, largest,
    largest_others, rows, depth, columns, width, omega,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The last layer's source and reverse: out_i [rows, columns] = dz at scales_0, sigma_1 and sigma_2 at scales_1.

    All else as in :func:`source`, with a the last weights [width]. parts [blocks, 2, columns]: sums over rows of the
    scaled dz, and of T, which is the last weights' gradient. largest and largest_others [programs]: of dz, of sigmas.
    """
    block, _tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    program = tl.program_id(0)
    parts += block.to(tl.int64) * 2 * columns + c
    tau = product(x, weight, where, depth, True, ROWS, COLUMNS, DEPTH) * (1 / tl.load(before))
    _, slope, bend, third = derivatives_of(loaded(load_tile(kept, where, ROWS, COLUMNS), KIND), omega, KIND)
    m = tl.load(grad_motion + place, mask=is_row, other=0.0)[:, None]
    first, second = _across(s, s_1, s_scale, where, ROWS, COLUMNS)
    curved = m * (first * first + second * second)
    tl.store(parts + columns, tl.sum(tau * slope + curved * bend, 0))
    w = tl.load(last + c, mask=c < width, other=0.0)[None, :]
    dz = w * (tau * bend + curved * third) * tl.load(scales)
    tl.store(parts, tl.sum(dz, 0))
    store_tile(out, dz.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest + program, largest_of(dz))
    gain = m * (w * 2 * tl.load(scales + 1)) * bend
    sigma = gain * first
    store_tile(out_1, sigma.to(tl.float16), where, ROWS, COLUMNS)
    size = tl.abs(sigma)
    sigma = gain * second
    store_tile(out_2, sigma.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest_others + program, largest_of(tl.maximum(size, tl.abs(sigma))))


@triton.jit(do_not_specialize=["rows"])
def reverse(
    grads, grads_1, grads_2, before, weight, kept, s, s_1, s_scale, adjoint, adjoint_scale, mixed, mixed_scale,
    grad_motion, scales, out, out_1, out_2, parts, largest, largest_others, rows, depth, columns, omega,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Out_i [rows, columns] = dz at scales_0, sigma_1 and sigma_2 at scales_1, float16.

    parts [blocks, columns]: sums over rows of the scaled dz. grads_i [rows, depth] are the next layer's at before_0
    and before_1, weight [depth, columns], mixed what :func:`source` left. largest and largest_others [programs]: of
    dz, of sigmas.
    """
    block, _tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    program = tl.program_id(0)
    g, c1, c2 = products(grads, grads_1, grads_2, weight, where, depth, False, 3, ROWS, COLUMNS, DEPTH)
    other = 1 / tl.load(before + 1)
    c1 *= other
    c2 *= other
    _, slope, bend, _ = derivatives_of(loaded(load_tile(kept, where, ROWS, COLUMNS), KIND), omega, KIND)
    first, second = _across(s, s_1, s_scale, where, ROWS, COLUMNS)
    both = load_tile(mixed, where, ROWS, COLUMNS).to(tl.float32) * (1 / tl.load(mixed_scale))
    dz = g * (1 / tl.load(before)) * slope + both + bend * (first * c1 + second * c2)
    dz *= tl.load(scales)
    store_tile(out, dz.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest + program, largest_of(dz))
    tl.store(parts + block.to(tl.int64) * columns + c, tl.sum(dz, 0))
    a = load_tile(adjoint, where, ROWS, COLUMNS).to(tl.float32) * (1 / tl.load(adjoint_scale))
    gain = (2 * tl.load(grad_motion + place, mask=is_row, other=0.0))[:, None] * a * bend
    scale = tl.load(scales + 1)
    sigma = (gain * first + slope * c1) * scale
    store_tile(out_1, sigma.to(tl.float16), where, ROWS, COLUMNS)
    size = tl.abs(sigma)
    sigma = (gain * second + slope * c2) * scale
    store_tile(out_2, sigma.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest_others + program, largest_of(tl.maximum(size, tl.abs(sigma))))


@triton.jit(do_not_specialize=["rows", "width"])
def reverse_entry(
    grads, grads_1, grads_2, before, weight, points, direction, directions, entry_weight, entry_bias, adjoint,
    adjoint_scale, grad_motion, parts, rows, depth, columns, width, omega,
    KIND: tl.constexpr, ENTRY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Parts [blocks, 1 + ENTRY, columns]: sums over rows of the first layer's dz, and of its weights' gradient.

    That is dz x + a . act'(z) d + sigma_1 u + sigma_2 v, for points x, direction d and directions u, v.
    """
    block, _tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    stride = rows.to(tl.int64) * ENTRY
    parts += block.to(tl.int64) * (1 + ENTRY) * columns + c
    g, c1, c2 = products(grads, grads_1, grads_2, weight, where, depth, False, 3, ROWS, COLUMNS, DEPTH)
    other = 1 / tl.load(before + 1)
    c1 *= other
    c2 *= other
    keep = entered(points, entry_weight, entry_bias, place, is_row, c, width, omega, KIND, ENTRY)
    _, slope, bend, third = derivatives_of(keep, omega, KIND)
    first = points_product(directions, entry_weight, place, is_row, c, width, ENTRY)
    second = points_product(directions + stride, entry_weight, place, is_row, c, width, ENTRY)
    tau = points_product(direction, entry_weight, place, is_row, c, width, ENTRY)
    m = tl.load(grad_motion + place, mask=is_row, other=0.0)[:, None]
    a = load_tile(adjoint, where, ROWS, COLUMNS).to(tl.float32) * (1 / tl.load(adjoint_scale))
    curved = m * (first * first + second * second)
    dz = g * (1 / tl.load(before)) * slope + a * (tau * bend + curved * third) + bend * (first * c1 + second * c2)
    tl.store(parts, tl.sum(dz, 0))
    gain = 2 * m * a * bend
    first = gain * first + slope * c1
    second = gain * second + slope * c2
    e = a * slope
    for k in tl.static_range(ENTRY):
        x = tl.load(points + place * ENTRY + k, mask=is_row, other=0.0)[:, None]
        d = tl.load(direction + place * ENTRY + k, mask=is_row, other=0.0)[:, None]
        u = tl.load(directions + place * ENTRY + k, mask=is_row, other=0.0)[:, None]
        v = tl.load(directions + stride + place * ENTRY + k, mask=is_row, other=0.0)[:, None]
        tl.store(parts + (1 + k) * columns, tl.sum(dz * x + e * d + first * u + second * v, 0))


@triton.jit
def _bounds(sizes, n_sizes, s_scale, omega, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Of |act'|, |act''|, |act'''|, and of |s|, which :func:`tangents` left below LARGEST when multiplied by act'."""
    slope = slope_bound(sizes, n_sizes, omega, KIND, BLOCK)
    growth = 0.0
    if KIND != 0:
        growth = 2 * omega
    bend = slope * slope + growth
    third = slope * (slope * slope + 3 * growth)
    return slope, bend, third, LARGEST / tl.load(s_scale) / tl.maximum(slope, 1.0)


@triton.jit
def _room(bound):
    return tl.minimum(LARGEST / tl.maximum(bound, 1e-37), 1e30)


@triton.jit(do_not_specialize=["n_tangents", "n_norms", "n_motions", "n_sizes"])
def source_scales(
    tangents, n_tangents, norms, n_norms, before, motions, n_motions, s_scale, adjoint_scale, last_size,
    sizes, n_sizes, omega, scales, KIND: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scales [2] of what :func:`source` leaves, T and mixed, or where LAST :func:`last_source`: dz and sigmas.

    tangents: largest T before, at before []; norms: largest sums along the weight's rows; motions: largest |m|; |a| is
    at most last_size [] where LAST, else what adjoint_scale [] left below LARGEST.
    """
    slope, bend, third, s = _bounds(sizes, n_sizes, s_scale, omega, KIND, BLOCK)
    tau = largest_in(tangents, n_tangents, BLOCK) / tl.load(before) * largest_in(norms, n_norms, BLOCK)
    m = largest_in(motions, n_motions, BLOCK)
    curved = 2 * m * s * s
    if LAST:
        a = tl.load(last_size)
        tl.store(scales, _room(a * (tau * bend + curved * third)))
        tl.store(scales + 1, _room(2 * m * a * bend * s))
    else:
        a = LARGEST / tl.load(adjoint_scale) / tl.maximum(slope, 1.0)
        tl.store(scales, _room(tau * slope + curved * bend))
        tl.store(scales + 1, _room(a * (tau * bend + curved * third)))


@triton.jit(do_not_specialize=["n_grads", "n_others", "n_norms", "n_motions", "n_sizes"])
def reverse_scales(
    grads, n_grads, others, n_others, norms, n_norms, before, motions, n_motions, s_scale, adjoint_scale, mixed_scale,
    sizes, n_sizes, omega, scales, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scales [2] of what :func:`reverse` leaves, dz and sigmas.

    grads, others: largest dz and sigmas of the next layer, at before [2]; norms: largest sums down its weight.
    """
    slope, bend, _, s = _bounds(sizes, n_sizes, s_scale, omega, KIND, BLOCK)
    norm = largest_in(norms, n_norms, BLOCK)
    g = largest_in(grads, n_grads, BLOCK) / tl.load(before) * norm
    c = largest_in(others, n_others, BLOCK) / tl.load(before + 1) * norm
    a = LARGEST / tl.load(adjoint_scale) / tl.maximum(slope, 1.0)
    tl.store(scales, _room(g * slope + LARGEST / tl.load(mixed_scale) + 2 * bend * s * c))
    tl.store(scales + 1, _room(2 * largest_in(motions, n_motions, BLOCK) * a * bend * s + slope * c))
