"""Products of a tile of rows with a layer's weights, in Triton: of float16 matrices, of points of few coordinates."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's columns; which of its rows there are and which they are, int64; where its numbers lie."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = r.to(tl.int64)
    return c, r < rows, place, place[:, None] * columns + c[None, :]


@triton.jit
def product(
    x, weight, place, is_row, c, depth, along_column, along_depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Float32 [ROWS, COLUMNS]: rows at ``place`` of x [rows, depth] times columns ``c`` of a weight, both float16.

    The weight's element for column c and depth k lies at c along_column + k along_depth; depth is a multiple of DEPTH.
    """
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    k = tl.arange(0, DEPTH)
    left = x + place[:, None] * depth + k[None, :]
    right = weight + c[None, :] * along_column + k[:, None] * along_depth
    for _ in range(0, depth, DEPTH):
        total = tl.dot(tl.load(left, mask=is_row[:, None], other=0.0), tl.load(right), total)
        left += DEPTH
        right += DEPTH * along_depth
    return total


@triton.jit
def products(
    x, weight, place, is_row, c, rows, depth, along_column, along_depth,
    STREAMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """:func:`product` of two or three streams x [STREAMS, rows, depth] at once; the third is 0 where there are two."""
    first = tl.zeros((ROWS, COLUMNS), tl.float32)
    second = tl.zeros((ROWS, COLUMNS), tl.float32)
    third = tl.zeros((ROWS, COLUMNS), tl.float32)
    k = tl.arange(0, DEPTH)
    left = x + place[:, None] * depth + k[None, :]
    right = weight + c[None, :] * along_column + k[:, None] * along_depth
    stride = rows.to(tl.int64) * depth
    for _ in range(0, depth, DEPTH):
        w = tl.load(right)
        first = tl.dot(tl.load(left, mask=is_row[:, None], other=0.0), w, first)
        second = tl.dot(tl.load(left + stride, mask=is_row[:, None], other=0.0), w, second)
        if STREAMS == 3:
            third = tl.dot(tl.load(left + 2 * stride, mask=is_row[:, None], other=0.0), w, third)
        left += DEPTH
        right += DEPTH * along_depth
    return first, second, third


@triton.jit
def points_product(points, weight, place, is_row, c, width, INPUTS: tl.constexpr):
    """Float32: rows at ``place`` of points [rows, INPUTS] times columns ``c`` of weight [width, INPUTS]; 0 past it."""
    for k in tl.static_range(INPUTS):
        a = tl.load(points + place * INPUTS + k, mask=is_row, other=0.0)[:, None]
        w = tl.load(weight + c * INPUTS + k, mask=c < width, other=0.0)[None, :]
        if k == 0:
            z = a * w
        else:
            z += a * w
    return z


@triton.jit
def entry(points, weight, bias, place, is_row, c, width, INPUTS: tl.constexpr):
    """The first layer's z, float32: rows at ``place`` and columns ``c`` of points [rows, INPUTS]; 0 past ``width``."""
    is_column = c < width
    b = tl.load(bias + c, mask=is_column, other=0.0)
    for k in tl.static_range(INPUTS):
        a = tl.load(points + place * INPUTS + k, mask=is_row, other=0.0)[:, None]
        w = tl.load(weight + c * INPUTS + k, mask=is_column, other=0.0)[None, :]
        if k == 0:
            z = a * w + b[None, :]
        else:
            z += a * w
    return z
