"""Triton kernels of a whole training step of a sine network: mean square, and all gradients, block by block of rows.

A step in a launch a layer moves every layer's values, phases and gradients through memory and back. Here a program
takes its rows through all layers and back: what it stored is in the cache when it loads it. Only values and gradients
remain, of which dW is made; a layer's phases lie where its gradients come to lie.

Gradients become float16 before anybody knows how large they are, so their scales are bounds: on the outputs' distance
from the target, which the weights and the largest target give, and on what each layer can make of it. Behind three
layers that is some 2^6 times what gradients are, of the 2^30 that float16 spans.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aire_nerfstudio.ops.triton_activations import ROUND, cosine, sine, turns
from aire_nerfstudio.ops.triton_products import entry, product
from aire_nerfstudio.ops.triton_sums import LARGEST, largest_in, over_blocks

# Rows of a program of prepare that looks through the targets; columns of one that packs a weight.
TARGETS, PACK_COLUMNS = 8192, 32
# Hidden layers whose weights one launch packs.
MOST_HIDDEN = 3


@triton.jit(do_not_specialize=["numbers", "n_0", "n_1", "n_2", "k_0", "k_1", "k_2"])
def prepare(
    weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, n_0, n_1, n_2, k_0, k_1, k_2, target,
    packed, biases, norms, largest, numbers,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """Packed [m, WIDTH, WIDTH], float16, and biases [m, WIDTH]: m hidden weights and biases with zeros behind them.

    Programs are [:, 1 + m]; norms [m, WIDTH / COLUMNS]: the largest sum of |weight| down a column of each program's.
    largest [programs of the targets]: the largest size among a program's ``numbers`` of target.
    """
    part = tl.program_id(0)
    plane = tl.program_id(1)
    if plane == 0:
        i = part.to(tl.int64) * TARGETS + tl.arange(0, TARGETS)
        if part * TARGETS < numbers:
            t = tl.load(target + i, mask=i < numbers, other=0.0)
            tl.store(largest + part, tl.max(tl.abs(t), 0))
    elif part * COLUMNS < WIDTH:
        if plane == 1:
            pack_layer(weight_0, bias_0, n_0, k_0, packed, biases, norms, 0, part, WIDTH, COLUMNS)
        elif plane == 2:
            pack_layer(weight_1, bias_1, n_1, k_1, packed, biases, norms, 1, part, WIDTH, COLUMNS)
        else:
            pack_layer(weight_2, bias_2, n_2, k_2, packed, biases, norms, 2, part, WIDTH, COLUMNS)


@triton.jit
def pack_layer(
    weight, bias, n, k, packed, biases, norms, layer: tl.constexpr, part, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
):
    """A program's columns of a weight [n, k], and its share of the bias [n]."""
    i = tl.arange(0, WIDTH)
    j = part * COLUMNS + tl.arange(0, COLUMNS)
    w = tl.load(weight + i[:, None] * k + j[None, :], mask=(i[:, None] < n) & (j[None, :] < k), other=0.0)
    tl.store(packed + layer * WIDTH * WIDTH + i[:, None] * WIDTH + j[None, :], w.to(tl.float16))
    tl.store(norms + layer * (WIDTH // COLUMNS) + part, tl.max(tl.sum(tl.abs(w), 0), 0))
    tl.store(biases + layer * WIDTH + j, tl.load(bias + j, mask=j < n, other=0.0))


@triton.jit(do_not_specialize=["n_largest", "width"])
def bound(
    largest, n_largest, norms, last, last_bias, omegas, factors, scales, width,
    LAYERS: tl.constexpr, OUT: tl.constexpr, WIDTH: tl.constexpr, NORMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Factors [LAYERS]: what each layer's gradient is multiplied by so that none is beyond float16; scales: all so far.

    The first layer's gradient stays in float32 and has the factor 1.
    """
    c = tl.arange(0, WIDTH)
    column = tl.zeros((WIDTH,), tl.float32)
    reach = 0.0
    for o in tl.static_range(OUT):
        w = tl.abs(tl.load(last + o * width + c, mask=c < width, other=0.0))
        column += w
        reach = tl.maximum(reach, tl.sum(w, 0) + tl.abs(tl.load(last_bias + o)))
    size = (reach + largest_in(largest, n_largest, BLOCK)) * tl.max(column, 0)
    room = LARGEST / tl.maximum(size, 1e-30)
    scale = 1.0
    part = tl.arange(0, NORMS)
    for layer in tl.static_range(LAYERS - 1, 0, -1):
        factor = tl.minimum(tl.minimum(room / tl.load(omegas + layer), 1e30), 1e30 / scale)
        scale *= factor
        tl.store(factors + layer, factor)
        tl.store(scales + layer, scale)
        room = 1 / tl.maximum(tl.max(tl.load(norms + (layer - 1) * NORMS + part), 0), 1e-30)
    tl.store(factors, 1.0)
    tl.store(scales, scale)


@triton.jit(do_not_specialize=["rows", "first_width", "last_width"])
def step(
    x, target, first, first_bias, hidden, biases, last, last_bias, omegas, factors,
    values, gradients, parts, squares, rows, first_width, last_width, gain,
    LAYERS: tl.constexpr, INPUTS: tl.constexpr, OUT: tl.constexpr, OUTS: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Of a SIREN of LAYERS sine layers its squares against target [rows, OUT], and what all gradients are made of.

    x [rows, INPUTS], first [first_width, INPUTS], hidden [LAYERS - 1, WIDTH, WIDTH] float16, biases [LAYERS - 1,
    WIDTH], last [OUT, last_width]; OUTS is OUT's power of two. Left behind are values [LAYERS - 1, rows, WIDTH] of all
    layers but the last and gradients [LAYERS - 1, rows, WIDTH] of all but the first, float16; of each block of rows
    squares [blocks], gain times their sum, and parts [blocks, LAYERS + OUT + INPUTS + 1, WIDTH]: sums of each layer's
    gradient, of the errors times the last layer's values, of the coordinates times the first layer's gradient, and of
    the errors.
    """
    block = tl.program_id(0)
    before = block.to(tl.int64) * ROWS
    # Within a block numbers are small: places of 64 bits would take twice the registers.
    r = tl.arange(0, ROWS)
    is_row = r < rows - block * ROWS
    along = tl.arange(0, COLUMNS)
    stride = rows.to(tl.int64) * WIDTH
    x += before * INPUTS
    target += before * OUT
    values += before * WIDTH
    gradients += before * WIDTH
    parts += block.to(tl.int64) * (LAYERS + OUT + INPUTS + 1) * WIDTH
    o = tl.arange(0, OUTS)
    is_output = is_row[:, None] & (o[None, :] < OUT)

    omega = tl.load(omegas)
    for begin in range(0, WIDTH, COLUMNS):
        c = begin + along
        z = entry(x, first, first_bias, r, is_row, c, first_width, INPUTS)
        at = r[:, None] * WIDTH + c[None, :]
        tl.store(values + at, sine(turns(omega * z)).to(tl.float16), mask=is_row[:, None])

    error = tl.zeros((ROWS, OUTS), tl.float32)
    for layer in tl.static_range(1, LAYERS):
        # Others' threads stored what is loaded now.
        tl.debug_barrier()
        omega = tl.load(omegas + layer)
        for begin in range(0, WIDTH, COLUMNS):
            c = begin + along
            weight = hidden + (layer - 1) * WIDTH * WIDTH
            z = product(values + (layer - 1) * stride, weight, r, is_row, c, WIDTH, WIDTH, 1, ROWS, COLUMNS, DEPTH)
            t = turns(omega * (z + tl.load(biases + (layer - 1) * WIDTH + c)[None, :]))
            value = sine(t)
            at = r[:, None] * WIDTH + c[None, :]
            # A full turn is 2^16, and half of one the same as minus half.
            turn = (t * 65536.0 + ROUND).to(tl.int32, bitcast=True).to(tl.int16)
            tl.store(gradients + (layer - 1) * stride + at, turn.to(tl.float16, bitcast=True), mask=is_row[:, None])
            if layer < LAYERS - 1:
                tl.store(values + layer * stride + at, value.to(tl.float16), mask=is_row[:, None])
            else:
                for k in tl.static_range(OUT):
                    w = tl.load(last + k * last_width + c, mask=c < last_width, other=0.0)
                    error += tl.where(o[None, :] == k, tl.sum(value * w[None, :], 1)[:, None], 0.0)

    error += tl.load(last_bias + o, mask=o < OUT, other=0.0)[None, :]
    error -= tl.load(target + r[:, None] * OUT + o[None, :], mask=is_output, other=0.0)
    error = tl.where(is_output, error, 0.0)
    tl.store(squares + block, gain * tl.sum(error * error))
    tl.store(parts + (LAYERS + OUT + INPUTS) * WIDTH + o, tl.sum(error, 0), mask=o < OUT)

    for layer in tl.static_range(LAYERS - 1, 0, -1):
        tl.debug_barrier()
        factor = tl.load(omegas + layer) * tl.load(factors + layer)
        for begin in range(0, WIDTH, COLUMNS):
            c = begin + along
            at = r[:, None] * WIDTH + c[None, :]
            here = gradients + (layer - 1) * stride
            if layer < LAYERS - 1:
                behind, weight = gradients + layer * stride, hidden + layer * WIDTH * WIDTH
                g = product(behind, weight, r, is_row, c, WIDTH, 1, WIDTH, ROWS, COLUMNS, DEPTH)
            turn = tl.load(here + at, mask=is_row[:, None], other=0.0).to(tl.int16, bitcast=True)
            t = turn.to(tl.float32) * (1.0 / 65536.0)
            if layer == LAYERS - 1:
                g = tl.zeros((ROWS, COLUMNS), tl.float32)
                for k in tl.static_range(OUT):
                    e = tl.sum(tl.where(o[None, :] == k, error, 0.0), 1)
                    tl.store(parts + (LAYERS + k) * WIDTH + c, tl.sum(e[:, None] * sine(t), 0))
                    w = tl.load(last + k * last_width + c, mask=c < last_width, other=0.0)
                    g += e[:, None] * w[None, :]
            g *= cosine(t) * factor
            tl.store(parts + layer * WIDTH + c, tl.sum(g, 0))
            tl.store(here + at, g.to(tl.float16), mask=is_row[:, None])

    tl.debug_barrier()
    omega = tl.load(omegas)
    for begin in range(0, WIDTH, COLUMNS):
        c = begin + along
        g = product(gradients, hidden, r, is_row, c, WIDTH, 1, WIDTH, ROWS, COLUMNS, DEPTH)
        z = entry(x, first, first_bias, r, is_row, c, first_width, INPUTS)
        # Rows past the end have a gradient of 0.
        g *= cosine(turns(omega * z)) * omega
        tl.store(parts + c, tl.sum(g, 0))
        for k in tl.static_range(INPUTS):
            a = tl.load(x + r * INPUTS + k, mask=is_row, other=0.0)
            tl.store(parts + (LAYERS + OUT + k) * WIDTH + c, tl.sum(a[:, None] * g, 0))


@triton.jit(do_not_specialize=["blocks"])
def step_sums(
    parts, numerator, scales, out, blocks, gain,
    LAYERS: tl.constexpr, OUT: tl.constexpr, INPUTS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Sums over blocks of what step leaves in parts, by gain and numerator over the layer's scale.

    Out [LAYERS + OUT + INPUTS + 1, WIDTH] has the layers' biases, the last weights, the first, input by input for each
    neuron, and the last biases.
    """
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.program_id(1)
    found = over_blocks(parts, blocks, i, LAYERS + OUT + INPUTS + 1, j, WIDTH, WIDTH, BLOCK, SHARES)
    is_first = (i >= LAYERS + OUT) & (i < LAYERS + OUT + INPUTS)
    scale = tl.load(scales + tl.where(i < LAYERS, i, 0))
    factor = gain * tl.load(numerator) / tl.where((i < LAYERS) | is_first, scale, 1.0)
    at = tl.where(is_first, (LAYERS + OUT) * WIDTH + j * INPUTS + i - LAYERS - OUT, i * WIDTH + j)
    # Of the errors there are no more than OUT sums; what lies behind was never written.
    is_there = (i < LAYERS + OUT + INPUTS) | (j < OUT)
    tl.store(out + at, found * factor, mask=is_there)
