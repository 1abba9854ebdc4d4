"""Launches of the small Triton kernels, which a network's values and its derivatives have in common."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tile = dict[str, int]


class Grid(NamedTuple):
    """How a matrix is shared out: blocks of rows, and tiles across its columns."""

    blocks: int
    across: int

    @classmethod
    def of(cls, rows: int, columns: int, tile: Tile) -> Grid:
        """For tiles of ``ROWS`` and ``COLUMNS``, of which a program takes ``BLOCKS`` where there is such a number."""
        return cls(-(-rows // (tile["ROWS"] * tile.get("BLOCKS", 1))), columns // tile["COLUMNS"])

    @property
    def programs(self) -> tuple[int]:
        """What Triton takes: one after the other across the columns first."""
        return (self.blocks * self.across,)


class Measured(NamedTuple):
    """The gradient with respect to few outputs ``[rows, out]``, and of each program's rows its sums and its largest."""

    grad: Tensor
    sums: Tensor
    largest: Tensor


def on_device(t: Tensor) -> AbstractContextManager[Any]:
    """Makes a tensor's device the current one, on which Triton launches; nothing where there is none."""
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def plain(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The points ``[rows, d]``, weights and biases, contiguous and without their history."""
    count = len(parameters) // 2
    found = [p.detach().contiguous() for p in parameters]
    return x.detach().reshape(-1, x.shape[-1]).contiguous(), found[:count], found[count:]


def up(n: int, to: int) -> int:
    """The smallest multiple of ``to`` that is ``n`` or more."""
    return -(-n // to) * to


def padded(t: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    """``t`` with zeros behind it in both directions."""
    if tuple(t.shape) == shape:
        return t.to(dtype).contiguous()
    out = torch.zeros(shape, dtype=dtype, device=t.device)
    out[tuple(slice(n) for n in t.shape)] = t
    return out


def packed(weight: Tensor, rows: int, columns: int, is_split: bool, keeps: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``weight`` in float16 with zeros around it, ``[rows, columns]``, what is left of it, and its columns' norms."""
    from aire_nerfstudio.ops import triton_sums as sums

    high = weight.new_empty(rows, columns, dtype=torch.float16)
    low = torch.empty_like(high) if is_split else high
    programs = columns // sums.PACK_COLUMNS
    norms = weight.new_empty(programs if keeps else 0)
    sums.pack[(programs,)](
        weight, high, low, norms, *weight.shape, columns, rows,
        LOW=is_split, NORMS=keeps, ROWS=sums.PACK_ROWS, COLUMNS=sums.PACK_COLUMNS,
    )  # fmt: skip
    return high, low, norms


@functools.cache  # a graph reads them: none may go
def omegas_on(omegas: tuple[float, ...], device: torch.device) -> Tensor:
    """``omegas`` on a device; the host waits for each copy, which no graph can hold."""
    return torch.tensor(omegas, device=device)


def finish(shares: Tensor, bias: Tensor) -> Tensor:
    """Outputs ``[rows, out]`` of their shares ``[m, rows, out]`` and the bias."""
    from aire_nerfstudio.ops import triton_sums as sums

    tiles, count, out = shares.shape
    y = shares.new_empty(count, out)
    if count:
        sums.finish[(-(-count // sums.FINISH_ROWS),)](
            shares, bias, y, y, y, y, y, count, tiles, 1.0,
            OUT=out, BIAS=True, TARGET=False, MEASURE=False, ROWS=sums.FINISH_ROWS,
        )  # fmt: skip
    return y


def measure(shares: Tensor, bias: Tensor | None, target: Tensor | None) -> tuple[Measured, Tensor]:
    """Of shares ``[m, rows, out]`` plus bias less target what backward wants, and the mean square's shares ``[m]``."""
    from aire_nerfstudio.ops import triton_sums as sums

    tiles, count, out = shares.shape
    programs = -(-count // sums.FINISH_ROWS)
    grad = shares[0] if bias is None and target is None else shares.new_empty(count, out)
    parts, squares, largest = (shares.new_empty(programs, *shape) for shape in ((out,), (), ()))
    if count:
        sums.finish[(programs,)](
            shares, shares if bias is None else bias, shares if target is None else target, grad, parts, squares,
            largest, count, tiles, 1 / (count * out),
            OUT=out, BIAS=bias is not None, TARGET=target is not None, MEASURE=True, ROWS=sums.FINISH_ROWS,
        )  # fmt: skip
    return Measured(grad, parts, largest), squares


def total_parts(
    parts: Tensor, sizes: tuple[int, int, int, int], numerator: Tensor | None, scale: Tensor, gain: float
) -> Tensor:
    """Gradients that a layer's backward left in parts ``[blocks, 1 + narrow + entry, columns]``, one behind the other.

    ``sizes`` are width, columns, narrow and entry.
    """
    from aire_nerfstudio.ops import triton_sums as sums

    width, columns, narrow, entry = sizes
    found = parts.new_empty((1 + narrow + entry) * width)
    sums.total_parts[(-(-width // sums.PARTS_BLOCK), 1 + narrow + entry)](
        parts, scale if numerator is None else numerator, scale, found, len(parts), width, columns, gain,
        NUMERATOR=numerator is not None, NARROW=narrow, ENTRY=entry, BLOCK=sums.PARTS_BLOCK, SHARES=sums.PARTS_SHARES,
        num_warps=8,
    )  # fmt: skip
    return found


# As what the kernels are launched without a device, in Triton's interpreter and for its compiler alone.
COPY_ENGINE_WITHOUT_DEVICE = True


def has_copy_engine(device: torch.device) -> bool:
    """Whether tiles are loaded and stored by descriptors: Hopper, and the Blackwell of data centres.

    Consumers' Blackwell could as well, but its tensor cores take operands from registers: the tiles would not fit.
    """
    return _is_hopper(device) if device.type == "cuda" else COPY_ENGINE_WITHOUT_DEVICE


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return 9 <= torch.cuda.get_device_capability(device)[0] < 12


def tiles(t: Tensor | None, rows: int, columns: int) -> Any:
    """A contiguous matrix for kernels that load or store ``[rows, columns]`` of it at a time; None as it is."""
    if t is None or not has_copy_engine(t.device):
        return t
    # What the constructor checks holds for all that comes here, and takes the host longer than the launch.
    made = object.__new__(_descriptor_type())
    made.base, made.shape, made.strides = t, t.shape, t.stride()
    made.block_shape, made.padding = [rows, columns], "zero"
    return made


@functools.cache
def _descriptor_type() -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor


def left_of(x: Tensor, tile: Tile) -> Any:
    """Rows ``x [rows, depth]`` of a product."""
    return tiles(x, tile["ROWS"], tile["DEPTH"])


def right_of(weight: Tensor, tile: Tile, is_forward: bool) -> Any:
    """A product's weight: ``[columns, depth]`` forward, ``[depth, columns]`` backward."""
    shape = (tile["COLUMNS"], tile["DEPTH"])
    return tiles(weight, *(shape if is_forward else shape[::-1]))


def beside(t: Tensor | None, tile: Tile) -> Any:
    """What has a number for each of a product's, ``[rows, columns]``."""
    return tiles(t, tile["ROWS"], tile["COLUMNS"])


def partial_products(grad: Tensor, x: Tensor) -> Tensor:
    """``grad^T x`` of ``grad [rows, n]`` and ``x [rows, k]``, both float16 and padded, unsummed.

    Float32 ``[shares, n, k]`` over a fixed split of the rows.
    """
    from aire_nerfstudio.ops import triton_kernels as kernels

    rows, n = grad.shape
    k = x.shape[1]
    tile = kernels.outer_tile(n, k, has_copy_engine(grad.device))
    share = up(-(-rows // tile.pop("SHARES")), tile["DEPTH"])
    shares = -(-rows // share)
    partial = grad.new_empty(shares, n, k, dtype=torch.float32)
    high, wide, depth = tile["BLOCK_N"], tile["BLOCK_K"], tile["DEPTH"]
    kernels.outer_product[n // high, k // wide, shares](
        tiles(grad, depth, high), tiles(x, depth, wide), partial, rows, n, k, share, **tile
    )
    return partial


def total(partial: Tensor, shape: Sequence[int], numerator: Tensor | None, denominator: Tensor, gain: float) -> Tensor:
    """Sum over the first dimension of ``[m, n, k]`` times gain and numerator over denominator, cut to ``shape``."""
    from aire_nerfstudio.ops import triton_sums as sums

    down, across = shape
    out = partial.new_empty(down, across)
    sums.total[(-(-across // sums.TOTAL_BLOCK), down)](
        partial, denominator if numerator is None else numerator, denominator, out, len(partial), across, down,
        partial.shape[2], partial.shape[1], gain,
        NUMERATOR=numerator is not None, BLOCK=sums.TOTAL_BLOCK, SHARES=sums.TOTAL_SHARES,
    )  # fmt: skip
    return out
