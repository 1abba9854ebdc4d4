"""A checkpoint's random state makes the next draws of every generator equal."""

import io
import random

import numpy as np
import torch

from aire_nerfstudio.models.rng import rng_state, set_rng_state


def _draw():
    return random.random(), random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.randn(5).tolist()  # noqa: NPY002


def test_draws_repeat_after_a_round_trip_through_a_safe_checkpoint():
    _draw()  # leaves a cached Gaussian in Python's generator, and numpy's between two words
    file = io.BytesIO()
    torch.save(rng_state(), file)
    first, second = _draw(), _draw()
    assert first != second
    file.seek(0)
    set_rng_state(torch.load(file, weights_only=True))
    assert (_draw(), _draw()) == (first, second)


def test_reading_the_state_draws_nothing():
    before = rng_state()
    expected = _draw()
    set_rng_state(before)
    rng_state()
    assert _draw() == expected
