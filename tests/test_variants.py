"""The baselines behind the one contract: sizes, sparsity, lattice, resume."""

import io
import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_aire_strategy import one_step

from aire_nerfstudio.adaptation import rigl, surgery
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.depgraph import group_norms
from aire_nerfstudio.adaptation.schedule import ScheduleError
from aire_nerfstudio.adaptation.variants import early, final_widths, in_rounds, make_strategy, starting_widths
from aire_nerfstudio.adaptation.zell import ZellStrategy, lattice, lattice_size
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import SineMLP

CONFIG = AireConfig(
    unit="steps", densify_at=3, densify_count=4, decay_start=8, prune_at=20, prune_layers=(0, 1), prune_counts=(9, 2)
)
LARGE, SMALL, STEPS, LIMIT = (12, 8, 6), (7, 6, 6), 30, 2


def _start(variant):
    torch.manual_seed(1)
    net = SineMLP(2, starting_widths(variant, CONFIG, LARGE, 2, LIMIT), 1, first_omega=5.0, hidden_omega=3.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    strategy = make_strategy(variant, CONFIG, LARGE, 2, 1, LIMIT, 5.0)
    return net, optimizer, strategy


def _train(variant, stop_at=STEPS):
    net, optimizer, strategy = _start(variant)
    state = strategy.init_state(net.neuron_groups(), 1, STEPS)
    for step in range(stop_at):
        one_step(net, optimizer, strategy, state, step)
    return net, optimizer, strategy, state


@pytest.mark.parametrize("variant", ["aire", "aire_early", "small", "weight_decay", "no_decay", "depgraph", "zell"])
def test_all_variants_end_at_one_size(variant):
    assert final_widths(CONFIG, LARGE) == SMALL
    net, optimizer, _, _ = _train(variant)
    assert tuple(net.widths) == SMALL
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in net.parameters())


@pytest.mark.parametrize("added", [{"densify_count": 4}, {"densify_fraction": 0.25}])
def test_early_ends_at_one_size_where_neurons_are_added_last(added):
    config = replace(CONFIG, densify_at=24, densify_count=0, prune_counts=None, prune_fraction=0.5)
    config = replace(config, **added)
    small = final_widths(config, LARGE)
    moved = early(config, LARGE)
    assert moved.densify_at < moved.decay_start
    assert final_widths(moved, LARGE) == small


def test_early_takes_times_that_aire_could_not():
    config = replace(CONFIG, densify_at=12)  # within the decay
    with pytest.raises(ScheduleError):
        final_widths(config, LARGE)
    assert early(config, LARGE).prune_counts == CONFIG.prune_counts
    make_strategy("aire_early", config, LARGE, 2, 1, LIMIT, 5.0)


def test_rounds_end_at_the_size_of_small_or_a_neuron_less():
    config = in_rounds(CONFIG, LARGE, 2, 1)
    assert (config.unit, config.densify_fraction, config.rounds) == ("percent", 1.0, 8)
    assert config.target_parameters == count_parameters(2, SMALL, 1)
    net, optimizer, strategy = _start("aire_rounds")
    state = strategy.init_state(net.neuron_groups(), 1, 100)
    widths = []
    for step in range(100):
        one_step(net, optimizer, strategy, state, step, widths)
    assert widths[5] == (24, 8, 6)
    assert config.target_parameters - 20 <= net.num_parameters <= config.target_parameters
    assert widths[30] == tuple(net.widths)
    # A target of one's own is kept, and what is never done stays so.
    assert in_rounds(replace(CONFIG, target_bytes=300), LARGE, 2, 1).most_parameters == 75
    only_prune = in_rounds(replace(CONFIG, densify_at=None, densify_count=0), LARGE, 2, 1)
    assert (only_prune.densify_at, only_prune.densify_fraction) == (None, 0.0)
    nothing = in_rounds(AireConfig(), LARGE, 2, 1)
    assert (nothing.decay_start, nothing.rounds, nothing.target_parameters) == (None, 1, None)
    by_psnr = in_rounds(replace(CONFIG, target_psnr=30.0), LARGE, 2, 1)
    assert (by_psnr.prune_at, by_psnr.rounds, by_psnr.target_parameters) == (90.0, 1, None)


def test_large_stays():
    assert tuple(_train("large")[0].widths) == LARGE


@pytest.mark.parametrize("stop_at", [1, 10, 20, 25])
@pytest.mark.parametrize("variant", ["large", "depgraph", "rigl", "zell"])
def test_resume_equals_the_uninterrupted_run(variant, stop_at):
    whole = _train(variant)[0]
    net, optimizer, strategy, state = _train(variant, stop_at)
    file, rng = io.BytesIO(), torch.get_rng_state()
    torch.save({"net": net.state_dict(), "adam": optimizer.state_dict(), "state": state.to_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    net, optimizer, strategy = _start(variant)
    for name, parameter in net.named_parameters():
        surgery.resize_to(parameter, saved["net"][name].shape)
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["adam"])
    state = strategy.restore(saved["state"])
    torch.set_rng_state(rng)
    for step in range(stop_at, STEPS):
        one_step(net, optimizer, strategy, state, step)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), whole.parameters(), strict=True))


def test_rigl_keeps_the_small_networks_parameters_and_the_dead_at_zero():
    small = SineMLP(2, SMALL, 1).num_parameters
    net, optimizer, strategy = _start("rigl")
    strategy = rigl.RigLStrategy(small, every=5)
    state = strategy.init_state(net.neuron_groups(), 1, STEPS)
    first = [mask.clone() for mask in state.masks]
    for step in range(STEPS):
        one_step(net, optimizer, strategy, state, step)
        assert abs(strategy.parameters_kept(net.neuron_groups(), state) - small) <= 2  # one rounding a layer
        for layer, mask in zip(net.layers, state.masks, strict=True):
            assert (layer.weight[~mask] == 0).all()
            assert (optimizer.state[layer.weight]["exp_avg"][~mask] == 0).all()
    assert [int(m.sum()) for m in state.masks] == [int(m.sum()) for m in first]
    assert any(not torch.equal(a, b) for a, b in zip(state.masks, first, strict=True))
    assert tuple(net.widths) == LARGE


def test_grown_connections_start_at_zero():
    net, optimizer, _ = _start("rigl")
    strategy = rigl.RigLStrategy(SineMLP(2, SMALL, 1).num_parameters, every=5)
    state = strategy.init_state(net.neuron_groups(), 1, STEPS)
    for step in range(6):
        old = [mask.clone() for mask in state.masks]
        one_step(net, optimizer, strategy, state, step)
    grown = [new & ~was for new, was in zip(state.masks, old, strict=True)]
    assert any(mask.any() for mask in grown)
    for layer, mask in zip(net.layers, grown, strict=True):
        assert (layer.weight[mask] == 0).all()


def test_exchange_drops_the_smallest_and_grows_the_steepest():
    weight = torch.tensor([[0.5, -0.1, 0.0], [0.0, 0.3, 0.0]], requires_grad=True)
    weight.grad = torch.tensor([[9.0, 9.0, -1.0], [2.0, 9.0, 0.5]])
    mask = torch.tensor([[True, True, False], [False, True, False]])
    assert rigl.exchange(weight, mask, 0.4).tolist() == [[True, False, False], [True, True, False]]
    assert torch.equal(rigl.exchange(weight, mask, 0.0), mask)
    full = torch.ones_like(mask)
    assert torch.equal(rigl.exchange(weight, full, 0.5), full)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6), share=st.floats(0.05, 1.0), out=st.sampled_from([1, 3])
)
def test_erdos_renyi_densities_add_up(sizes, share, out):
    shapes = [(b, a) for a, b in zip([2, *sizes], [*sizes, out], strict=True)]
    total = sum(a * b for a, b in shapes)
    densities = rigl.erdos_renyi(shapes, round(share * total))
    assert all(0 <= d <= 1 for d in densities)
    living = sum(d * a * b for d, (a, b) in zip(densities, shapes, strict=True))
    assert living == pytest.approx(round(share * total), rel=1e-9, abs=1e-9)
    free = [d * a * b / (a + b) for d, (a, b) in zip(densities, shapes, strict=True) if d < 1]
    assert max(free, default=0) == pytest.approx(min(free, default=0))


def test_depgraph_scores_are_the_norms_of_what_a_neuron_owns():
    net = SineMLP(2, [7, 5, 4], 3)
    groups = net.neuron_groups()
    for group, score in zip(groups, group_norms(groups), strict=True):
        own = group.weight.parameter.square().sum(1) + group.outgoing.parameter.square().sum(0)
        assert torch.allclose(score / score.mean(), own / own.mean(), atol=1e-5)


def test_the_lattice():
    assert lattice_size(19, 2) == len(lattice(19, 2)) == 780
    for limit, dims in ((3, 1), (2, 2), (2, 3)):
        points = lattice(limit, dims)
        assert len(points) == lattice_size(limit, dims)
        assert len(torch.unique(points, dim=0)) == len(points)


def test_zell_trains_no_frequency_and_keeps_the_contributing_ones():
    net, _, _, _ = _train("zell", 19)
    expected = lattice(LIMIT, 2) * math.pi / 5.0
    assert torch.allclose(net.layers[0].weight, expected, atol=1e-6)
    net, optimizer, strategy, state = _train("zell", 20)
    contribution = net.layers[1].weight.detach().abs().sum(0)
    kept = contribution.argsort(descending=True)[: SMALL[0]].sort().values
    one_step(net, optimizer, strategy, state, 20)
    assert torch.allclose(net.layers[0].weight, expected[kept], atol=1e-6)


@pytest.mark.parametrize("variant", ["depgraph", "zell"])
def test_baselines_without_a_removal_are_refused(variant):
    with pytest.raises(ScheduleError, match=f"variant {variant} removes"):
        make_strategy(variant, AireConfig(densify_at=1, densify_count=2), LARGE, 2, 1, LIMIT, 5.0)


def test_depgraph_without_its_package_is_refused_at_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(InputError, match="pip install torch-pruning"):
        _start("depgraph")


def test_values_that_cannot_be_are_refused():
    groups = SineMLP(2, [4], 1).neuron_groups()
    for count in (3, 1000):
        with pytest.raises(InputError, match=f"keep {count} parameters"):
            rigl.RigLStrategy(count).init_state(groups, 1, 10)
    with pytest.raises(InputError, match="exchanges every"):
        rigl.RigLStrategy(9, every=0)
    with pytest.raises(InputError, match="lattice_limit is 0"):
        ZellStrategy(CONFIG, 0, 5.0)
    with pytest.raises(InputError, match="a lattice up to 2 needs 15"):
        ZellStrategy(AireConfig(), 2, 5.0).init_state(groups, 1, 30)


def test_rigl_exchanges_less_and_less(monkeypatch):
    """A cosine from the share at the beginning to 0 at three quarters of the run; Evci et al. 2020, equation 1."""
    shares = []
    monkeypatch.setattr(rigl, "exchange", lambda weight, mask, share: (shares.append(share), mask)[1])
    net, optimizer, _ = _start("large")
    strategy = rigl.RigLStrategy(60, every=10, share=0.4)
    groups = net.neuron_groups()
    state = strategy.init_state(groups, 1, 200)
    for step in range(200):
        strategy.constrain(groups, [optimizer], state, step)
    expected = [0.2 * (1 + math.cos(math.pi * step / 150)) for step in range(10, 150, 10) for _ in range(4)]
    assert shares == pytest.approx(expected)
