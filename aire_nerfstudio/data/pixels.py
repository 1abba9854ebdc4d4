"""Which pixels train and which test, and the order in which they are drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from aire_nerfstudio.data.epochs import EpochOrder
from aire_nerfstudio.data.picture import Picture, pixel_centres, to_unit
from aire_nerfstudio.errors import InputError

# Pixels of which an epoch is gathered at once; of more, batch by batch, lest it take too much memory.
GATHERED_AT_ONCE = 1 << 22


def split_pixels(count: int, test_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """A seeded split, the same on every device.

    Args:
        count: pixels in all.
        test_fraction: share held out, in [0, 1).
        seed: of the split alone.

    Returns:
        Row-major pixel numbers that train and that test, ascending int64, disjoint, together all.

    Raises:
        InputError: the fraction is out of range.
    """
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}; it must lie in [0, 1)")
    n_test = round(test_fraction * count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[n_test:].sort().values, order[:n_test].sort().values


class PixelBatches:
    """Batches of a picture's pixels, drawn on the device that holds it.

    A batch is a function of the step (:class:`~aire_nerfstudio.data.epochs.EpochOrder`): nothing needs to be saved.

    Args:
        picture: moved to ``device`` as it is stored.
        indices: the pixels to draw from, ``[N]``, at least one.
        batch_size: pixels a step, at least 1; the last batch of an epoch may hold fewer.
        seed: of the order.
        device: where everything lives.
        gathers: whether an epoch's batches are wanted one after the other; single ones are then dear.

    Raises:
        InputError: no pixels or a batch size below 1.
    """

    def __init__(
        self, picture: Picture, indices: Tensor, batch_size: int, seed: int, device: torch.device | str,
        gathers: bool = True,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise InputError(f"the batch size is {batch_size} pixels; it must be at least 1")
        if len(indices) == 0:
            raise InputError("no pixels to draw from; lower test_fraction")
        self._gathers = gathers and len(indices) <= GATHERED_AT_ONCE
        self._size = (picture.height, picture.width)
        self._peak = picture.peak
        self._indices = indices.to(device)
        # Gathered once: the pixels that train, side by side.
        values = picture.values.reshape(-1, picture.channels)[indices]
        # CUDA cannot index uint16; its bits can be gathered as int16.
        self._is_deep = values.dtype == torch.uint16
        self._values = (values.view(torch.int16) if self._is_deep else values).to(device)
        self._order = EpochOrder(len(indices), batch_size, seed, self._indices.device)
        # An epoch's number, coordinates and values in its order.
        self._gathered: tuple[int, Tensor, Tensor] | None = None

    @property
    def batch_size(self) -> int:
        """Pixels in a full batch."""
        return self._order.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """``ceil(pixels / batch)``."""
        return self._order.steps_per_epoch

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step (0 or later): coordinates ``[B, 2]`` and values in [0, 1] ``[B, C]``."""
        each, is_whole = self.batch_size, self.steps_per_epoch == 1
        if not (is_whole or self._gathers):
            return self._at(self._order.at(step))
        # A batch that is the whole needs no order, and is the same in all epochs.
        epoch, position = (0, 0) if is_whole else divmod(step, self.steps_per_epoch)
        if self._gathered is None or self._gathered[0] != epoch:
            self._gathered = (epoch, *self._at(slice(None) if is_whole else self._order.whole(epoch)))
        _, coordinates, values = self._gathered
        if is_whole:
            return coordinates, values
        return coordinates[position * each : (position + 1) * each], values[position * each : (position + 1) * each]

    def _at(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        values = self._values[which]
        if self._is_deep:
            values = values.to(torch.int32) & 0xFFFF
        return pixel_centres(self._indices[which], *self._size), to_unit(values, self._peak)
