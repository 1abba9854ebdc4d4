"""Triton kernels of a sine network on CUDA: a layer forward and backward, dW, and a narrow network in one launch.

Operands are float16, sums float32. Large matrices have padded columns, multiples of :data:`PAD`, so that only rows need
masks; what is in the padding is zero, or is multiplied by zero. Memory is what a step waits for, and so:

- Points of few coordinates are multiplied in float32, and their products once more in backward, which are not kept.
- The last weights, where they are few, are multiplied while the last layer's values are in the registers.
- What backward can compute of a layer while its tile is there it computes there: gradients of its biases, of the first
  and the last weights where these are narrow, and the largest gradient.

Sines are the GPU's special function of an angle within a turn, which is what backward wants, in 16 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aire_nerfstudio.ops.triton_activations import kept_of, loaded, slope_times, stored, value_of
from aire_nerfstudio.ops.triton_launches import Tile
from aire_nerfstudio.ops.triton_products import entered, load_tile, product, store_tile, tile_of

PAD = 64
AFFINE_TILE: Tile = {"ROWS": 128, "DEPTH": 64, "num_warps": 8, "num_stages": 2}


def forward_tile(columns: int, kind: int, is_entry: bool, has_copy_engine: bool) -> Tile:
    """How a layer's forward is shared out, columns being a multiple of :data:`PAD`; entry: of few coordinates."""
    if is_entry:
        return {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 3}
    wide = 128 if columns % 128 == 0 and kind == 0 else 64
    if has_copy_engine:
        return {"ROWS": 128, "COLUMNS": wide, "DEPTH": 64, "num_warps": 4, "num_stages": 3}
    return {"ROWS": 64, "COLUMNS": wide, "DEPTH": 64, "num_warps": wide // 16, "num_stages": 3}


def backward_tile(columns: int, kind: int, is_heavy: bool, has_copy_engine: bool) -> Tile:
    """How a layer's backward is shared out; heavy: of few coordinates, or with a branch."""
    wide = 128 if columns % 128 == 0 and kind == 0 else 64
    if has_copy_engine:
        wide, stages = (64, 3) if is_heavy else (wide, 2)
        # SPDER's slopes take more registers than four warps have.
        warps = 8 if is_heavy and kind == 3 else 4
        return {"ROWS": 128, "COLUMNS": wide, "DEPTH": 64, "num_warps": warps, "num_stages": stages}
    return {"ROWS": 64, "COLUMNS": wide, "DEPTH": 64, "num_warps": 8 if is_heavy else 4, "num_stages": 3}


def last_tile() -> Tile:
    """How the last sine layer's backward of few outputs is shared out; BLOCKS of rows each, AHEAD of them loaded."""
    return {"ROWS": 16, "COLUMNS": 64, "BLOCKS": 32, "AHEAD": 3, "num_warps": 4}


def outer_tile(n: int, k: int, has_copy_engine: bool) -> Tile:
    """How dW ``[n, k]`` is shared out; SHARES: of the rows."""
    high, wide = (128 if side % 128 == 0 else 64 for side in (n, k))
    is_small = n * k <= 256 * 256
    shares, stages = (32, 4) if is_small else (16, 3)
    # Older tensor cores hold more of the operands in registers.
    warps = 4 if has_copy_engine else 8
    return {"BLOCK_N": high, "BLOCK_K": wide, "DEPTH": 64, "SHARES": shares, "num_warps": warps, "num_stages": stages}


@triton.jit(do_not_specialize=["rows", "width"])
def layer_forward(
    x, weight, bias, last, value, kept, sizes, y, norms, rows, depth, columns, width, omega,
    KIND: tl.constexpr, ENTRY: tl.constexpr, OUT: tl.constexpr, STORE: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Value [rows, columns] = act(x weight^T + bias) in float16; kept: int16 phase (SIREN) or float32 z.

    x [rows, depth], weight [columns, depth], float16, value and kept are descriptors or pointers; where ENTRY, x and
    weight are pointers to points [rows, ENTRY] and [width, ENTRY], float32, and nothing is kept. bias [width]: of the
    columns that are not padding. The value is stored where STORE. Where OUT, y [column tiles, rows, OUT] gets this
    program's share of the product with the last weights [OUT, width]; norms [column tiles] gets the largest sum down
    their columns. Of KEEP besides, for others than SIREN: sizes [programs], each one's largest |z|.
    """
    _, tile, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    if ENTRY:
        keep = entered(x, weight, bias, place, is_row, c, width, omega, KIND, ENTRY)
    else:
        z = product(x, weight, where, depth, True, ROWS, COLUMNS, DEPTH)
        keep = kept_of(z, tl.load(bias + c, mask=c < width, other=0.0)[None, :], omega, KIND)
    v = value_of(keep, omega, KIND)
    if KEEP and not ENTRY:
        store_tile(kept, stored(keep, KIND), where, ROWS, COLUMNS)
    if KEEP and KIND != 0:
        tl.store(sizes + tl.program_id(0), tl.max(tl.where(is_row[:, None], tl.abs(keep), 0.0)))
    if OUT:
        norm = tl.zeros((COLUMNS,), tl.float32)
        for o in tl.static_range(OUT):
            w = tl.load(last + o * width + c, mask=c < width, other=0.0)
            norm += tl.abs(w)
            share = y + (tile.to(tl.int64) * rows + place) * OUT + o
            tl.store(share, tl.sum(v * w[None, :], 1), mask=is_row)
        if KEEP:
            tl.store(norms + tile, tl.max(norm, 0))
    if STORE:
        store_tile(value, v.to(tl.float16), where, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["rows", "width"])
def layer_backward(
    grad, weight, kept, x, entry_weight, entry_bias, branch_grad, branch_weight, scale, factor, out, parts, largest,
    rows, depth, columns, width, omega, KIND: tl.constexpr, ENTRY: tl.constexpr, BRANCH: tl.constexpr,
    STORE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Out [rows, columns] = factor (grad weight) act'(z) in float16: the gradient with respect to the layer's z.

    grad [rows, depth], what the next layer's z gets, weight [depth, columns], kept and out are descriptors or pointers.
    z is what was kept; where ENTRY, the first layer's of points x [rows, ENTRY], computed again. Besides, of each block
    of ROWS rows, parts [blocks, 1 + BRANCH + ENTRY, columns]: sums of out; branch_grad^T times this layer's values;
    x^T out. Out itself and largest [programs], the largest |out|, where STORE. Where BRANCH, the layer has an output
    of its own besides: its gradient branch_grad [rows] times branch_weight [width] times scale [], out's own, is added
    to factor (grad weight).
    """
    block, _, where, c, is_row, place = tile_of(rows, columns, ROWS, COLUMNS)
    parts += block.to(tl.int64) * (1 + BRANCH + ENTRY) * columns + c
    g = product(grad, weight, where, depth, False, ROWS, COLUMNS, DEPTH)
    if ENTRY:
        keep = entered(x, entry_weight, entry_bias, place, is_row, c, width, omega, KIND, ENTRY)
    else:
        keep = loaded(load_tile(kept, where, ROWS, COLUMNS), KIND)
    gain = tl.load(factor)
    if BRANCH:
        a = tl.load(branch_grad + place, mask=is_row, other=0.0)[:, None]
        w = tl.load(branch_weight + c, mask=c < width, other=0.0) * tl.load(scale)
        # Either is bounded so, whatever the other's size.
        g = g * gain + a * w[None, :]
        gain = 1.0
        tl.store(parts + columns, tl.sum(a * value_of(keep, omega, KIND), 0))
    # Rows past the end have a gradient of 0.
    g = g * slope_times(keep, omega, gain, KIND)
    if STORE:
        store_tile(out, g.to(tl.float16), where, ROWS, COLUMNS)
        tl.store(largest + tl.program_id(0), tl.max(tl.abs(g)))
    if ENTRY:
        # In float32: coordinates may be of any size, and one far point's may not cost the others' their digits.
        tl.store(parts, tl.sum(g, 0))
        for k in tl.static_range(ENTRY):
            a = tl.load(x + place * ENTRY + k, mask=is_row, other=0.0)
            tl.store(parts + (1 + k) * columns, tl.sum(a[:, None] * g, 0))
    else:
        # A product of what is stored with ones takes less than as many shuffles.
        o = tl.arange(0, 16)
        sums = tl.dot(g.to(tl.float16).T, tl.full((ROWS, 16), 1.0, tl.float16))
        tl.store(parts[:, None] + o[None, :], sums, mask=(o == 0)[None, :])


@triton.jit(do_not_specialize=["rows", "width"])
def last_backward(
    grad, weight, kept, x, entry_weight, entry_bias, factor, out, parts, largest, rows, columns, width, omega,
    KIND: tl.constexpr, OUT: tl.constexpr, ENTRY: tl.constexpr, STORE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """:func:`layer_backward` of the last sine layer of few outputs: grad [rows, OUT] and weight [OUT, width], float32.

    A program takes BLOCKS blocks of ROWS rows, AHEAD of which it loads before they are wanted, and of all of them parts
    are [programs, 1 + OUT + ENTRY, columns]: sums of out; grad^T times this layer's values; x^T out. All are pointers.
    """
    across = columns // COLUMNS
    block = tl.program_id(0) // across
    c = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    is_column = c < width
    gain = tl.load(factor)
    # Within a program numbers are small: places of 64 bits would take twice the registers.
    before = block.to(tl.int64) * BLOCKS * ROWS
    left = rows - block * BLOCKS * ROWS
    if ENTRY:
        x += before * ENTRY
    else:
        kept += before * columns
    if STORE:
        out += before * columns
    grad += before * OUT
    nothing = tl.zeros((ROWS, COLUMNS), tl.float32)
    size, sums = nothing, nothing
    # Of up to four outputs and coordinates each: what there is not is not computed.
    last_0, last_1, last_2, last_3 = nothing, nothing, nothing, nothing
    points_0, points_1, points_2, points_3 = nothing, nothing, nothing, nothing
    weight_0 = tl.load(weight + c, mask=is_column, other=0.0)[None, :]
    weight_1, weight_2, weight_3 = weight_0, weight_0, weight_0
    if OUT > 1:
        weight_1 = tl.load(weight + width + c, mask=is_column, other=0.0)[None, :]
    if OUT > 2:
        weight_2 = tl.load(weight + 2 * width + c, mask=is_column, other=0.0)[None, :]
    if OUT > 3:
        weight_3 = tl.load(weight + 3 * width + c, mask=is_column, other=0.0)[None, :]
    for step in tl.range(0, BLOCKS, num_stages=AHEAD):
        r = step * ROWS + tl.arange(0, ROWS)
        is_row = r < left
        at = r[:, None] * columns + c[None, :]
        if ENTRY:
            keep = entered(x, entry_weight, entry_bias, r, is_row, c, width, omega, KIND, ENTRY)
        else:
            keep = loaded(tl.load(kept + at, mask=is_row[:, None], other=0), KIND)
        h = value_of(keep, omega, KIND)
        a = tl.load(grad + r * OUT, mask=is_row, other=0.0)[:, None]
        g = a * weight_0
        last_0 += a * h
        if OUT > 1:
            a = tl.load(grad + r * OUT + 1, mask=is_row, other=0.0)[:, None]
            g += a * weight_1
            last_1 += a * h
        if OUT > 2:
            a = tl.load(grad + r * OUT + 2, mask=is_row, other=0.0)[:, None]
            g += a * weight_2
            last_2 += a * h
        if OUT > 3:
            a = tl.load(grad + r * OUT + 3, mask=is_row, other=0.0)[:, None]
            g += a * weight_3
            last_3 += a * h
        # Rows past the end have a gradient of 0.
        g = g * slope_times(keep, omega, gain, KIND)
        sums += g
        for k in tl.static_range(ENTRY):
            a = tl.load(x + r * ENTRY + k, mask=is_row, other=0.0)[:, None]
            if k == 0:
                points_0 += a * g
            elif k == 1:
                points_1 += a * g
            elif k == 2:
                points_2 += a * g
            else:
                points_3 += a * g
        if STORE:
            tl.store(out + at, g.to(tl.float16), mask=is_row[:, None])
            size = tl.maximum(size, tl.abs(g))
    if STORE:
        tl.store(largest + tl.program_id(0), tl.max(size))
    parts += block.to(tl.int64) * (1 + OUT + ENTRY) * columns + c
    tl.store(parts, tl.sum(sums, 0))
    _store_sums(parts + columns, columns, last_0, last_1, last_2, last_3, OUT)
    _store_sums(parts + (1 + OUT) * columns, columns, points_0, points_1, points_2, points_3, ENTRY)


@triton.jit
def _store_sums(parts, columns, first, second, third, fourth, COUNT: tl.constexpr):
    """Sums over rows of the first COUNT tiles, a line of parts each."""
    if COUNT > 0:
        tl.store(parts, tl.sum(first, 0))
    if COUNT > 1:
        tl.store(parts + columns, tl.sum(second, 0))
    if COUNT > 2:
        tl.store(parts + 2 * columns, tl.sum(third, 0))
    if COUNT > 3:
        tl.store(parts + 3 * columns, tl.sum(fourth, 0))


@triton.jit(do_not_specialize=["rows"])
def affine(
    x, high, low, bias, y, rows, depth, outputs, along_output, along_depth,
    BIAS: tl.constexpr, LOW: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Y [rows, outputs] = x weight^T + bias in float32, for float16 x [rows, depth] and weight = high + low.

    The weight's element for output o and depth k lies at o along_output + k along_depth, up to a multiple of OUT.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = tl.program_id(1) * OUT + tl.arange(0, OUT)
    k = tl.arange(0, DEPTH)
    is_row = r[:, None] < rows
    place = r.to(tl.int64)
    left = x + place[:, None] * depth + k[None, :]
    right = o[None, :] * along_output + k[:, None] * along_depth
    total = tl.zeros((ROWS, OUT), tl.float32)
    for _ in range(0, depth, DEPTH):
        a = tl.load(left, mask=is_row, other=0.0)
        if LOW:
            total = tl.dot(a, tl.load(low + right), total)
        total = tl.dot(a, tl.load(high + right), total)
        left += DEPTH
        right += DEPTH * along_depth
    is_output = o < outputs
    if BIAS:
        total += tl.load(bias + o, mask=is_output, other=0.0)[None, :]
    tl.store(y + place[:, None] * outputs + o[None, :], total, mask=is_row & is_output[None, :])


@triton.jit(do_not_specialize=["rows", "share"])
def outer_product(
    grad, x, partial, rows, n, k, share, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr
):
    """Partial [shares, n, k]: for each share of the rows the sum of grad[r, n] x[r, k].

    grad [rows, n] and x [rows, k], float16, are descriptors or pointers. ``share`` rows are a multiple of DEPTH.
    """
    i = tl.program_id(0) * BLOCK_N
    j = tl.program_id(1) * BLOCK_K
    part = tl.program_id(2)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    if isinstance(x, tl.tensor_descriptor):
        for begin in range(part * share, (part + 1) * share, DEPTH):
            total = tl.dot(grad.load([begin, i]).T, x.load([begin, j]), total)
    else:
        along = i + tl.arange(0, BLOCK_N)
        across = j + tl.arange(0, BLOCK_K)
        for begin in range(part * share, (part + 1) * share, DEPTH):
            r = begin + tl.arange(0, DEPTH)
            place = r.to(tl.int64)
            left = tl.load(grad + place[None, :] * n + along[:, None], mask=r[None, :] < rows, other=0.0)
            right = tl.load(x + place[:, None] * k + across[None, :], mask=r[:, None] < rows, other=0.0)
            total = tl.dot(left, right, total)
    line = (part * n + i + tl.arange(0, BLOCK_N)).to(tl.int64) * k
    tl.store(partial + line[:, None] + (j + tl.arange(0, BLOCK_K))[None, :], total)


# Columns of a program of affine: for outputs of up to so many, and for more.
FEW_OUT, MANY_OUT = 16, 64

# Widest layer of which a whole network's values stay in registers, and rows and warps of a program then.
FUSED_WIDTHS = (64, 128)
FUSED_ROWS, FUSED_WARPS = 64, 4
# Columns of the output, padded.
FUSED_OUT = 16


@triton.jit(do_not_specialize=["rows"])
def fused_forward(
    x, first, hidden, last, bias, last_bias, omega, y, rows, inputs, outputs,
    LAYERS: tl.constexpr, KIND: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Y [rows, outputs] of a network of LAYERS sine layers, all padded to WIDTH; nothing goes through memory between.

    x [rows, inputs] and first [WIDTH, inputs] are float32, hidden [LAYERS - 1, WIDTH, WIDTH] float16, last [2, OUT,
    WIDTH] the last weight as the sum of two float16 matrices, bias [LAYERS, WIDTH] and last_bias [OUT] float32.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = r.to(tl.int64)
    n = tl.arange(0, WIDTH)
    o = tl.arange(0, OUT)
    z = tl.zeros((ROWS, WIDTH), tl.float32)
    for k in range(inputs):
        a = tl.load(x + place * inputs + k, mask=r < rows, other=0.0)
        z += a[:, None] * tl.load(first + n * inputs + k)[None, :]
    rate = tl.load(omega)
    value = value_of(kept_of(z, tl.load(bias + n)[None, :], rate, KIND), rate, KIND)
    h = value.to(tl.float16)
    for layer in tl.static_range(LAYERS - 1):
        weight = tl.load(hidden + layer * WIDTH * WIDTH + n[None, :] * WIDTH + n[:, None])
        rate = tl.load(omega + layer + 1)
        keep = kept_of(tl.dot(h, weight), tl.load(bias + (layer + 1) * WIDTH + n)[None, :], rate, KIND)
        value = value_of(keep, rate, KIND)
        h = value.to(tl.float16)
    high = tl.load(last + o[None, :] * WIDTH + n[:, None])
    low = tl.load(last + OUT * WIDTH + o[None, :] * WIDTH + n[:, None])
    out = tl.dot(h, high, tl.dot(h, low)) + tl.load(last_bias + o)[None, :]
    tl.store(y + place[:, None] * outputs + o[None, :], out, mask=(r[:, None] < rows) & (o[None, :] < outputs))
