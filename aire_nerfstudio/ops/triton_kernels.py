"""Triton kernels of a sine network on CUDA: a layer forward and backward, dW, and a narrow network in one launch.

Operands are float16, sums float32. Large matrices have padded columns, multiples of :data:`PAD`, so that only rows need
masks; what is in the padding is zero, or is multiplied by zero. Layers of few inputs multiply float32 coordinates. What
backward can compute of a layer while its tile is in the registers is computed there: biases' gradients, those of the
first and the last weights where these are narrow, and the largest gradient; memory is what a step waits for.
Sines are polynomials of the phase in turns: two special-function calls would take as long on Hopper, and the phase is
what backward wants, in 16 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

PAD = 64
# Rows change from step to step: what Triton knows of their number would be compiled anew each time.
# Rows of a program's share, and what it sums over at a time.
ROWS, DEPTH = 128, 64


def columns_and_warps(columns: int, is_narrow: bool = False, kind: int = 0) -> tuple[int, int]:
    """Columns of a program's share and its warps, for a multiple of :data:`PAD`: none spills registers on Hopper."""
    if kind != 0:
        return 32 if is_narrow else 64, 8
    if is_narrow:
        return 64, 8
    return (128, 8) if columns % 128 == 0 else (64, 4)


@triton.jit
def _turns(angle):
    """An angle in turns, in [-1/2, 1/2); two parts, since a float32 product alone would lose the fraction's digits."""
    # 1 / 2 pi = 0.15915494 (24 bits) and what is left of it.
    whole = tl.floor(angle * 0.15915493667125702 + 0.5)
    rest = angle - whole * 6.28125
    rest = rest - whole * 1.9350051879882812e-3
    rest = rest - whole * 3.019916994e-7
    return rest * 0.15915494309189535


@triton.jit
def _sine(t):
    """sin(2 pi t) for |t| <= 1/2, absolute error below 1e-6: reflected to |t| <= 1/4, then a polynomial."""
    r = tl.where(tl.abs(t) > 0.25, tl.where(t > 0, 0.5, -0.5) - t, t)
    q = r * r
    p = 42.058693944897654 - q * 15.0946425768229
    p = -76.70585975306136 + q * p
    p = 81.60524927607504 + q * p
    p = -41.341702240399755 + q * p
    return r * (6.283185307179586 + q * p)


@triton.jit
def _cosine(t):
    """cos(2 pi t) for |t| <= 1/2."""
    a = tl.abs(t)
    return _sine(0.25 - a)


@triton.jit
def _value_and_kept(z, omega, KIND: tl.constexpr):
    """The activation, and what backward needs of z: the phase in turns for SIREN, z itself for the others."""
    if KIND == 0:
        t = _turns(omega * z)
        return _sine(t), t
    if KIND == 3:
        u = omega * z
        return _sine(_turns(u)) * tl.sqrt(tl.abs(u)), z
    return _sine(_turns(omega * (1 + tl.abs(z)) * z)), z


@triton.jit
def _value(kept, omega, KIND: tl.constexpr):
    """The activation, from what was kept."""
    if KIND == 0:
        return _sine(kept)
    value, _ = _value_and_kept(kept, omega, KIND)
    return value


@triton.jit
def _slope(kept, omega, KIND: tl.constexpr):
    """The activation's derivative, from what was kept."""
    if KIND == 0:
        return omega * _cosine(kept)
    if KIND == 3:
        u = omega * kept
        is_zero = u == 0
        safe = tl.where(is_zero, 1.0, u)
        root = tl.sqrt(tl.abs(safe))
        t = _turns(safe)
        slope = omega * (_cosine(t) * root + _sine(t) * tl.where(safe > 0, 0.5, -0.5) / root)
        return tl.where(is_zero, 0.0, slope)
    size = tl.abs(kept)
    rate = omega * (1 + size) if KIND == 2 else omega * (1 + 2 * size)
    return rate * _cosine(_turns(omega * (1 + size) * kept))


@triton.jit(do_not_specialize=["rows"])
def layer_forward(
    x, weight, bias, value, kept, largest, rows, depth, columns, width, omega,
    KIND: tl.constexpr, NARROW: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Value [rows, columns] = act(x weight^T + bias) in float16; kept: int16 phase (SIREN) or float32 z.

    x is [rows, depth] and weight [columns, depth], float16; where NARROW, a depth of so few, float32, and weight
    [width, NARROW]; bias [width]: of the columns that are not padding. largest [programs]: each one's largest |z|,
    where z is kept.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row = r[:, None] < rows
    z = tl.zeros((ROWS, COLUMNS), tl.float32)
    place = r.to(tl.int64)
    if NARROW:
        for k in tl.static_range(NARROW):
            a = tl.load(x + place * NARROW + k, mask=r < rows, other=0.0)
            z += a[:, None] * tl.load(weight + c * NARROW + k, mask=c < width, other=0.0)[None, :]
    else:
        k = tl.arange(0, DEPTH)
        left = x + place[:, None] * depth + k[None, :]
        right = weight + c[None, :] * depth + k[:, None]
        for _ in range(0, depth, DEPTH):
            z = tl.dot(tl.load(left, mask=is_row, other=0.0), tl.load(right), z)
            left += DEPTH
            right += DEPTH
    z += tl.load(bias + c, mask=c < width, other=0.0)[None, :]
    v, keep = _value_and_kept(z, omega, KIND)
    at = place[:, None] * columns + c[None, :]
    tl.store(value + at, v.to(tl.float16), mask=is_row)
    if KEEP:
        if KIND == 0:
            # A full turn is 2^16; at half a turn, the ends, clamping is off by one step at most.
            turn = tl.floor(keep * 65536.0 + 0.5)
            tl.store(kept + at, tl.minimum(tl.maximum(turn, -32768.0), 32767.0).to(tl.int16), mask=is_row)
        else:
            tl.store(kept + at, keep, mask=is_row)
            size = tl.max(tl.max(tl.where(is_row, tl.abs(keep), 0.0), 1), 0)
            tl.store(largest + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), size)


@triton.jit(do_not_specialize=["rows"])
def layer_backward(
    grad, weight, kept, x, factor, out, sums, of_following, of_first, largest,
    rows, depth, columns, width, omega,
    KIND: tl.constexpr, NARROW: tl.constexpr, FIRST: tl.constexpr, STORE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Out [rows, columns] = factor (grad weight) act'(z) in float16: the gradient with respect to the layer's z.

    grad is [rows, depth], what the next layer's z gets, and weight [depth, columns], float16; where NARROW, a depth of
    so few, float32, and weight [NARROW, width]. Besides, of each block of ROWS rows: sums [blocks, columns] of out;
    where NARROW, of_following [blocks, NARROW, columns], grad^T times this layer's values; where FIRST, of_first
    [blocks, FIRST, columns], x^T out, for x [rows, FIRST]; largest [programs], the largest |out|. Out itself where
    STORE.
    """
    block = tl.program_id(0)
    r = block * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row = r[:, None] < rows
    g = tl.zeros((ROWS, COLUMNS), tl.float32)
    place = r.to(tl.int64)
    at = place[:, None] * columns + c[None, :]
    keep = tl.load(kept + at, mask=is_row, other=0)
    if KIND == 0:
        keep = keep.to(tl.float32) * (1.0 / 65536.0)
    if NARROW:
        h = _value(keep, omega, KIND)
        for k in tl.static_range(NARROW):
            a = tl.load(grad + place * NARROW + k, mask=r < rows, other=0.0)
            g += a[:, None] * tl.load(weight + k * width + c, mask=c < width, other=0.0)[None, :]
            tl.store(of_following + (block * NARROW + k) * columns + c, tl.sum(a[:, None] * h, 0))
    else:
        k = tl.arange(0, DEPTH)
        left = grad + place[:, None] * depth + k[None, :]
        right = weight + k[:, None] * columns + c[None, :]
        for _ in range(0, depth, DEPTH):
            g = tl.dot(tl.load(left, mask=is_row, other=0.0), tl.load(right), g)
            left += DEPTH
            right += DEPTH * columns
    g = g * _slope(keep, omega, KIND) * tl.load(factor)
    tl.store(sums + block * columns + c, tl.sum(g, 0))
    if FIRST:
        for k in tl.static_range(FIRST):
            a = tl.load(x + place * FIRST + k, mask=r < rows, other=0.0)
            tl.store(of_first + (block * FIRST + k) * columns + c, tl.sum(a[:, None] * g, 0))
    if STORE:
        tl.store(out + at, g.to(tl.float16), mask=is_row)
        size = tl.max(tl.max(tl.abs(g), 1), 0)
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


@triton.jit(do_not_specialize=["rows", "share"])
def outer_product(
    grad, x, partial, rows, n, k, share,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Partial [shares, n, k]: for each share of the rows the sum of grad[r, n] x[r, k], both float16."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    part = tl.program_id(2)
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
    value, _ = _value_and_kept(z, tl.load(omega), KIND)
    h = value.to(tl.float16)
    for layer in tl.static_range(LAYERS - 1):
        weight = tl.load(hidden + layer * WIDTH * WIDTH + n[None, :] * WIDTH + n[:, None])
        z = tl.dot(h, weight) + tl.load(bias + (layer + 1) * WIDTH + n)[None, :]
        value, _ = _value_and_kept(z, tl.load(omega + layer + 1), KIND)
        h = value.to(tl.float16)
    high = tl.load(last + o[None, :] * WIDTH + n[:, None])
    low = tl.load(last + OUT * WIDTH + o[None, :] * WIDTH + n[:, None])
    out = tl.dot(h, high, tl.dot(h, low)) + tl.load(last_bias + o)[None, :]
    tl.store(y + place[:, None] * outputs + o[None, :], out, mask=(r[:, None] < rows) & (o[None, :] < outputs))
