"""A SIREN's mean square and all its gradients on CUDA through Triton, block by block of rows.

The passes are told in :mod:`~aire_nerfstudio.ops.triton_step_kernels`. Beside
:mod:`~aire_nerfstudio.ops.triton_network`, where each layer is a launch, half as many bytes go through memory, and a
third of the launches is left; but a block's layers wait for each other. Which is faster is measured:
:mod:`~aire_nerfstudio.ops.fastest`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aire_nerfstudio.ops.triton_launches import omegas_on, partial_products, plain, total

# Coordinates and colours, at most; sine layers; neurons a layer; rows, of which each multiprocessor has some.
MOST_ENDS, MOST_LAYERS, MOST_WIDTH, FEWEST_ROWS = 4, 4, 512, 4096
Tile = dict[str, int]
TILES: tuple[Tile, ...] = (
    {"ROWS": 64, "COLUMNS": 128, "DEPTH": 64, "num_warps": 4, "num_stages": 3},
    {"ROWS": 128, "COLUMNS": 128, "DEPTH": 64, "num_warps": 8, "num_stages": 3},
)


def is_possible(x: Tensor, weights: Sequence[Tensor], kind: int) -> bool:
    """Whether a network at ``x [N, d]`` has these kernels' form: a SIREN of 2 to 4 sine layers, few coordinates."""
    ends, layers = max(weights[0].shape[1], weights[-1].shape[0]), len(weights) - 1
    widest = max(weight.shape[0] for weight in weights[:-1])
    return (
        kind == 0 and 2 <= layers <= MOST_LAYERS and ends <= MOST_ENDS and widest <= MOST_WIDTH
        and len(x) >= FEWEST_ROWS
    )  # fmt: skip


def width_of(weights: Sequence[Tensor]) -> int:
    """The power of two, 64 or more, that all layers are padded to."""
    widest = max(weight.shape[0] for weight in weights[:-1])
    return max(64, 1 << (widest - 1).bit_length())


def tiles_for(width: int) -> list[Tile]:
    """Ways to share out the rows of a network padded to ``width``; some may be more than a GPU has memory for."""
    return [{**tile, "COLUMNS": min(width, tile["COLUMNS"])} for tile in TILES]


class Step:
    """A mean square, with all that its gradients are made of.

    Attributes:
        squares: what the mean square is the sum of, ``[blocks]``.
    """

    def __init__(
        self, x: Tensor, target: Tensor, parameters: Sequence[Tensor], omegas: tuple[float, ...], tile: Tile
    ) -> None:
        from aire_nerfstudio.ops import triton_step_kernels as kernels
        from aire_nerfstudio.ops.triton_sums import SCALE_BLOCK

        rows, weights, biases = plain(x, parameters)
        wanted = target.detach().contiguous()
        count, inputs = rows.shape
        out, layers, width = weights[-1].shape[0], len(omegas), width_of(weights)
        hidden = layers - 1
        packed = rows.new_empty(hidden, width, width, dtype=torch.float16)
        padded = rows.new_empty(hidden, width)
        norms = rows.new_empty(hidden, width // kernels.PACK_COLUMNS)
        parts = -(-wanted.numel() // kernels.TARGETS)
        largest = rows.new_empty(parts)
        # Of layers that are not there another is named, and not looked at.
        three = [min(1 + i, hidden) for i in range(kernels.MOST_HIDDEN)]
        kernels.prepare[(max(parts, norms.shape[1]), hidden + 1)](
            *(weights[i] for i in three), *(biases[i] for i in three), *(weights[i].shape[0] for i in three),
            *(weights[i].shape[1] for i in three), wanted, packed, padded, norms, largest, wanted.numel(),
            WIDTH=width, COLUMNS=kernels.PACK_COLUMNS, TARGETS=kernels.TARGETS,
        )  # fmt: skip
        rates = omegas_on(omegas, rows.device)
        factors, self.scales = rows.new_empty(layers), rows.new_empty(layers)
        kernels.bound[(1,)](
            largest, parts, norms, weights[-1], biases[-1], rates, factors, self.scales, weights[-1].shape[1],
            LAYERS=layers, OUT=out, WIDTH=width, NORMS=norms.shape[1], BLOCK=SCALE_BLOCK,
        )  # fmt: skip
        blocks = -(-count // tile["ROWS"])
        self.values = rows.new_empty(hidden, count, width, dtype=torch.float16)
        self.gradients = torch.empty_like(self.values)
        self.parts = rows.new_empty(blocks, layers + out + inputs + 1, width)
        self.squares = rows.new_empty(blocks)
        kernels.step[(blocks,)](
            rows, wanted, weights[0], biases[0], packed, padded, weights[-1], biases[-1], rates, factors,
            self.values, self.gradients, self.parts, self.squares, count, weights[0].shape[0], weights[-1].shape[1],
            1 / wanted.numel(),
            LAYERS=layers, INPUTS=inputs, OUT=out, OUTS=1 << (out - 1).bit_length(), WIDTH=width, **tile,
        )  # fmt: skip

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Step:
        """What :meth:`flat` gave."""
        made = cls.__new__(cls)
        made.scales, made.values, made.gradients, made.parts, made.squares = tensors
        return made

    def flat(self) -> list[Tensor]:
        """All tensors in a row."""
        return [self.scales, self.values, self.gradients, self.parts, self.squares]

    def gradients_of(self, weights: Sequence[Tensor], biases: Sequence[Tensor], numerator: Tensor) -> list[Tensor]:
        """Gradients of all weights, then all biases, of the mean square times ``numerator []``."""
        from aire_nerfstudio.ops import triton_step_kernels as kernels
        from aire_nerfstudio.ops import triton_sums as sums

        hidden, count, width = self.values.shape
        layers, inputs, out = hidden + 1, weights[0].shape[1], weights[-1].shape[0]
        gain = 2 / (count * out)
        partial = partial_products(self.gradients, self.values)
        found = self.parts.new_empty(self.parts.shape[1], width)
        kernels.step_sums[(width // sums.PARTS_BLOCK, len(found))](
            self.parts, numerator, self.scales, found, len(self.parts), gain,
            LAYERS=layers, OUT=out, INPUTS=inputs, WIDTH=width, BLOCK=sums.PARTS_BLOCK, SHARES=sums.PARTS_SHARES,
            num_warps=8,
        )  # fmt: skip
        first = found[layers + out :].view(-1)[: weights[0].numel()].view_as(weights[0])
        between = [
            total(partial[i], weights[i + 1].shape, numerator, self.scales[i + 1 : i + 2], gain) for i in range(hidden)
        ]
        last = found[layers : layers + out, : weights[-1].shape[1]].contiguous()
        of_biases = [found[i, : len(biases[i])] for i in range(layers)]
        return [first, *between, last, *of_biases, found[layers + out + inputs, :out]]
