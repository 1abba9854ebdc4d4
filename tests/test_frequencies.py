"""Frequencies from the residual: a known mixture of waves is found again."""

import math

import pytest
import torch

from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.base import Probe
from aire_nerfstudio.adaptation.frequencies import SEPARATION, residual_frequencies
from aire_nerfstudio.adaptation.schedule import ScheduleError
from aire_nerfstudio.fields.sine_mlp import SineMLP


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_strongest_wave_is_found_with_its_phase(dims):
    points = torch.rand(4000, dims) * 2 - 1
    truth = torch.full((dims,), 7.0)
    truth[0] = -11.0
    residual = torch.stack([0.2 * torch.sin(points @ truth + 0.8), torch.full((4000,), 3.0)], -1)
    frequencies, phases = residual_frequencies(points, residual, torch.full((dims,), 15.0), 200)
    sign = torch.sign(frequencies[0, 0] * truth[0])
    assert (sign * frequencies[0] - truth).norm() < 2.5
    wave = torch.sin(points @ frequencies[0] + phases[0])
    assert torch.corrcoef(torch.stack([wave, residual[:, 0]]))[0, 1] > 0.5


def test_neighbours_are_passed_over_and_the_box_is_kept():
    points, limit = torch.rand(500, 2) * 2 - 1, torch.tensor([20.0, 5.0])
    frequencies, _ = residual_frequencies(points, torch.randn(500, 3), limit, 12)
    assert (frequencies.abs() <= limit).all()
    folded = frequencies * torch.where(frequencies[:, :1] < 0, -1.0, 1.0)
    distances = torch.cdist(folded, folded) + 1e3 * torch.eye(12)
    assert distances.min() >= SEPARATION - 1e-4


def test_a_box_too_small_for_the_separation_still_fills_up():
    frequencies, phases = residual_frequencies(torch.rand(50, 1), torch.randn(50, 1), torch.tensor([0.5]), 9)
    assert frequencies.shape == (9, 1)
    assert phases.shape == (9,)


def test_densification_adds_the_residuals_frequency_and_leaves_the_function():
    torch.manual_seed(0)
    net = SineMLP(2, [20, 8], 1)
    points = torch.rand(3000, 2) * 2 - 1
    wave = torch.sin(points @ torch.tensor([20.0, 9.0]))[:, None]
    config = AireConfig(unit="steps", densify_at=0, densify_count=6, densify_from="residual")
    strategy = AireStrategy(config, first_omega=30.0)
    state = strategy.init_state(net.neuron_groups(), 1, 10)
    before = net(points).detach()
    strategy.step(net.neuron_groups(), [], state, 0, (), Probe(lambda: [], lambda: (points, wave)))
    assert net.widths == [26, 8]
    assert (net(points) - before).abs().max() < 0.05
    with torch.no_grad():
        added = net.layers[0](points)[:, 20:].mul(30).sin()
    best = max(abs(float(torch.corrcoef(torch.stack([a, wave[:, 0]]))[0, 1])) for a in added.T)
    assert best > 0.5
    assert (net.layers[0].weight[20:].abs() * 30 <= 2 * 30 * net.layers[0].weight[:20].abs().amax(0) + 1e-4).all()
    assert math.isfinite(best)


def test_a_task_without_a_residual_is_refused():
    net = SineMLP(2, [20, 8], 1)
    strategy = AireStrategy(AireConfig(unit="steps", densify_at=0, densify_count=6, densify_from="residual"))
    state = strategy.init_state(net.neuron_groups(), 1, 10)
    with pytest.raises(ScheduleError, match="use 'harmonics'"):
        strategy.step(net.neuron_groups(), [], state, 0, (), Probe(lambda: []))
    assert net.widths == [20, 8]
