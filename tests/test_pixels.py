"""The split and the batches: laws of drawing without replacement."""

import numpy as np
import pytest
import torch

from aire_nerfstudio.data import pixels
from aire_nerfstudio.data.epochs import EpochOrder
from aire_nerfstudio.data.picture import Picture, pixel_centres
from aire_nerfstudio.data.pixels import PixelBatches, split_pixels
from aire_nerfstudio.errors import InputError

PICTURE = Picture(torch.from_numpy(np.arange(9 * 11 * 3, dtype=np.uint16).reshape(9, 11, 3)), 65535.0)


@pytest.mark.parametrize(("count", "fraction", "n_test"), [(99, 0.1, 10), (20, 0.1, 2), (5, 0.0, 0), (7, 0.5, 4)])
def test_split_is_a_partition(count, fraction, n_test):
    train, test = split_pixels(count, fraction, seed=3)
    assert len(test) == n_test
    assert torch.cat([train, test]).sort().values.tolist() == list(range(count))


def test_split_depends_on_its_seed_alone():
    first = split_pixels(1000, 0.1, 0)[1]
    torch.rand(5)
    assert torch.equal(first, split_pixels(1000, 0.1, 0)[1])
    assert not torch.equal(first, split_pixels(1000, 0.1, 1)[1])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses(fraction):
    with pytest.raises(InputError, match="test_fraction"):
        split_pixels(10, fraction, 0)


def _batches(batch_size, seed=1, picture=PICTURE):
    train, _ = split_pixels(picture.height * picture.width, 0.1, 0)
    return PixelBatches(picture, train, batch_size, seed, "cpu"), train


@pytest.mark.parametrize("batch_size", [1, 7, 88, 89, 90, 1000])
def test_an_epoch_draws_every_training_pixel_once(batch_size):
    batches, train = _batches(batch_size)
    assert batches.steps_per_epoch == -(-len(train) // batch_size)
    for epoch in range(2):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        drawn = torch.cat([batches.batch(step)[1] for step in steps])
        expected = PICTURE.floats().view(-1, 3)[train]
        assert torch.equal(drawn[drawn[:, 0].argsort()], expected)


@pytest.mark.parametrize(("count", "batch"), [(89, 1), (89, 7), (89, 89), (89, 88), (5, 1000), (1, 3)])
def test_filled_batches_go_through_one_epoch_after_the_other(count, batch):
    order = EpochOrder(count, batch, 3, "cpu", fills=True)
    steps = 3 * count // min(count, batch) + 1
    drawn = [order.at(step) for step in range(steps)]
    assert {len(each) for each in drawn} == {min(count, batch)}
    wanted = torch.cat([order.whole(epoch) for epoch in range(4)])
    drawn = torch.cat(drawn)
    assert torch.equal(drawn, wanted[: len(drawn)])
    assert torch.equal(EpochOrder(count, batch, 3, "cpu", fills=True).at(steps - 1), drawn[-min(count, batch) :])


def test_coordinates_belong_to_the_values():
    batches, train = _batches(17)
    for step in range(9):
        points, values = batches.batch(step)
        pixel = (values[:, 0] * 65535).round().long() // 3
        assert torch.isin(pixel, train).all()
        assert torch.allclose(points, pixel_centres(pixel, 9, 11))


def test_a_batch_is_a_function_of_the_step():
    """A resumed run draws what an uninterrupted one would."""
    there, _ = _batches(10)
    expected = [there.batch(step)[1] for step in range(30)]
    torch.rand(3)
    for step in (29, 4, 17, 9):
        assert torch.equal(_batches(10)[0].batch(step)[1], expected[step])
    assert not torch.equal(expected[0], _batches(10, seed=2)[0].batch(0)[1])
    assert not torch.equal(expected[0], expected[9])


@pytest.mark.parametrize("batch_size", [7, 44, 89, 90])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_batches_are_the_same_gathered_or_not(batch_size, kind, monkeypatch):
    """An epoch at once, single ones, and of a picture that is too large for it."""
    picture = Picture(torch.from_numpy(np.arange(99, dtype=kind).reshape(9, 11, 1)), 99.0)
    train, _ = split_pixels(99, 0.1, 0)
    ways = [PixelBatches(picture, train, batch_size, 3, "cpu", gathers=gathers) for gathers in (True, False)]
    monkeypatch.setattr(pixels, "GATHERED_AT_ONCE", 50)
    ways.append(PixelBatches(picture, train, batch_size, 3, "cpu"))
    for step in (0, 1, 5, 4, 30):
        expected, *others = (way.batch(step) for way in ways)
        for batch in others:
            assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_refusals():
    with pytest.raises(InputError, match="batch size is 0"):
        _batches(0)
    with pytest.raises(InputError, match="no pixels"):
        PixelBatches(PICTURE, torch.zeros(0, dtype=torch.long), 5, 0, "cpu")
