"""Triton kernels of a sine network's small matrices: weights packed, partial sums added up, errors, scales chosen.

Each takes the place of a handful of PyTorch's launches, which in a graph cost more than their work.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Rows and columns of a program of pack; columns and shares at a time of total and total_parts; numbers at a time of
# next_scale and its like; rows of a program of finish; rows of a program of row_norms and columns at a time.
PACK_ROWS, PACK_COLUMNS = 128, 32
TOTAL_BLOCK, TOTAL_SHARES = 64, 16
PARTS_BLOCK, PARTS_SHARES = 16, 512
SCALE_BLOCK = 2048
FINISH_ROWS = 256
NORM_ROWS, NORM_COLUMNS = 16, 256
# What gradients between layers are kept below; float16 ends at 65,504.
LARGEST = tl.constexpr(3e4)


@triton.jit(do_not_specialize=["n", "k"])
def pack(
    weight, high, low, norms, n, k, columns, padded_n,
    LOW: tl.constexpr, NORMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """High [padded_n, columns] = weight [n, k] in float16, zeros around it; low: what is left of it, in float16.

    norms [programs]: the largest sum of |weight| down a column of each program's, which all rows of these go through.
    """
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    norm = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(0, padded_n, ROWS):
        i = begin + tl.arange(0, ROWS)
        is_there = (i[:, None] < n) & (j[None, :] < k)
        w = tl.load(weight + i[:, None] * k + j[None, :], mask=is_there, other=0.0)
        at = i[:, None] * columns + j[None, :]
        is_inside = (i[:, None] < padded_n) & (j[None, :] < columns)
        rounded = w.to(tl.float16)
        tl.store(high + at, rounded, mask=is_inside)
        if LOW:
            tl.store(low + at, (w - rounded.to(tl.float32)).to(tl.float16), mask=is_inside)
        norm += tl.sum(tl.abs(w), 0)
    if NORMS:
        tl.store(norms + tl.program_id(0), tl.max(norm, 0))


@triton.jit(do_not_specialize=["shares", "across", "down"])
def total(
    partial, numerator, denominator, out, shares, across, down, padded_across, padded_down, gain,
    NUMERATOR: tl.constexpr, BLOCK: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Out [down, across] = gain numerator / denominator times the sum of partial [shares, padded_down, padded_across].

    The sum is over shares; the numerator is 1 without NUMERATOR.
    """
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.program_id(1)
    first = tl.arange(0, SHARES)
    found = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, shares, SHARES):
        s = begin + first
        is_there = (s[:, None] < shares) & (j[None, :] < across)
        at = (s.to(tl.int64)[:, None] * padded_down + i) * padded_across + j[None, :]
        found += tl.sum(tl.load(partial + at, mask=is_there, other=0.0), 0)
    if NUMERATOR:
        gain *= tl.load(numerator)
    tl.store(out + i * across + j, found * (gain / tl.load(denominator)), mask=j < across)


@triton.jit(do_not_specialize=["blocks", "width"])
def total_parts(
    parts, numerator, scale, out, blocks, width, columns, gain,
    NUMERATOR: tl.constexpr, NARROW: tl.constexpr, ENTRY: tl.constexpr, BLOCK: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Sums over blocks of what backward leaves: parts [blocks, 1 + NARROW + ENTRY, columns]; by gain numerator.

    Out is the bias's gradient [width], the following weights' [NARROW, width], before this layer's scale, and the first
    weights' [width, ENTRY], one behind the other.
    """
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.program_id(1)
    found = over_blocks(parts, blocks, i, 1 + NARROW + ENTRY, j, width, columns, BLOCK, SHARES)
    if NUMERATOR:
        gain *= tl.load(numerator)
    scaled = gain / tl.load(scale)
    factor = tl.where((i >= 1) & (i <= NARROW), gain, scaled)
    # The first weights' lie input by input for each neuron.
    at = tl.where(i <= NARROW, i * width + j, (1 + NARROW) * width + j * ENTRY + i - 1 - NARROW)
    tl.store(out + at, found * factor, mask=j < width)


@triton.jit(do_not_specialize=["rows"])
def finish(
    shares, bias, target, y, sums, squares, largest, rows, tiles, gain,
    OUT: tl.constexpr, BIAS: tl.constexpr, TARGET: tl.constexpr, MEASURE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Y [rows, OUT] = sum of shares [tiles, rows, OUT] over tiles, plus bias where BIAS, less target where TARGET.

    Where MEASURE, of each program's rows the sums [programs, OUT], the largest size [programs], and gain times the sum
    of squares [programs].
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = r < rows
    place = r.to(tl.int64)
    square = tl.zeros((ROWS,), tl.float32)
    size = tl.zeros((ROWS,), tl.float32)
    for o in tl.static_range(OUT):
        found = tl.zeros((ROWS,), tl.float32)
        for tile in range(tiles):
            found += tl.load(shares + (place + tile * rows.to(tl.int64)) * OUT + o, mask=is_row, other=0.0)
        if BIAS:
            found += tl.load(bias + o)
        if TARGET:
            found -= tl.load(target + place * OUT + o, mask=is_row, other=0.0)
        if MEASURE:
            found = tl.where(is_row, found, 0.0)
            square += found * found
            size = tl.maximum(size, tl.abs(found))
            tl.store(sums + tl.program_id(0) * OUT + o, tl.sum(found, 0))
        if BIAS or TARGET:
            tl.store(y + place * OUT + o, found, mask=is_row)
    if MEASURE:
        tl.store(squares + tl.program_id(0), gain * tl.sum(square, 0))
        tl.store(largest + tl.program_id(0), tl.max(size, 0))


@triton.jit(do_not_specialize=["n_grads", "n_norms", "n_sizes", "n_branch_grads", "n_branch_norms"])
def next_scale(
    grads, n_grads, norms, n_norms, sizes, n_sizes, branch_grads, n_branch_grads, branch_norms, n_branch_norms,
    omega, scale, factor, following, KIND: tl.constexpr, BRANCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Factor []: what takes a layer's gradient close to float16's end; following [] = scale [] times it.

    grads: largest gradients of the layer behind, or of the loss; norms: largest column sums of its weights; sizes:
    largest |z| of this layer, which bound the slope of FINER and SPDER. Where BRANCH, following times the largest of
    branch_grads times that of branch_norms is added to factor times what comes from behind.
    """
    grad = largest_in(grads, n_grads, BLOCK)
    slope = slope_bound(sizes, n_sizes, omega, KIND, BLOCK)
    # One after the other: their product might be beyond float32.
    before = tl.load(scale)
    room = LARGEST / tl.maximum(grad, 1e-37) / tl.maximum(largest_in(norms, n_norms, BLOCK), 1e-37) / slope
    found = tl.minimum(tl.minimum(room, 1e30), 1e30 / before)
    scaled = before * found
    if BRANCH:
        branch = tl.maximum(largest_in(branch_grads, n_branch_grads, BLOCK), 1e-37)
        alone = LARGEST / branch / tl.maximum(largest_in(branch_norms, n_branch_norms, BLOCK), 1e-37) / slope
        # What both leave together, of what each would leave alone.
        scaled = 1 / (1 / tl.maximum(scaled, 1e-37) + 1 / tl.maximum(alone, 1e-37))
        found = scaled / before
    tl.store(factor, found)
    tl.store(following, scaled)


@triton.jit(do_not_specialize=["n", "k"])
def row_norms(weight, norms, n, k, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Norms [programs]: the largest sum of |weight| along a row of each program's, of weight [n, k]."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    norm = tl.zeros((ROWS,), tl.float32)
    for begin in range(0, k, COLUMNS):
        j = begin + tl.arange(0, COLUMNS)
        is_there = (i[:, None] < n) & (j[None, :] < k)
        norm += tl.sum(tl.abs(tl.load(weight + i[:, None] * k + j[None, :], mask=is_there, other=0.0)), 1)
    tl.store(norms + tl.program_id(0), tl.max(norm, 0))


@triton.jit(do_not_specialize=["count"])
def scale_for(values, count, room, scale, largest, BLOCK: tl.constexpr):
    """Scale []: what takes the largest size of ``count`` values to ``room``; largest []: that size."""
    size = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, count, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        size = tl.maximum(size, tl.abs(tl.load(values + i, mask=i < count, other=0.0)))
    found = tl.max(size, 0)
    tl.store(scale, tl.minimum(room / tl.maximum(found, 1e-37), 1e30))
    tl.store(largest, found)


@triton.jit(do_not_specialize=["n_grads", "n_norms", "n_mixed", "n_mixed_norms", "n_sizes"])
def scale_of_sum(
    grads, n_grads, norms, n_norms, before, mixed, n_mixed, mixed_norms, n_mixed_norms, gain, scale, other_scale,
    times, sizes, n_sizes, omega, found, factors, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Found []: the scale that takes a bound on times (g . act'(z) + m . act''(z)) close to float16's end.

    |g| is at most the largest of grads times that of norms over before [], |m| the largest of mixed times that of
    mixed_norms times gain over both scales []. factors [2]: found over before, found gain over both scales. sizes:
    largest |z|, which bound the derivatives of FINER.
    """
    slope = slope_bound(sizes, n_sizes, omega, KIND, BLOCK)
    bend = slope * slope
    if KIND != 0:
        bend += 2 * omega
    gained = gain / tl.load(scale) / tl.load(other_scale)
    behind = tl.load(before)
    bound = largest_in(grads, n_grads, BLOCK) * largest_in(norms, n_norms, BLOCK) / behind * slope
    bound += largest_in(mixed, n_mixed, BLOCK) * gained * largest_in(mixed_norms, n_mixed_norms, BLOCK) * bend
    room = LARGEST / tl.maximum(bound * tl.load(times), 1e-37)
    # No factor is beyond float32, whatever is 0.
    scaled = tl.minimum(tl.minimum(room, 1e30), tl.minimum(1e30 * behind, 1e30 / tl.maximum(gained, 1e-7)))
    tl.store(found, scaled)
    tl.store(factors, scaled / behind)
    tl.store(factors + 1, scaled * gained)


@triton.jit
def over_blocks(parts, blocks, i, lines, j, width, columns, BLOCK: tl.constexpr, SHARES: tl.constexpr):
    """Sums [BLOCK] over blocks of line ``i`` of parts [blocks, lines, columns] at columns ``j`` [BLOCK] below width."""
    first = tl.arange(0, SHARES)
    found = tl.zeros((SHARES, BLOCK), tl.float32)
    for begin in range(0, blocks, SHARES):
        s = begin + first
        is_there = (s[:, None] < blocks) & (j[None, :] < width)
        at = (s.to(tl.int64)[:, None] * lines + i) * columns + j[None, :]
        found += tl.load(parts + at, mask=is_there, other=0.0)
    return tl.sum(found, 0)


@triton.jit
def largest_in(values, count, BLOCK: tl.constexpr):
    """The largest of ``count`` numbers of 0 or more."""
    found = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, count, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(values + i, mask=i < count, other=0.0))
    return tl.max(found, 0)


@triton.jit
def slope_bound(sizes, n_sizes, omega, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """The largest |act'(z)| where ``sizes`` bound |z|; finite, so that one infinite point does not spoil the others."""
    slope = omega
    if KIND == 3:
        slope = omega * (1 + tl.sqrt(omega * tl.minimum(largest_in(sizes, n_sizes, BLOCK), 1e15)))
    elif KIND != 0:
        slope = omega * (1 + 2 * tl.minimum(largest_in(sizes, n_sizes, BLOCK), 1e15))
    return slope
