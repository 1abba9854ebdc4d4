"""Products of a tile of rows with a layer's weights, in Triton: of float16 matrices, of points of few coordinates.

Matrices are given as tensor descriptors where a GPU has a copy engine for them, Hopper and later: a tile is an
instruction of one thread, and nobody keeps addresses in registers. Elsewhere they are pointers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aire_nerfstudio.ops.triton_activations import TURN, without_turns


@triton.jit
def tile_of(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's block of rows and tile of columns; where its numbers lie; its columns, rows there are, rows.

    Where is the first row, the first column, and how many there are of both. Programs are numbered along a block's
    columns first: those that run at a time share its rows.
    """
    across = columns // COLUMNS
    block = tl.program_id(0) // across
    tile = tl.program_id(0) % across
    r = block * ROWS + tl.arange(0, ROWS)
    c = tile * COLUMNS + tl.arange(0, COLUMNS)
    return block, tile, (block * ROWS, tile * COLUMNS, rows, columns), c, r < rows, r.to(tl.int64)


@triton.jit
def places_of(where, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where a tile's numbers lie behind a pointer, and which of its rows there are."""
    r = (where[0] + tl.arange(0, ROWS))[:, None]
    return r.to(tl.int64) * where[3] + (where[1] + tl.arange(0, COLUMNS))[None, :], r < where[2]


@triton.jit
def load_tile(x, where, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of x, a descriptor or a pointer; rows past the end are zeros."""
    if isinstance(x, tl.tensor_descriptor):
        found = x.load([where[0], where[1]])
    else:
        at, is_row = places_of(where, ROWS, COLUMNS)
        found = tl.load(x + at, mask=is_row, other=0)
    return found


@triton.jit
def store_tile(x, tile, where, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The same backwards; rows past the end are not stored."""
    if isinstance(x, tl.tensor_descriptor):
        x.store([where[0], where[1]], tile)
    else:
        at, is_row = places_of(where, ROWS, COLUMNS)
        tl.store(x + at, tile, mask=is_row)


@triton.jit
def load_weight(weight, first_column, k, IS_FORWARD: tl.constexpr):
    """A descriptor's tile [DEPTH, COLUMNS] of a weight [columns, depth] where IS_FORWARD, else [depth, columns]."""
    found = weight.load([first_column, k]).T if IS_FORWARD else weight.load([k, first_column])
    return found


@triton.jit
def beginnings(
    x, weight, where, depth, IS_FORWARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    """Of pointers, where the first tiles of a product lie, which of x's rows there are, and a step along the weight."""
    r = where[0] + tl.arange(0, ROWS)
    c = where[1] + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    left = x + r.to(tl.int64)[:, None] * depth + k[None, :]
    if IS_FORWARD:
        right = weight + c[None, :] * depth + k[:, None]
        along = DEPTH
    else:
        right = weight + c[None, :] + k[:, None] * where[3]
        along = DEPTH * where[3]
    return left, (r < where[2])[:, None], right, along


@triton.jit
def product(
    x, weight, where, depth, IS_FORWARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    """Float32 [ROWS, COLUMNS]: rows of x [rows, depth] times columns of a weight, float16, descriptors or pointers.

    The weight is [columns, depth] where IS_FORWARD, else [depth, columns]; depth is a multiple of DEPTH.
    """
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    if isinstance(x, tl.tensor_descriptor):
        for k in range(0, depth, DEPTH):
            total = tl.dot(x.load([where[0], k]), load_weight(weight, where[1], k, IS_FORWARD), total)
    else:
        left, is_row, right, along = beginnings(x, weight, where, depth, IS_FORWARD, ROWS, COLUMNS, DEPTH)
        for _ in range(0, depth, DEPTH):
            total = tl.dot(tl.load(left, mask=is_row, other=0.0), tl.load(right), total)
            left += DEPTH
            right += along
    return total


@triton.jit
def products(
    x_0, x_1, x_2, weight, where, depth, IS_FORWARD: tl.constexpr, STREAMS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """:func:`product` of two or three streams x_i [rows, depth] at once; the third is 0 where there are two.

    Of pointers the first tells where the others are: they follow each other in memory.
    """
    first = tl.zeros((ROWS, COLUMNS), tl.float32)
    second = tl.zeros((ROWS, COLUMNS), tl.float32)
    third = tl.zeros((ROWS, COLUMNS), tl.float32)
    if isinstance(x_0, tl.tensor_descriptor):
        for k in range(0, depth, DEPTH):
            w = load_weight(weight, where[1], k, IS_FORWARD)
            first = tl.dot(x_0.load([where[0], k]), w, first)
            second = tl.dot(x_1.load([where[0], k]), w, second)
            if STREAMS == 3:
                third = tl.dot(x_2.load([where[0], k]), w, third)
    else:
        left, is_row, right, along = beginnings(x_0, weight, where, depth, IS_FORWARD, ROWS, COLUMNS, DEPTH)
        stride = where[2].to(tl.int64) * depth
        for _ in range(0, depth, DEPTH):
            w = tl.load(right)
            first = tl.dot(tl.load(left, mask=is_row, other=0.0), w, first)
            second = tl.dot(tl.load(left + stride, mask=is_row, other=0.0), w, second)
            if STREAMS == 3:
                third = tl.dot(tl.load(left + 2 * stride, mask=is_row, other=0.0), w, third)
            left += DEPTH
            right += along
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
def entered(points, weight, bias, place, is_row, c, width, omega, KIND: tl.constexpr, INPUTS: tl.constexpr):
    """What is kept of the first layer's z, float32, of points [rows, INPUTS]: see kept_of; z is 0 past ``width``."""
    is_column = c < width
    rate = omega * (1 / TURN) if KIND == 0 else 1.0
    z = (tl.load(bias + c, mask=is_column, other=0.0) * rate)[None, :]
    for k in tl.static_range(INPUTS):
        a = tl.load(points + place * INPUTS + k, mask=is_row, other=0.0)[:, None]
        # Of each column there is one; of each point as many as there are columns.
        z += a * (tl.load(weight + c * INPUTS + k, mask=is_column, other=0.0) * rate)[None, :]
    return without_turns(z) * TURN if KIND == 0 else z
