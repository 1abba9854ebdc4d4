"""Launches that a sine network's derivatives on CUDA have in common: its values, and the adjoint of its output.

What these leave is kept a layer each, in :class:`Layer`; :mod:`~aire_nerfstudio.ops.triton_gradient_kernels` says what
l, h, z, a, e, s and t stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from aire_nerfstudio.ops import triton_network
from aire_nerfstudio.ops.activations import Activation
from aire_nerfstudio.ops.arguments import SMOOTH
from aire_nerfstudio.ops.triton_launches import (
    Grid,
    Tile,
    beside,
    finish,
    has_copy_engine,
    left_of,
    packed,
    plain,
    right_of,
    total,
    up,
)

# Of sizes of the last layer's gradients over its slopes, in float16; FINER's slopes reach its end at |z| of 2,000,
# where float32 has no phase left.
LAST_ROOM = 16.0


def is_possible(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation) -> bool:
    """Whether derivatives may and can be had here: ``x [N, d]`` on CUDA at precision ``medium``.

    ``d`` is 4 or less, the sine layers, of SIREN or FINER, two or more, the output one.
    """
    if activation not in SMOOTH or x.requires_grad or x.dim() != 2 or not 0 < x.shape[1] <= triton_network.NARROW:
        return False
    if len(weights) < 3 or weights[-1].shape[0] != 1:
        return False
    return triton_network.is_possible(x, weights, biases)


@dataclass
class Layer:
    """What is kept of a sine layer for backward; None is what it has no use for.

    Attributes:
        value: h, float16 ``[rows, n]``; not of the last.
        phase: 16-bit phases (SIREN) or z ``[rows, n]``; not of the first.
        adjoint: a, float16 ``[rows, n]``; not of the last.
        back: e, float16 ``[rows, n]``; not of the first.
        packed: float16 weight ``[n, n']``; not of the first.
        norms: largest sums down its columns ``[m]``; not of the first.
        row_norms: largest sums along the weight's rows ``[m]``, once somebody asked.
        sizes: largest |z| ``[m]``; not of SIREN.
        scale: of adjoint and back, ``[1]``.
    """

    value: Any = None
    phase: Any = None
    adjoint: Any = None
    back: Any = None
    packed: Any = None
    norms: Any = None
    row_norms: Any = None
    sizes: Any = None
    scale: Any = None


_FIELDS = [field.name for field in fields(Layer)]


@dataclass
class Kept:
    """What backward needs of forward: of each sine layer, and the last weights' largest size ``[1]``."""

    layers: list[Layer]
    last_size: Tensor

    def flat(self) -> list[Any]:
        """All tensors in a row."""
        return [*(getattr(layer, name) for layer in self.layers for name in _FIELDS), self.last_size]

    @classmethod
    def of(cls, tensors: Sequence[Any]) -> Kept:
        """What :meth:`flat` gave."""
        each = len(_FIELDS)
        return cls([Layer(*tensors[i : i + each]) for i in range(0, len(tensors) - 1, each)], tensors[-1])


class Passes:
    """A network at points, and the launches that go through its layers.

    Args:
        rows: ``[rows, d]``.
        parameters: all weights, then all biases; the output is one.
        omegas: ``w0`` of each sine layer.
        kind: 0 SIREN, 1 FINER.
        kept: what :meth:`outputs` kept of an earlier call.
    """

    def __init__(
        self, rows: Tensor, parameters: Sequence[Tensor], omegas: Sequence[float], kind: int, kept: Kept | None = None
    ) -> None:
        from aire_nerfstudio.ops import triton_kernels as kernels

        self.rows, self.weights, self.biases = plain(rows, parameters)
        self.omegas, self.kind = omegas, kind
        self.inputs, self.last = rows.shape[1], len(omegas) - 1
        self.widths = [weight.shape[0] for weight in self.weights[:-1]]
        self.columns = [up(width, kernels.PAD) for width in self.widths]
        self.one = rows.new_ones(1)
        self.kept = Kept([Layer() for _ in omegas], rows.new_empty(1)) if kept is None else kept
        self.layers = self.kept.layers

    def shared_out(self, layer: int, is_heavy: bool = False) -> tuple[Tile, Grid, Callable[[], Tensor]]:
        """How a layer is shared out, its programs, and what makes a number for each of them."""
        from aire_nerfstudio.ops import triton_gradient_kernels as kernels

        tile = kernels.tile(self.columns[layer], self.kind, is_heavy, has_copy_engine(self.rows.device))
        grid = Grid.of(len(self.rows), self.columns[layer], tile)
        return tile, grid, lambda: self.rows.new_empty(grid.programs)

    def half(self, layer: int, *streams: int) -> Tensor:
        """Float16 ``[*streams, rows, n]``."""
        return self.rows.new_empty(*streams, len(self.rows), self.columns[layer], dtype=torch.float16)

    def phases(self, layer: int) -> Tensor:
        """Room for what is kept of z ``[rows, n]``."""
        phase_type = torch.int16 if self.kind == 0 else torch.float32
        return self.rows.new_empty(len(self.rows), self.columns[layer], dtype=phase_type)

    def sizes(self, layer: int) -> Tensor:
        """Largest |z|; anything for SIREN, which does not ask."""
        return self.one if self.kind == 0 else self.layers[layer].sizes

    def next_scale(self, largest: Tensor, norms: Tensor, layer: int, scale: Tensor) -> list[Tensor]:
        """The factor for what a layer's slopes multiply, ``[1]``, and ``scale`` times it."""
        from aire_nerfstudio.ops import triton_sums as sums

        factor, following = (self.rows.new_empty(1) for _ in range(2))
        sizes = self.sizes(layer)
        # What comes before the slope is float16 as well.
        omega = max(1.0, self.omegas[layer])
        sums.next_scale[(1,)](
            largest, largest.numel(), norms, norms.numel(), sizes, sizes.numel(), norms, 0, norms, 0, omega, scale,
            factor, following, KIND=self.kind, BRANCH=False, BLOCK=sums.SCALE_BLOCK, num_warps=8,
        )  # fmt: skip
        return [factor, following]

    def row_norms(self, layer: int) -> Tensor:
        """Largest sums along a layer's weight's rows ``[m]``."""
        from aire_nerfstudio.ops import triton_sums as sums

        here, weight = self.layers[layer], self.weights[layer]
        if here.row_norms is None:
            norms = here.row_norms = weight.new_empty(-(-weight.shape[0] // sums.NORM_ROWS))
            sums.row_norms[norms.shape](weight, norms, *weight.shape, ROWS=sums.NORM_ROWS, COLUMNS=sums.NORM_COLUMNS)
        return here.row_norms

    def outputs(self, keeps: bool) -> tuple[Tensor, Tensor]:
        """The network's value ``[rows]`` and gradient ``[rows, d]``; what backward wants is kept if ``keeps``."""
        from aire_nerfstudio.ops import triton_sums as sums

        if len(self.rows) == 0:
            return self.rows.new_empty(0), torch.empty_like(self.rows)
        scale = self.layers[self.last].scale = self.rows.new_empty(1)
        sums.scale_for[(1,)](
            self.weights[-1], self.widths[-1], LAST_ROOM / max(1.0, self.omegas[-1]), scale, self.kept.last_size,
            BLOCK=sums.SCALE_BLOCK, num_warps=8,
        )  # fmt: skip
        for layer in range(self.last):
            self._values(layer)
        shares, largest = self._last_values(keeps)
        for layer in reversed(range(self.last)):
            behind = self.layers[layer + 1]
            factor, self.layers[layer].scale = self.next_scale(largest, behind.norms, layer, behind.scale)
            gradient, largest = self._adjoint(layer, factor, keeps)
        value = finish(shares, self.biases[-1]).squeeze(1)
        return value, gradient.squeeze(0) if len(gradient) == 1 else gradient.sum(0)

    def _values(self, layer: int) -> None:
        """A layer's value and phase; the next one's weight in float16."""
        from aire_nerfstudio.ops import triton_kernels as kernels

        here, behind, entry = self.layers[layer], self.layers[layer + 1], self.inputs if layer == 0 else 0
        x, weight = (self.rows, self.weights[0]) if entry else (self.layers[layer - 1].value, here.packed)
        columns = self.columns[layer]
        tile = kernels.forward_tile(columns, self.kind, bool(entry), has_copy_engine(x.device))
        grid = Grid.of(len(x), columns, tile)
        here.value, here.phase = self.half(layer), None if entry else self.phases(layer)
        here.sizes = self.rows.new_empty(grid.programs) if self.kind else None
        sizes = self.sizes(layer)
        operands = (x, weight) if entry else (left_of(x, tile), right_of(weight, tile, True))
        kernels.layer_forward[grid.programs](
            *operands, self.biases[layer], self.weights[-1], beside(here.value, tile), beside(here.phase, tile), sizes,
            sizes, sizes, len(x), x.shape[1], self.columns[layer], self.widths[layer], self.omegas[layer],
            KIND=self.kind, ENTRY=entry, OUT=0, STORE=True, KEEP=True, **tile,
        )  # fmt: skip
        weight = self.weights[layer + 1]
        behind.packed, _, behind.norms = packed(weight, self.columns[layer + 1], self.columns[layer], False, True)

    def _last_values(self, keeps: bool) -> tuple[Tensor, Tensor]:
        """Shares of the network's output ``[m, rows, 1]``, and the largest numbers in the last layer's back."""
        from aire_nerfstudio.ops import triton_gradient_kernels as kernels

        last, here = self.last, self.layers[self.last]
        tile, grid, numbers = self.shared_out(last)
        here.back, here.phase = self.half(last), self.phases(last) if keeps else None
        here.sizes = numbers() if self.kind else None
        largest, shares = numbers(), self.rows.new_empty(grid.across, len(self.rows), 1)
        kernels.last_forward[grid.programs](
            left_of(self.layers[last - 1].value, tile), right_of(here.packed, tile, True), self.biases[last],
            self.weights[-1], here.scale, beside(here.back, tile), beside(here.phase, tile), self.sizes(last), shares,
            largest, len(self.rows),
            self.columns[last - 1], self.columns[last], self.widths[last], self.omegas[last],
            KIND=self.kind, KEEP=keeps, **tile,
        )  # fmt: skip
        return shares, largest

    def _adjoint(self, layer: int, factor: Tensor, keeps: bool) -> tuple[Tensor, Tensor]:
        """Of the first layer shares of the gradient ``[m, rows, d]``; of others the largest numbers in its back."""
        from aire_nerfstudio.ops import triton_gradient_kernels as kernels

        here, behind, entry = self.layers[layer], self.layers[layer + 1], self.inputs if layer == 0 else 0
        tile, grid, numbers = self.shared_out(layer)
        here.adjoint = self.half(layer) if keeps else None
        here.back = None if entry else self.half(layer)
        gradient, largest = self.rows.new_empty(grid.across, len(self.rows), entry), numbers()
        kernels.adjoint[grid.programs](
            left_of(behind.back, tile), right_of(behind.packed, tile, False),
            beside(None if entry else here.phase, tile),
            self.rows, self.weights[0], self.biases[0], factor, here.scale,
            beside(here.adjoint if keeps else None, tile),
            beside(here.back, tile), gradient, largest, len(self.rows), self.columns[layer + 1], self.columns[layer],
            self.widths[layer],
            self.omegas[layer], KIND=self.kind, ENTRY=entry, KEEP=keeps, **tile,
        )  # fmt: skip
        return gradient, largest

    def outer(
        self, layer: int, left: Tensor, tangents: Tensor, scales: Sequence[Tensor], along: Tensor, along_scale: Tensor
    ) -> Tensor:
        """A layer's weight's gradient ``[n, n']``, from what its own z and those before get.

        left ``[m, rows, n]`` are m gradients, the first of z, the others of tangents ``[m - 1, rows, n']``; along
        ``[rows, n']`` is what e is multiplied by. scales: of the first, of the others, of the tangents.
        """
        from aire_nerfstudio.ops import triton_gradient_kernels as kernels
        from aire_nerfstudio.ops.triton_kernels import outer_tile

        here, n, k, pairs = self.layers[layer], self.columns[layer], self.columns[layer - 1], len(left) + 1
        tile = outer_tile(n, k, has_copy_engine(along.device))
        share = up(-(-len(along) // tile.pop("SHARES")), tile["DEPTH"])
        shares = -(-len(along) // share)
        partial = self.rows.new_empty(pairs * shares, n, k)
        kernels.outer_products[(n // tile["BLOCK_N"], k // tile["BLOCK_K"], pairs * shares)](
            left, self.layers[layer - 1].value, tangents, *scales, here.back, along, here.scale, along_scale, partial,
            len(along), n, k, share, shares, PAIRS=pairs, **tile,
        )  # fmt: skip
        return total(partial, self.weights[layer].shape, None, self.one, 1.0)
