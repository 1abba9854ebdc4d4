"""Triton kernels of a sine network on CUDA: a layer forward and backward, dW, and a narrow network in one launch.

Operands are float16, sums float32. Large matrices have padded columns, multiples of :data:`PAD`, so that only rows need
masks; what is in the padding is zero, or is multiplied by zero. Memory is what a step waits for, and so:

- Points of few coordinates are multiplied in float32, and their products once more in backward, which are not kept.
- The last weights, where they are few, are multiplied while the last layer's values are in the registers.
- What backward can compute of a layer while its tile is there it computes there: gradients of its biases, of the first
  and the last weights where these are narrow, and the largest gradient.

Sines are the GPU's special function of the phase in turns, the phase is what backward wants, in 16 bits. Rounding is by
adding and subtracting a large number: instructions for it have a fraction of an addition's rate.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aire_nerfstudio.ops.triton_activations import ROUND, slope_of, turns, value_and_kept, value_of
from aire_nerfstudio.ops.triton_products import entry, product

PAD = 64
Tile = dict[str, int]
AFFINE_TILE: Tile = {"ROWS": 128, "DEPTH": 64, "num_warps": 8, "num_stages": 2}


# Bytes of shared memory that a block may have where tiles of 256 columns are used: Hopper's, and an A100's.
WIDE_TILES_FROM = 160_000


def forward_tile(columns: int, kind: int, is_entry: bool, is_end: bool, shared_memory: int = WIDE_TILES_FROM) -> Tile:
    """How a layer's forward is shared out, for columns that are a multiple of :data:`PAD`: measured on an H100.

    scripts/tune_triton.py measures them; docs/results.md has the figures. shared_memory: bytes that a block may have.
    """
    if kind != 0:
        return {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 3}
    if is_entry:
        wide = 128 if columns % 128 == 0 else 64
        return {"ROWS": 64, "COLUMNS": wide, "DEPTH": 64, "num_warps": wide // 16, "num_stages": 3}
    has_wide = columns % 256 == 0 and shared_memory >= WIDE_TILES_FROM
    if has_wide and columns == 256 and is_end:
        return {"ROWS": 64, "COLUMNS": 256, "DEPTH": 64, "num_warps": 4, "num_stages": 2}
    if has_wide:
        return {"ROWS": 128, "COLUMNS": 256, "DEPTH": 64, "num_warps": 8, "num_stages": 3 if columns == 256 else 4}
    wide = 128 if columns % 128 == 0 else 64
    return {"ROWS": 64, "COLUMNS": wide, "DEPTH": 64, "num_warps": wide // 16, "num_stages": 3}


def backward_tile(columns: int, kind: int, is_narrow: bool, is_entry: bool) -> Tile:
    """How a layer's backward is shared out."""
    if is_narrow:
        wide, warps = (64, 4) if kind == 0 and not is_entry else (32, 8)
        return {"ROWS": 128, "COLUMNS": wide, "DEPTH": 64, "num_warps": warps, "num_stages": 3}
    if kind != 0:
        return {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 3}
    if is_entry and columns <= 256:
        return {"ROWS": 128, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 3}
    wide = 128 if columns % 128 == 0 else 64
    return {"ROWS": 64, "COLUMNS": wide, "DEPTH": 64, "num_warps": 8 if is_entry else 4, "num_stages": 3}


def outer_tile(n: int, k: int) -> Tile:
    """How dW ``[n, k]`` is shared out; SHARES: of the rows."""
    high, wide = (128 if side % 128 == 0 else 64 for side in (n, k))
    is_small = n * k <= 256 * 256
    shares, stages = (32, 4) if is_small else (16, 3)
    return {"BLOCK_N": high, "BLOCK_K": wide, "DEPTH": 64, "SHARES": shares, "num_warps": 4, "num_stages": stages}


@triton.jit(do_not_specialize=["rows", "width"])
def layer_forward(
    x, weight, bias, last, value, kept, sizes, y, norms, rows, depth, columns, width, omega,
    KIND: tl.constexpr, ENTRY: tl.constexpr, OUT: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Value [rows, columns] = act(x weight^T + bias) in float16; kept: int16 phase (SIREN) or float32 z.

    x is [rows, depth] and weight [columns, depth], float16; where ENTRY, points [rows, ENTRY] and [width, ENTRY],
    float32, and nothing is kept. bias [width]: of the columns that are not padding. Where OUT, y [column programs,
    rows, OUT] gets this program's share of the product with the last weights [OUT, width], and the value is not stored;
    norms [column programs] gets the largest sum down their columns. Of KEEP besides, for others than SIREN: sizes
    [programs], each one's largest |z|.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row = r < rows
    place = r.to(tl.int64)
    if ENTRY:
        z = entry(x, weight, bias, place, is_row, c, width, ENTRY)
    else:
        z = product(x, weight, place, is_row, c, depth, depth, 1, ROWS, COLUMNS, DEPTH)
        z += tl.load(bias + c, mask=c < width, other=0.0)[None, :]
    v, keep = value_and_kept(z, omega, KIND)
    at = place[:, None] * columns + c[None, :]
    if KEEP and not ENTRY:
        if KIND == 0:
            # A full turn is 2^16, and half of one the same as minus half.
            turn = (keep * 65536.0 + ROUND).to(tl.int32, bitcast=True).to(tl.int16)
            tl.store(kept + at, turn, mask=is_row[:, None])
        else:
            tl.store(kept + at, keep, mask=is_row[:, None])
    if KEEP and KIND != 0:
        size = tl.max(tl.where(is_row[:, None], tl.abs(z), 0.0))
        tl.store(sizes + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), size)
    if OUT:
        norm = tl.zeros((COLUMNS,), tl.float32)
        for o in tl.static_range(OUT):
            w = tl.load(last + o * width + c, mask=c < width, other=0.0)
            norm += tl.abs(w)
            share = y + (tl.program_id(1).to(tl.int64) * rows + place) * OUT + o
            tl.store(share, tl.sum(v * w[None, :], 1), mask=is_row)
        if KEEP:
            tl.store(norms + tl.program_id(1), tl.max(norm, 0))
    else:
        tl.store(value + at, v.to(tl.float16), mask=is_row[:, None])


@triton.jit(do_not_specialize=["rows", "width"])
def layer_backward(
    grad, weight, kept, x, entry_weight, entry_bias, factor, out, parts, largest,
    rows, depth, columns, width, omega,
    KIND: tl.constexpr, NARROW: tl.constexpr, ENTRY: tl.constexpr, STORE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Out [rows, columns] = factor (grad weight) act'(z) in float16: the gradient with respect to the layer's z.

    grad is [rows, depth], what the next layer's z gets, and weight [depth, columns], float16; where NARROW, a depth of
    so few, float32, and weight [NARROW, width]. z is what was kept; where ENTRY, the first layer's of points
    x [rows, ENTRY], computed again. Besides, of each block of ROWS rows, parts [blocks, 1 + NARROW + ENTRY, columns]:
    sums of out; grad^T times this layer's values; x^T out. largest [programs]: the largest |out|. Out itself where
    STORE.
    """
    block = tl.program_id(0)
    r = block * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row = r < rows
    place = r.to(tl.int64)
    at = place[:, None] * columns + c[None, :]
    parts += block.to(tl.int64) * (1 + NARROW + ENTRY) * columns + c
    if NARROW:
        g = tl.zeros((ROWS, COLUMNS), tl.float32)
    else:
        g = product(grad, weight, place, is_row, c, depth, 1, columns, ROWS, COLUMNS, DEPTH)
    if ENTRY:
        keep = entry(x, entry_weight, entry_bias, place, is_row, c, width, ENTRY)
        if KIND == 0:
            keep = turns(omega * keep)
    else:
        keep = tl.load(kept + at, mask=is_row[:, None], other=0)
        if KIND == 0:
            keep = keep.to(tl.float32) * (1.0 / 65536.0)
    if NARROW:
        h = value_of(keep, omega, KIND)
        for k in tl.static_range(NARROW):
            a = tl.load(grad + place * NARROW + k, mask=is_row, other=0.0)
            g += a[:, None] * tl.load(weight + k * width + c, mask=c < width, other=0.0)[None, :]
            tl.store(parts + (1 + k) * columns, tl.sum(a[:, None] * h, 0))
    # Rows past the end have a gradient of 0.
    g = g * (slope_of(keep, omega, KIND) * tl.load(factor))
    tl.store(parts, tl.sum(g, 0))
    if ENTRY:
        for k in tl.static_range(ENTRY):
            a = tl.load(x + place * ENTRY + k, mask=is_row, other=0.0)
            tl.store(parts + (1 + NARROW + k) * columns, tl.sum(a[:, None] * g, 0))
    if STORE:
        tl.store(out + at, g.to(tl.float16), mask=is_row[:, None])
        size = tl.max(tl.abs(g))
        tl.store(largest + block * tl.num_programs(1) + tl.program_id(1), size)


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


@triton.jit(do_not_specialize=["rows", "share", "shares"])
def outer_product(
    grad, x, partial, rows, n, k, share, shares, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr
):
    """Partial [m, shares, n, k]: of m pairs, for each share of the rows, the sum of grad[r, n] x[r, k], both float16.

    grad is [m, rows, n], x [m, rows, k].
    """
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    pair = tl.program_id(2) // shares
    part = tl.program_id(2) % shares
    before = pair.to(tl.int64) * rows
    grad += before * n
    x += before * k
    partial += pair.to(tl.int64) * shares * n * k
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for begin in range(0, share, DEPTH):
        r = part * share + begin + tl.arange(0, DEPTH)
        place = r.to(tl.int64)
        left = tl.load(grad + place[None, :] * n + i[:, None], mask=r[None, :] < rows, other=0.0)
        right = tl.load(x + place[:, None] * k + j[None, :], mask=r[:, None] < rows, other=0.0)
        total = tl.dot(left, right, total)
    tl.store(partial + (part * n + i[:, None]).to(tl.int64) * k + j[None, :], total)


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
    z = tl.zeros((ROWS, WIDTH), tl.float32) + tl.load(bias + n)[None, :]
    for k in range(inputs):
        a = tl.load(x + place * inputs + k, mask=r < rows, other=0.0)
        z += a[:, None] * tl.load(first + n * inputs + k)[None, :]
    value, _ = value_and_kept(z, tl.load(omega), KIND)
    h = value.to(tl.float16)
    for layer in tl.static_range(LAYERS - 1):
        weight = tl.load(hidden + layer * WIDTH * WIDTH + n[None, :] * WIDTH + n[:, None])
        z = tl.dot(h, weight) + tl.load(bias + (layer + 1) * WIDTH + n)[None, :]
        value, _ = value_and_kept(z, tl.load(omega + layer + 1), KIND)
        h = value.to(tl.float16)
    high = tl.load(last + o[None, :] * WIDTH + n[:, None])
    low = tl.load(last + OUT * WIDTH + o[None, :] * WIDTH + n[:, None])
    out = tl.dot(h, high, tl.dot(h, low)) + tl.load(last_bias + o)[None, :]
    tl.store(y + place[:, None] * outputs + o[None, :], out, mask=(r[:, None] < rows) & (o[None, :] < outputs))
