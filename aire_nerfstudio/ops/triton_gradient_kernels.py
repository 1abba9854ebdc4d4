"""Triton kernels of a sine network's value and gradient, and of what a loss on both leaves in the weights.

Four passes over the layers, each a float16 product a layer, float32 sums and an elementwise end; l is the layer, h its
values, z = W h + b, and dots are products element by element:

=============  =====================================================================================================
forward        h_l = act(z_l); the last layer leaves e = w . act'(z) instead
adjoint        a_l = e_(l+1) W_(l+1) = df/dh_l, e_l = a_l . act'(z_l); the first layer leaves the gradient, e_1 W_1
tangent        s_l = t_(l-1) W_l^T from t_0, the loss's gradient with respect to df/dx; t_l = s_l . act'(z_l)
reverse        dz_l = (dz_(l+1) W_(l+1)) . act'(z_l) + s_l . a_l . act''(z_l)
=============  =====================================================================================================

dW_l is dz_l^T h_(l-1) + e_l^T t_(l-1). Matrices are padded as those of :mod:`~aire_nerfstudio.ops.triton_kernels`.
What is float16 is scaled: e and a of a layer alike, t, dz, and the product s . a, of which only that is kept.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aire_nerfstudio.ops.triton_activations import derivatives_of, kept_of, loaded, slope_of, stored, value_of
from aire_nerfstudio.ops.triton_launches import Tile
from aire_nerfstudio.ops.triton_products import entered, load_tile, points_product, product, store_tile, tile_of
from aire_nerfstudio.ops.triton_sums import LARGEST


def tile(columns: int, kind: int, is_heavy: bool, has_copy_engine: bool) -> Tile:
    """How a layer is shared out, for columns that are a multiple of 64; heavy: of kernels with much beside a product.

    SIREN's are of a few the fastest on an H200 that spill no registers; the others were not measured.
    """
    if has_copy_engine and kind == 0:
        return {"ROWS": 64 if is_heavy else 128, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 3}
    if is_heavy:
        return {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "num_warps": 8, "num_stages": 3}
    wide = 128 if columns % 128 == 0 and kind == 0 else 64
    return {"ROWS": 64, "COLUMNS": wide, "DEPTH": 64, "num_warps": wide // 16, "num_stages": 3}


@triton.jit
def largest_of(v):
    """The largest size in a tile."""
    return tl.max(tl.abs(v))


@triton.jit(do_not_specialize=["rows", "width"])
def last_forward(
    x, weight, bias, last, scale, back, kept, sizes, y, largest, rows, depth, columns, width, omega,
    KIND: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The last sine layer: back [rows, columns] = scale last . act'(z), float16, and shares of the output.

    x [rows, depth] and weight [columns, depth] are float16, bias and last [width] float32, scale []. y [column
    programs, rows]: this program's share of the output; largest [programs]: its largest |back|. Where KEEP, kept gets
    what backward needs of z, and for others than SIREN sizes [programs] the largest |z|.
    """
    _block, tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    program = tl.program_id(0)
    z = product(x, weight, where, depth, True, ROWS, COLUMNS, DEPTH)
    keep = kept_of(z, tl.load(bias + c, mask=c < width, other=0.0)[None, :], omega, KIND)
    v = value_of(keep, omega, KIND)
    if KEEP:
        store_tile(kept, stored(keep, KIND), where, ROWS, COLUMNS)
        if KIND != 0:
            tl.store(sizes + program, largest_of(tl.where(is_row[:, None], keep, 0.0)))
    w = tl.load(last + c, mask=c < width, other=0.0)[None, :]
    tl.store(y + tile.to(tl.int64) * rows + place, tl.sum(v * w, 1), mask=is_row)
    e = tl.where(is_row[:, None], slope_of(keep, omega, KIND) * (w * tl.load(scale)), 0.0)
    # What is not a number stays so.
    e = tl.where(tl.abs(e) > LARGEST, tl.where(e > 0, LARGEST, -LARGEST), e)
    store_tile(back, e.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest + program, largest_of(e))


@triton.jit(do_not_specialize=["rows", "width"])
def adjoint(
    behind, weight, kept, points, entry_weight, entry_bias, factor, scale, out, back, gradient, largest,
    rows, depth, columns, width, omega,
    KIND: tl.constexpr, ENTRY: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Out [rows, columns] = factor (behind weight), where KEEP, and back = out . act'(z), both float16.

    behind [rows, depth] is the next layer's back, weight [depth, columns]; factor []. largest [programs]: largest
    |back|. Where ENTRY, the first layer's of points [rows, ENTRY]: instead of back gradient [column programs, rows,
    ENTRY], this program's share of back times entry_weight [width, ENTRY] over scale [].
    """
    _block, tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    a = product(behind, weight, where, depth, False, ROWS, COLUMNS, DEPTH) * tl.load(factor)
    if KEEP:
        store_tile(out, a.to(tl.float16), where, ROWS, COLUMNS)
    if ENTRY:
        keep = entered(points, entry_weight, entry_bias, place, is_row, c, width, omega, KIND, ENTRY)
        e = a * slope_of(keep, omega, KIND) * (1 / tl.load(scale))
        for k in tl.static_range(ENTRY):
            w = tl.load(entry_weight + c * ENTRY + k, mask=c < width, other=0.0)[None, :]
            share = gradient + (tile.to(tl.int64) * rows + place) * ENTRY + k
            tl.store(share, tl.sum(e * w, 1), mask=is_row)
    else:
        e = a * slope_of(loaded(load_tile(kept, where, ROWS, COLUMNS), KIND), omega, KIND)
        store_tile(back, e.to(tl.float16), where, ROWS, COLUMNS)
        # Rows past the end have a back of 0.
        tl.store(largest + tl.program_id(0), largest_of(e))


@triton.jit(do_not_specialize=["rows", "width"])
def tangent_entry(
    points, direction, weight, bias, factor, out, largest, rows, columns, width, omega,
    KIND: tl.constexpr, ENTRY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Out [rows, columns] = factor (direction weight^T) . act'(z) of the first layer, float16.

    points and direction are [rows, ENTRY], weight [width, ENTRY]. largest [programs]: the largest |out|.
    """
    _block, _tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    keep = entered(points, weight, bias, place, is_row, c, width, omega, KIND, ENTRY)
    s = points_product(direction, weight, place, is_row, c, width, ENTRY)
    t = s * (slope_of(keep, omega, KIND) * tl.load(factor))
    store_tile(out, t.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest + tl.program_id(0), largest_of(t))


@triton.jit(do_not_specialize=["rows"])
def tangent(
    x, weight, kept, factor, adjoint, mixed, out, largest, largest_mixed, gain, rows, depth, columns, omega,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Out [rows, columns] = s . act'(z), s = factor (x weight^T), and mixed = gain s . adjoint, all float16.

    x is [rows, depth], weight [columns, depth], adjoint a. largest and largest_mixed [programs]: of out and mixed.
    """
    _block, _tile, where, _c, _is_row, _place = tile_of(rows, columns, ROWS, COLUMNS)
    program = tl.program_id(0)
    s = product(x, weight, where, depth, True, ROWS, COLUMNS, DEPTH) * tl.load(factor)
    t = s * slope_of(loaded(load_tile(kept, where, ROWS, COLUMNS), KIND), omega, KIND)
    store_tile(out, t.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest + program, largest_of(t))
    both = s * gain * load_tile(adjoint, where, ROWS, COLUMNS).to(tl.float32)
    store_tile(mixed, both.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest_mixed + program, largest_of(both))


@triton.jit(do_not_specialize=["rows", "width"])
def last_tangent(
    x, weight, kept, last, grad, scale, before, out, parts, largest, rows, depth, columns, width, omega,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The last layer's tangent s = x weight^T / before, and reverse: out = scale dz, float16.

    dz is last . (grad act'(z) + s . act''(z)), with last [width] and grad [rows] of the value, float32. parts [blocks,
    2, columns]: sums over rows of out, and of grad act(z) + s . act'(z), which is the last weights' gradient.
    """
    block, _tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    s = product(x, weight, where, depth, True, ROWS, COLUMNS, DEPTH) * (1 / tl.load(before))
    keep = loaded(load_tile(kept, where, ROWS, COLUMNS), KIND)
    g = tl.load(grad + place, mask=is_row, other=0.0)[:, None]
    value, slope, bend, _ = derivatives_of(keep, omega, KIND)
    parts += block.to(tl.int64) * 2 * columns + c
    # Of rows past the end both are 0.
    tl.store(parts + columns, tl.sum(g * value + s * slope, 0))
    w = tl.load(last + c, mask=c < width, other=0.0)[None, :] * tl.load(scale)
    dz = w * (g * slope + s * bend)
    tl.store(parts, tl.sum(dz, 0))
    store_tile(out, dz.to(tl.float16), where, ROWS, COLUMNS)
    tl.store(largest + tl.program_id(0), largest_of(dz))


@triton.jit(do_not_specialize=["rows", "width"])
def reverse(
    grad, weight, kept, mixed, points, direction, entry_weight, entry_bias, scales, out, parts, largest,
    rows, depth, columns, width, omega,
    KIND: tl.constexpr, ENTRY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Out [rows, columns] = scales_0 (grad weight) . act'(z) + scales_1 mixed . act''(z), float16; its sums in parts.

    grad [rows, depth] is the next layer's, weight [depth, columns], mixed what :func:`tangent` left. parts [blocks, 1 +
    ENTRY, columns], largest [programs]. Where ENTRY, the first layer's of points and direction [rows, ENTRY]: s is
    computed again and mixed is a, nothing is stored, and parts get the sums of out x + scales_1 (a . act'(z)) direction
    as well, the first weights' gradient.
    """
    block, _tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    parts += block.to(tl.int64) * (1 + ENTRY) * columns + c
    g = product(grad, weight, where, depth, False, ROWS, COLUMNS, DEPTH) * tl.load(scales)
    m = load_tile(mixed, where, ROWS, COLUMNS).to(tl.float32) * tl.load(scales + 1)
    if ENTRY:
        keep = entered(points, entry_weight, entry_bias, place, is_row, c, width, omega, KIND, ENTRY)
        _, slope, bend, _ = derivatives_of(keep, omega, KIND)
        e = m * slope
        s = points_product(direction, entry_weight, place, is_row, c, width, ENTRY)
        dz = g * slope + m * s * bend
        for k in tl.static_range(ENTRY):
            x = tl.load(points + place * ENTRY + k, mask=is_row, other=0.0)[:, None]
            v = tl.load(direction + place * ENTRY + k, mask=is_row, other=0.0)[:, None]
            tl.store(parts + (1 + k) * columns, tl.sum(dz * x + e * v, 0))
    else:
        _, slope, bend, _ = derivatives_of(loaded(load_tile(kept, where, ROWS, COLUMNS), KIND), omega, KIND)
        dz = g * slope + m * bend
        store_tile(out, dz.to(tl.float16), where, ROWS, COLUMNS)
        tl.store(largest + tl.program_id(0), largest_of(dz))
    tl.store(parts, tl.sum(dz, 0))


@triton.jit(do_not_specialize=["rows", "share", "shares"])
def outer_products(
    left, value, tangents, scale, left_scale, right_scale, back, along, back_scale, along_scale, partial,
    rows, n, k, share, shares, PAIRS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Partial [PAIRS shares, n, k]: for each share of the rows a sum over them of each of PAIRS products.

    left_0^T value / scale; left_i^T tangents_(i-1) / left_scale / right_scale, where there are more than two pairs; and
    back^T along / back_scale / along_scale. All are float16: left [PAIRS - 1, rows, n], tangents [PAIRS - 2, rows, k],
    the others [rows, n] and [rows, k]; the scales are [].
    """
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    part = tl.program_id(2)
    pair = part // shares
    first, second = left, value
    gain = 1 / tl.load(scale)
    if pair == PAIRS - 1:
        first, second = back, along
        gain = 1 / tl.load(back_scale) / tl.load(along_scale)
    elif PAIRS > 2 and pair > 0:
        first = left + pair * (rows.to(tl.int64) * n)
        second = tangents + (pair - 1) * (rows.to(tl.int64) * k)
        gain = 1 / tl.load(left_scale) / tl.load(right_scale)
    begin = (part % shares) * share
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for offset in range(0, share, DEPTH):
        r = begin + offset + tl.arange(0, DEPTH)
        place = r.to(tl.int64)
        high = tl.load(first + place[None, :] * n + i[:, None], mask=r[None, :] < rows, other=0.0)
        wide = tl.load(second + place[:, None] * k + j[None, :], mask=r[:, None] < rows, other=0.0)
        total = tl.dot(high, wide, total)
    tl.store(partial + (part * n + i[:, None]).to(tl.int64) * k + j[None, :], total * gain)
