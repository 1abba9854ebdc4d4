"""The theorems' tools against FFTs, brute force and pruned twins."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import jv

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.analysis.spectrum import amplitude_bound, neuron_spectrum
from aire_nerfstudio.analysis.split import split_outputs
from aire_nerfstudio.analysis.stability import pruning_bound
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import SineMLP


def _periodic(n_in, n_hidden, dims=1, seed=0):
    """A SIREN with the period 2 in each coordinate, so that an FFT sees its lines exactly."""
    torch.manual_seed(seed)
    net = SineMLP(dims, [n_in, n_hidden], 1, first_omega=math.pi, hidden_omega=2.0).double()
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.randint(-4, 5, net.layers[0].weight.shape))
        net.layers[1].weight.uniform_(-0.6, 0.6)
    return net


def test_spectrum_equals_the_fft_of_the_neuron():
    net, n = _periodic(5, 3), 512
    x = torch.arange(n, dtype=torch.float64)[:, None] * (2 / n)
    for neuron in range(3):
        spectrum = neuron_spectrum(net, neuron, tolerance=1e-9)
        measured = torch.fft.fft(net.layer_outputs(x)[1][:, neuron]) / n
        expected = torch.zeros(n, dtype=torch.complex128)
        # a sin(f x + p) = a (e^{i(fx + p)} - e^{-i(fx + p)}) / 2i
        lines = (spectrum.frequencies[:, 0] / math.pi).round().long()
        half = spectrum.amplitudes * torch.exp(1j * spectrum.phases) / 2j
        expected.index_add_(0, lines % n, half)
        expected.index_add_(0, -lines % n, half.conj())
        assert torch.allclose(expected, measured, atol=1e-6)
        assert spectrum.captured == pytest.approx(1, abs=1e-6)


def test_spectrum_evaluates_to_the_neuron_in_two_dimensions():
    torch.manual_seed(2)
    net = SineMLP(2, [6, 4], 3)
    x = torch.rand(200, 2) * 2 - 1
    spectrum = neuron_spectrum(net, 1, tolerance=1e-7)
    assert (spectrum.evaluate(x) - net.double().layer_outputs(x.double())[1][:, 1]).abs().max() < 1e-4


def test_dropping_terms_is_told():
    net = _periodic(5, 3)
    full, rough = (neuron_spectrum(net, 0, tolerance=t) for t in (1e-8, 0.05))
    few = neuron_spectrum(net, 0, tolerance=1e-8, max_terms=7)
    assert len(rough.amplitudes) < len(full.amplitudes)
    assert rough.captured < full.captured
    assert len(few.amplitudes) <= 7
    assert torch.equal(full.amplitudes.abs().sort(descending=True).values, full.amplitudes.abs())


def test_amplitudes_stay_below_theorem_1():
    weights = torch.tensor([0.7, -1.3, 0.2], dtype=torch.float64)
    orders = torch.tensor(list(itertools.product(range(-3, 4), repeat=3)))
    amplitude = torch.tensor([math.prod(jv(int(k), float(w)) for k, w in zip(o, weights, strict=True)) for o in orders])
    bound = amplitude_bound(weights, orders)
    assert (amplitude.abs() <= bound * (1 + 1e-12)).all()
    assert bound[orders.abs().sum(1) == 0].item() == pytest.approx(1)


def _pruned(net, remove):
    twin = copy.deepcopy(net)
    for layer, indices in remove.items():
        surgery.prune(twin.neuron_groups()[layer], indices)
    return twin


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.01, 0.3, 1.0]),
    data=st.data(),
)
def test_a_pruning_never_exceeds_its_bound(sizes, seed, scale, data):
    torch.manual_seed(seed)
    net = SineMLP(2, sizes, 3).double()
    with torch.no_grad():
        for layer in net.layers[1:]:
            layer.weight *= scale
    layers = data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1))
    remove = {
        i: sorted(data.draw(st.sets(st.integers(0, sizes[i] - 1), max_size=sizes[i] - 1), label=f"layer {i}"))
        for i in layers
    }
    x = torch.rand(300, 2, dtype=torch.float64) * 4 - 2
    change = (net(x) - _pruned(net, remove)(x)).abs().max()
    assert float(change) <= pruning_bound(net, remove) * (1 + 1e-12)


def test_the_bound_of_the_last_layer_is_reached():
    """One neuron of the last layer, at an input where it is 1: the change is its whole column."""
    torch.manual_seed(0)
    net = SineMLP(1, [3], 2, first_omega=30.0).double()
    x = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[:, None]
    change = (net(x) - _pruned(net, {0: [1]})(x)).abs().max()
    assert float(change) == pytest.approx(pruning_bound(net, {0: [1]}), rel=1e-6)


def test_nothing_removed_nothing_changes():
    assert pruning_bound(SineMLP(2, [4, 4], 1), {0: [], 1: []}) == 0


def test_what_the_theorems_do_not_cover_is_refused():
    finer = SineMLP(2, [4, 4], 1, activation="finer")
    with pytest.raises(InputError, match="siren"):
        pruning_bound(finer, {0: [1]})
    with pytest.raises(InputError, match="siren"):
        neuron_spectrum(finer, 0)
    with pytest.raises(InputError, match="network has one"):
        neuron_spectrum(SineMLP(2, [4], 1), 0)
    with pytest.raises(InputError, match="neuron is 4"):
        neuron_spectrum(SineMLP(2, [4, 4], 1), 4)
    with pytest.raises(InputError, match="tolerance"):
        neuron_spectrum(SineMLP(2, [4, 4], 1), 0, tolerance=0)


def test_the_split_equals_two_pruned_networks():
    torch.manual_seed(0)
    net, x = SineMLP(2, [7, 5], 3), torch.rand(20, 2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    order = net.neuron_groups()[0].outgoing.parameter.abs().sum(0).argsort()
    important, unimportant = split_outputs(net, x, layer=0, count=3)
    assert torch.allclose(important, _pruned(net, {0: order[:3]})(x), atol=1e-6)
    assert torch.allclose(unimportant, _pruned(net, {0: order[3:]})(x), atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_names_no_neuron_is_refused():
    net = SineMLP(2, [7, 5], 1)
    mask = torch.zeros(7, dtype=torch.bool)
    mask[2] = True
    for remove in ({0: mask}, {0: torch.tensor([1.5])}, {0: [-1]}, {0: [7]}, {1: [5]}):
        with pytest.raises(InputError, match="must be indices in"):
            pruning_bound(net, remove)
    for layer in (-1, 2):
        with pytest.raises(InputError, match=f"no sine layer {layer}"):
            pruning_bound(net, {layer: [0]})
        with pytest.raises(InputError, match=f"no sine layer {layer}"):
            split_outputs(net, torch.rand(3, 2), layer, 1)
    with pytest.raises(InputError, match="8 of 7"):
        split_outputs(net, torch.rand(3, 2), 0, 8)
    assert pruning_bound(net, {0: torch.tensor([2])}) == pruning_bound(net, {0: [2]}) > 0
