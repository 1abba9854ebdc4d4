"""The budget: it is kept, barely; what goes is the weakest; layers are chosen by what they are worth."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_aire_strategy import CONFIG, train

from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.budget import choose_for_budget, count_parameters
from aire_nerfstudio.adaptation.schedule import ScheduleError
from aire_nerfstudio.adaptation.variants import make_strategy, starting_widths
from aire_nerfstudio.fields.sine_mlp import SineMLP


@settings(max_examples=80, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), share=st.floats(0.0, 1.2), seed=st.integers(0, 99))
def test_the_budget_is_kept_and_not_by_more_than_a_neuron(sizes, share, seed):
    torch.manual_seed(seed)
    scores = [torch.rand(n) for n in sizes]
    whole, least = count_parameters(2, sizes, 3), count_parameters(2, [1] * len(sizes), 3)
    target = max(least, round(share * whole))
    widths, chosen = choose_for_budget(scores, 2, 3, target)
    assert count_parameters(2, widths, 3) <= target
    assert whole == SineMLP(2, sizes, 3).num_parameters
    assert [n - len(c) for n, c in zip(sizes, chosen, strict=True)] == list(widths)
    if target >= whole:
        assert widths == tuple(sizes)
    else:
        back = [
            count_parameters(2, [w + (i == layer) for i, w in enumerate(widths)], 3)
            for layer, c in enumerate(chosen)
            if len(c)
        ]
        assert max(back) > target
    for score, gone in zip(scores, chosen, strict=True):
        stays = torch.ones(len(score), dtype=torch.bool)
        stays[gone] = False
        assert not len(gone) or score[gone].max() <= score[stays].min()


def test_the_layer_with_idle_neurons_pays():
    busy, idle = torch.ones(10), torch.cat([torch.ones(4), torch.full((6,), 1e-3)])
    widths, _ = choose_for_budget([busy, idle], 2, 1, count_parameters(2, [10, 4], 1))
    assert widths == (10, 4)


def test_scales_of_layers_do_not_matter():
    torch.manual_seed(0)
    scores = [torch.rand(20), torch.rand(20)]
    scaled = [scores[0] * 1000, scores[1]]
    assert choose_for_budget(scores, 2, 1, 200)[0] == choose_for_budget(scaled, 2, 1, 200)[0]


@pytest.mark.parametrize("decay", ["targeted", "scheduled"])
def test_a_run_ends_within_its_budget(decay):
    config = replace(CONFIG, decay=decay, target_parameters=90)
    net, _, state, reports, _ = train(config)
    assert net.num_parameters <= 90
    assert state.is_pruned
    assert sum(reports[1].counts) == sum(reports[2].counts) > 0
    assert reports[2].after == tuple(net.widths)


def test_what_cannot_be_is_refused():
    with pytest.raises(ScheduleError, match="one neuron in each of the 2 layers already takes 9"):
        choose_for_budget([torch.rand(3)] * 2, 2, 2, 8)
    with pytest.raises(ScheduleError, match="target_parameters is 0"):
        AireStrategy(replace(CONFIG, target_parameters=0))
    with pytest.raises(ScheduleError, match="target_parameters is 50"):
        AireStrategy(AireConfig(target_parameters=50))
    hopeless = AireStrategy(replace(CONFIG, target_parameters=5))
    with pytest.raises(ScheduleError, match="already takes"):  # before the run, not in its middle
        hopeless.init_state(SineMLP(2, [8, 9, 7], 1).neuron_groups(), 5, 60)
    limited = replace(CONFIG, target_parameters=50)
    with pytest.raises(ScheduleError, match="none can be foretold"):
        starting_widths("small", limited, (8, 8), 2, 2)
    with pytest.raises(ScheduleError, match="none can be foretold"):
        make_strategy("depgraph", limited, (8, 8), 2, 1, 2, 30.0)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4), share=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_each_neuron_is_the_cheapest_for_what_it_frees(sizes, share, seed):
    """Against a search that counts the network with and without each neuron."""
    torch.manual_seed(seed)
    scores = [torch.rand(n, dtype=torch.float64) for n in sizes]
    least = count_parameters(4, [1] * len(sizes), 2)
    target = round(least + share * (count_parameters(4, sizes, 2) - least))
    left = [sorted(((score / layer.sum()).item(), i) for i, score in enumerate(layer)) for layer in scores]
    gone = [[] for _ in sizes]
    while count_parameters(4, [len(layer) for layer in left], 2) > target:
        now = [len(layer) for layer in left]
        prices = {}
        for layer, width in enumerate(now):
            if width > 1:
                without = [w - (i == layer) for i, w in enumerate(now)]
                freed = count_parameters(4, now, 2) - count_parameters(4, without, 2)
                prices[layer] = left[layer][0][0] / freed
        cheapest = min(prices, key=prices.get)
        gone[cheapest].append(left[cheapest].pop(0)[1])
    widths, chosen = choose_for_budget(scores, 4, 2, target)
    assert widths == tuple(len(layer) for layer in left)
    assert [sorted(layer) for layer in gone] == [layer.tolist() for layer in chosen]
