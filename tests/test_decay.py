"""What moves information out of neurons, what judges them, and what makes up for them: laws and oracles."""

from dataclasses import replace

import pytest
import torch
from test_aire_strategy import CONFIG, X, Y, one_step

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.compensation import apply_correction, correction
from aire_nerfstudio.adaptation.decay import cap_contribution, learning_rate, soft_threshold
from aire_nerfstudio.adaptation.importance import contribution, score, strongest, taylor_saliency, weakest
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import SineMLP


@pytest.fixture
def net():
    return SineMLP(2, [8, 9, 7], 3, first_omega=5.0, hidden_omega=3.0)


def _train_to(strategy, last):
    torch.manual_seed(1)
    net = SineMLP(2, [8, 9, 7], 1, first_omega=5.0, hidden_omega=3.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    state = strategy.init_state(net.neuron_groups(), 5, 60)
    for step in range(last):
        one_step(net, optimizer, strategy, state, step)
        yield step, net, state


def test_scheduled_decay_falls_linearly_to_exactly_nothing():
    """Removal after the stage changes nothing: f is the same to rounding."""
    config = replace(CONFIG, decay="scheduled")
    begin, end = config.decay_start, config.prune_at
    first = {}
    strategy = AireStrategy(config)
    for step, net, state in _train_to(strategy, end):
        if step < begin:
            first = {layer: contribution(net.neuron_groups()[layer]).detach().clone() for layer in (0, 1)}
            continue
        for layer, chosen in zip(config.prune_layers, state.targets, strict=True):
            cap = first[layer][chosen] * (1 - (step + 1 - begin) / (end - begin))
            assert (contribution(net.neuron_groups()[layer])[chosen] <= cap * (1 + 1e-5) + 1e-9).all()
    before = net(X).detach()
    strategy.step(net.neuron_groups(), [], state, end)
    assert state.is_pruned
    assert net.widths == [6, 4, 7]
    assert torch.allclose(net(X), before, atol=1e-6)


def test_proximal_decay_uses_the_learning_rate_and_stops_at_zero(net):
    group = net.neuron_groups()[1]
    optimizer = torch.optim.Adam(
        [{"params": [group.outgoing.parameter], "lr": 0.2}, {"params": [group.bias.parameter]}]
    )
    before = group.outgoing.parameter.detach().clone()
    chosen = torch.tensor([0, 3])
    soft_threshold(net.neuron_groups(), {1: chosen}, 0.5, [optimizer])
    after = group.outgoing.parameter
    expected = torch.sign(before) * torch.clamp(before.abs() - 0.1, min=0)
    assert torch.allclose(after[:, chosen], expected[:, chosen])
    assert (expected[:, chosen] == 0).any()
    assert torch.equal(after[:, [1, 2, 4, 5, 6, 7, 8]], before[:, [1, 2, 4, 5, 6, 7, 8]])
    assert learning_rate(group.weight.parameter, [optimizer]) == 0


def test_caps_shrink_only_what_is_above_them(net):
    group = net.neuron_groups()[0]
    chosen = torch.tensor([1, 4, 6])
    before = contribution(group).detach().clone()
    caps = before[chosen] * torch.tensor([0.5, 2.0, 0.0])
    cap_contribution(net.neuron_groups(), {0: chosen}, {0: caps})
    after = contribution(group)
    assert torch.allclose(after[chosen], before[chosen] * torch.tensor([0.5, 1.0, 0.0]))
    others = [0, 2, 3, 5, 7]
    assert torch.equal(after[others], before[others])


def test_scores_against_their_definitions(net):
    group = net.neuron_groups()[1]
    weight, outputs = group.outgoing.parameter.detach(), net.layer_outputs(X)[1]
    for j in range(9):
        column = [float(w) for w in weight[:, j]]
        l1 = sum(abs(w) for w in column)
        mean_output = sum(abs(float(h)) for h in outputs[:, j]) / len(X)
        assert float(score(group, "l1")[j]) == pytest.approx(l1, rel=1e-5)
        assert float(score(group, "l2")[j]) == pytest.approx(sum(w * w for w in column) ** 0.5, rel=1e-5)
        assert float(score(group, "activation", outputs)[j]) == pytest.approx(l1 * mean_output, rel=1e-5)


def test_taylor_saliency_is_the_derivative_of_scaling_a_neuron(net):
    net.double()
    x, y = X.double(), Y.double()
    (net(x) - y).square().mean().backward()
    group = net.neuron_groups()[0]
    saliency = taylor_saliency(group)
    for j in range(group.width):
        losses = []
        for factor in (1 - 1e-5, 1 + 1e-5):
            weight = group.outgoing.parameter.detach().clone()
            weight[:, j] *= factor
            with torch.no_grad():
                got = torch.func.functional_call(net, {"layers.1.weight": weight}, x)
            losses.append(float((got - y).square().mean()))
        assert float(saliency[j]) == pytest.approx(abs(losses[1] - losses[0]) / 2e-5, rel=1e-4, abs=1e-9)


def test_criteria_without_what_they_need_are_refused(net):
    group = net.neuron_groups()[0]
    assert taylor_saliency(group) is None
    with pytest.raises(InputError, match="activation"):
        score(group, "activation")
    with pytest.raises(InputError, match="taylor"):
        score(group, "taylor")


def test_ties_go_by_index():
    scores = torch.tensor([2.0, 1.0, 2.0, 1.0])
    assert weakest(scores, 3).tolist() == [0, 1, 3]
    assert strongest(scores, 3).tolist() == [0, 2, 1]
    assert weakest(scores, 0).tolist() == strongest(scores, 0).tolist() == []


REMOVE = torch.tensor([6, 1, 2])


def _next_input(net, layer):
    """What the layer behind ``layer`` gets, ``[N, n_out]``."""
    group = net.neuron_groups()[layer]
    return net.layer_outputs(X)[layer] @ group.outgoing.parameter.T + group.next_bias


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_mean_compensation_keeps_the_mean_of_the_next_input(net, layer):
    group = net.neuron_groups()[layer]
    before = _next_input(net, layer).mean(0)
    apply_correction(group, *correction(group, REMOVE, net.layer_outputs(X)[layer], "mean"))
    surgery.prune(group, REMOVE)
    assert torch.allclose(_next_input(net, layer).mean(0), before, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_least_squares_is_the_best_refit(net, layer):
    group = net.neuron_groups()[layer]
    before, outputs = _next_input(net, layer).detach(), net.layer_outputs(X)[layer]
    apply_correction(group, *correction(group, REMOVE, outputs, "least_squares"))
    surgery.prune(group, REMOVE)
    left = (_next_input(net, layer) - before).square().sum()
    kept = torch.cat([net.layer_outputs(X)[layer], torch.ones(len(X), 1)], 1).double()
    best = torch.linalg.lstsq(kept, before.double()).solution
    floor = (kept @ best - before).square().sum()
    assert left <= floor * 1.01 + 1e-6


def test_least_squares_loses_nothing_when_a_twin_stays(net):
    with torch.no_grad():
        first = net.layers[0]
        first.weight[5], first.bias[5] = first.weight[2], first.bias[2]
    before, group = net(X).detach(), net.neuron_groups()[0]
    gone = torch.tensor([5])
    apply_correction(group, *correction(group, gone, net.layer_outputs(X)[0], "least_squares"))
    surgery.prune(group, gone)
    assert torch.allclose(net(X), before, atol=2e-4)


@pytest.mark.parametrize("how", ["none", "mean", "least_squares"])
def test_nothing_removed_nothing_added(net, how):
    none = torch.zeros(0, dtype=torch.long)
    columns, bias = correction(net.neuron_groups()[0], none, net.layer_outputs(X)[0], how)
    assert not columns.any()
    assert not bias.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "sheduled"}, "decay is 'sheduled'; choose one of targeted"),
        ({"compensation": "x"}, "choose one of none, mean"),
        ({"unit": "epoch"}, "choose one of steps"),
    ],
)
def test_misspelt_choices_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        AireStrategy(replace(CONFIG, **changes))


def test_taylor_needs_a_step_before_its_first_decision():
    strategy = AireStrategy(replace(CONFIG, criterion="taylor", densify_at=0))
    with pytest.raises(InputError, match="decide later than step 0"):
        strategy.init_state(SineMLP(2, [8, 9, 7], 1).neuron_groups(), 5, 60)
