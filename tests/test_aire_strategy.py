"""The schedule's laws and the strategy's switches, on small networks and one real fit."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import differences

from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.aire_config import AireConfig, check
from aire_nerfstudio.adaptation.aire_state import AireState
from aire_nerfstudio.adaptation.base import Probe, widths
from aire_nerfstudio.adaptation.importance import contribution
from aire_nerfstudio.adaptation.rigl import RigLState
from aire_nerfstudio.adaptation.rounds import TargetSizeStrategy
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError, to_steps
from aire_nerfstudio.adaptation.target_psnr import TargetPsnrStrategy
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.fields.sine_mlp import SineMLP

STEPS = 60
CONFIG = AireConfig(
    unit="steps", densify_at=10, densify_count=4, decay_start=25, prune_at=45, prune_layers=(0, 1), prune_counts=(6, 5)
)


X = torch.rand(64, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1
Y = torch.sin(4 * X[:, :1]) * X[:, 1:]


def one_step(net, optimizer, strategy, state, step, history=None):
    """One training step as every loop of this project does it; what is foretold as due is held to what is done."""
    groups = net.neuron_groups()
    probe = Probe(lambda: net.layer_outputs(X), lambda: (X, Y - net(X).detach()))
    is_due, before = strategy.is_due(state, step), copy.deepcopy(state.to_dict())
    reports = strategy.step(groups, [optimizer], state, step, (), probe)
    if is_due:
        assert isinstance(state, RigLState) or not strategy.is_due(state, step)
    else:
        assert reports == []
        assert differences(before, state.to_dict()) == []
    if history is not None:
        history.append(widths(groups))
    optimizer.zero_grad()
    error = (net(X) - Y).square().mean()
    (error + strategy.penalty(groups, state, step)).backward()
    optimizer.step()
    strategy.constrain(groups, [optimizer], state, step, error.detach() / 4)
    return reports


def train(config, steps=STEPS, sizes=(8, 9, 7), stop_at=None, resume=None, learning_rate=1e-3):
    """Fit a small function; returns (net, optimizer, state, reports, widths a step)."""
    torch.manual_seed(1)
    net = SineMLP(2, list(sizes), 1, first_omega=5.0, hidden_omega=3.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    strategy = AireStrategy(config)
    state = strategy.init_state(net.neuron_groups(), steps_per_epoch=5, total_steps=steps)
    reports, history = [], []
    for step in range(stop_at if stop_at is not None else steps):
        reports += one_step(net, optimizer, strategy, state, step, history)
    return net, optimizer, state, reports, history


def test_the_whole_schedule():
    net, optimizer, state, reports, history = train(CONFIG)
    assert [(r.step, r.event, r.counts) for r in reports] == [
        (10, "densify", (4, 0, 0)),
        (25, "decay", (6, 5, 0)),
        (45, "prune", (6, 5, 0)),
    ]
    assert history[9] == (8, 9, 7)
    assert history[10] == history[44] == (12, 9, 7)
    assert history[45] == history[-1] == (6, 4, 7)
    assert state.is_pruned
    for p in net.parameters():
        assert optimizer.state[p]["exp_avg"].shape == p.shape
        assert float(optimizer.state[p]["step"]) == STEPS


def test_densified_neurons_are_second_harmonics_of_the_strongest():
    torch.manual_seed(0)
    net = SineMLP(2, [5, 4], 1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.rand(50, 2) * 2 - 1
    f = net(x).detach()
    config = AireConfig(unit="steps", densify_at=0, densify_count=2)
    strategy = AireStrategy(config)
    state = strategy.init_state(net.neuron_groups(), 1, 10)
    order = contribution(net.neuron_groups()[0]).argsort(descending=True)[:2]
    strategy.step(net.neuron_groups(), [], state, 0)
    first, second = net.layers[0], net.layers[1]
    assert torch.equal(first.weight[:5], before["layers.0.weight"])
    assert torch.equal(first.weight[5:], 2 * before["layers.0.weight"][order])
    assert torch.equal(first.bias[5:], 2 * before["layers.0.bias"][order])
    assert 0 < second.weight[:, 5:].abs().max() <= 1e-4
    # |f - f'| is at most the new columns' norm, through the 1-Lipschitz sine and the last layer (w0 folded in).
    column_norm = second.weight[:, 5:].abs().sum(1).max()
    bound = 30 * column_norm * net.layers[2].weight.abs().sum(1).max()
    assert (net(x) - f).abs().max() <= bound


def test_decay_moves_the_chosen_columns_towards_zero():
    results = {}
    for decay in ("targeted", "none"):
        config = replace(CONFIG, decay=decay)
        net, _, state, _, _ = train(config, steps=400, stop_at=45, learning_rate=1e-2)
        targets = state.targets[0]
        results[decay] = contribution(net.neuron_groups()[0])[targets].max().item()
    assert results["targeted"] < 0.3 * results["none"]


def test_penalty_is_the_weighted_sum_and_reaches_only_the_chosen():
    net, _, state, _, _ = train(CONFIG, stop_at=30)
    strategy = AireStrategy(CONFIG)
    groups = net.neuron_groups()
    penalty = strategy.penalty(groups, state, 35)
    alpha = (35 - 25) / (45 - 25)
    expected = alpha * sum(net.layers[layer + 1].weight[:, state.targets[layer]].abs().sum().item() for layer in (0, 1))
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    net.zero_grad()
    penalty.backward()
    touched = net.layers[1].weight.grad.abs().sum(0) > 0
    assert sorted(touched.nonzero().flatten().tolist()) == state.targets[0].tolist()
    assert net.layers[0].weight.grad is None


def test_plain_weight_decay_covers_every_weight_once():
    config = replace(CONFIG, decay="weight_decay", plain_weight_decay=0.5)
    net, _, state, _, _ = train(config, stop_at=30)
    penalty = AireStrategy(config).penalty(net.neuron_groups(), state, 30)
    expected = 0.5 * sum(layer.weight.square().sum().item() for layer in net.layers)
    assert penalty.item() == pytest.approx(expected, rel=1e-5)


def test_threshold_prunes_only_what_is_weak_enough():
    for epsilon, removed in ((0.0, 0), (1e9, 11)):
        config = replace(CONFIG, prune_rule="threshold", epsilon=epsilon)
        *_, reports, _ = train(config)
        assert sum(reports[-1].counts) == removed


def test_threshold_uses_the_contribution_at_pruning_time():
    config = replace(CONFIG, prune_rule="threshold", epsilon=0.05)
    net, optimizer, state, _, _ = train(config, stop_at=45)
    groups = net.neuron_groups()
    weak = [int((contribution(groups[i])[state.targets[i]] <= 0.05).sum()) for i in (0, 1)]
    (report,) = AireStrategy(config).step(groups, [optimizer], state, 45)
    assert list(report.counts[:2]) == weak


def test_prune_before_densify():
    config = replace(CONFIG, densify_at=50, prune_counts=(2, 5))
    *_, reports, history = train(config)
    assert [r.event for r in reports] == ["decay", "prune", "densify"]
    assert history[-1] == (10, 4, 7)


def test_everything_at_one_step_densifies_first():
    config = replace(CONFIG, densify_at=5, decay_start=5, prune_at=5)
    *_, reports, history = train(config)
    assert [r.event for r in reports] == ["densify", "decay", "prune"]
    assert history[5] == (6, 4, 7)


def test_no_densification_and_any_layer():
    config = AireConfig(unit="steps", decay_start=5, prune_at=10, prune_layers=(2,), prune_fraction=0.5)
    *_, history = train(config)
    assert history[-1] == (8, 9, 3)  # round(3.5) is 4: banker's rounding, 3 stay


def test_averages_change_alike():
    torch.manual_seed(0)
    net, average = SineMLP(2, [8, 9, 7], 1), SineMLP(2, [8, 9, 7], 1)
    strategy = AireStrategy(CONFIG)
    state = strategy.init_state(net.neuron_groups(), 1, STEPS)
    old = average.layers[0].weight.detach().clone()
    for step in (10, 25):
        strategy.step(net.neuron_groups(), [], state, step, [average.neuron_groups()])
    targets = state.targets[0].tolist()
    grown = average.layers[0].weight.detach().clone()
    assert torch.equal(grown[:8], old)
    strategy.step(net.neuron_groups(), [], state, 45, [average.neuron_groups()])
    assert average.widths == net.widths == [6, 4, 7]
    assert torch.equal(average.layers[0].weight, grown[[j for j in range(12) if j not in targets]])


VARIATIONS = [
    {},
    {"decay": "scheduled", "densify_from": "residual"},
    {"decay": "proximal", "criterion": "activation"},
    {"decay": "none", "criterion": "taylor", "compensation": "least_squares"},
    {"decay": "weight_decay", "criterion": "l2", "compensation": "mean"},
]


@pytest.mark.parametrize("changes", VARIATIONS)
@pytest.mark.parametrize("stop_at", [5, 10, 17, 25, 26, 40, 45, 50])
def test_resume_from_any_stage_equals_the_uninterrupted_run(stop_at, changes):
    config = replace(CONFIG, **changes)
    whole, _, _, _, _ = train(config)
    net, optimizer, state, _, _ = train(config, stop_at=stop_at)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "adam": optimizer.state_dict(), "state": state.to_dict()}, file)
    rng = torch.get_rng_state()
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    sizes = [saved["net"][f"layers.{i}.weight"].shape[0] for i in range(3)]
    net = SineMLP(2, sizes, 1, first_omega=5.0, hidden_omega=3.0)
    net.load_state_dict(saved["net"])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    optimizer.load_state_dict(saved["adam"])
    strategy = AireStrategy(config)
    state = strategy.init_state(SineMLP(2, [8, 9, 7], 1).neuron_groups(), 5, STEPS)
    state.load_dict(saved["state"])
    torch.set_rng_state(rng)
    for step in range(stop_at, STEPS):
        one_step(net, optimizer, strategy, state, step)
    for ours, theirs in zip(net.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.data())
def test_decay_weight_rises_linearly_from_zero(total, data):
    start = data.draw(st.integers(0, total - 1))
    prune_at = data.draw(st.integers(start, total - 1))
    schedule = Schedule(total, decay_start=start, prune_at=prune_at)
    strategy, state = AireStrategy(replace(CONFIG, decay_weight=0.5)), AireState(schedule)
    assert not any(strategy.penalty_weight(state, step) for step in range(total))
    state.is_decaying = True
    inside = [strategy.penalty_weight(state, step) for step in range(start, prune_at)]
    assert inside == [0.5 * (k / (prune_at - start)) for k in range(prune_at - start)]
    state.is_pruned = True
    assert not any(strategy.penalty_weight(state, step) for step in range(total))
    stages = [schedule.stage(step) for step in range(total)]
    assert stages.count("decay") == prune_at - start
    assert stages.count("fine-tune") == total - prune_at


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(7, "steps", 7), (300, "epochs", 7_500), (20, "percent", 7_500), (1_050, "epochs", 26_250), (0.5, "epochs", 12)],
)
def test_units(value, unit, expected):
    assert to_steps(value, unit, steps_per_epoch=25, total=37_500) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune_at": 60}, "longer than the run: prune_at is step 60 and the run has 60 steps"),
        ({"unit": "epochs"}, "longer than the run"),
        ({"unit": "percent", "prune_at": 101}, "at most 100"),
        ({"prune_counts": (12, 5)}, "prune_counts asks for 12 of the 12 neurons of layer 0; at least one must remain"),
        ({"prune_counts": None, "prune_fraction": 1.0}, "must lie in "),
        ({"prune_counts": None, "prune_fraction": -0.5}, "must lie in "),
        ({"prune_counts": (1,)}, "one number for each"),
        ({"prune_layers": (0, 3)}, "layer 3; the network's sine layers are 0 to 2"),
        ({"prune_layers": (1, 1)}, "twice"),
        ({"prune_layers": ()}, "name at least one layer"),
        ({"densify_count": 9}, "at most 8 can be doubled"),
        ({"densify_count": 0}, "go together"),
        ({"densify_count": -1}, "0 or more"),
        ({"prune_at": None}, "go together"),
        ({"decay_start": 50}, "decay comes first"),
        ({"densify_at": 30}, "inside the decay stage"),
        ({"densify_at": -3}, "0 or more"),
        ({"densify_at": 2.5}, "not a whole number"),
        ({"decay_start": float("nan")}, "finite"),
        ({"epsilon": -1.0}, "0 or more"),
    ],
)
def test_impossible_schedules_are_refused_with_a_reason(changes, message):
    with pytest.raises(ScheduleError, match=message):
        AireStrategy(replace(CONFIG, **changes)).init_state(SineMLP(2, [8, 9, 7], 1).neuron_groups(), 5, STEPS)


def test_a_moment_that_was_missed_is_made_up_for():
    """Each event once, in the schedule's order, at whatever step the strategy is next asked."""
    net = SineMLP(2, [8, 9, 7], 1, first_omega=5.0, hidden_omega=3.0)
    strategy = AireStrategy(CONFIG)
    state = strategy.init_state(net.neuron_groups(), 5, STEPS)
    assert not strategy.is_due(state, 9)
    assert strategy.is_due(state, 12)
    reports = strategy.step(net.neuron_groups(), [], state, 50)
    assert [(r.event, r.step) for r in reports] == [("densify", 50), ("decay", 50), ("prune", 50)]
    assert not strategy.is_due(state, 59)


def test_taylor_scores_are_followed_for_a_hundred_steps_before_a_decision():
    config = replace(CONFIG, criterion="taylor", densify_at=None, densify_count=0, decay_start=250, prune_at=280)
    followed = []
    for stop in (150, 151, 250, 251):
        _, _, state, _, _ = train(config, steps=300, stop_at=stop)
        followed.append([float(scores.sum()) for scores in state.saliency])
    assert followed[0] == []
    assert all(score > 0 for score in followed[1])
    assert followed[2] != followed[1]
    assert followed[3] == followed[2]  # the decision is made


def test_limits_belong_to_what_is_allowed():
    check(replace(CONFIG, densify_count=0, densify_fraction=1.0))
    for share in (-0.01, 1.01):
        with pytest.raises(ScheduleError, match=rf"densify_fraction is {share}; it must lie in \[0, 1\]"):
            check(replace(CONFIG, densify_count=0, densify_fraction=share))
    for share in (0.0, 1.0):
        with pytest.raises(ScheduleError, match=rf"prune_fraction is {share}; it must lie in \(0, 1\)"):
            check(replace(CONFIG, prune_counts=None, prune_fraction=share))
    # The paper's: the first two layers lose half.
    assert (AireConfig().prune_layers, AireConfig().prune_fraction) == ((0, 1), 0.5)


def test_the_plan_foretells_the_run():
    net = SineMLP(2, [8, 9, 7], 1)
    strategy = AireStrategy(CONFIG)
    state = strategy.init_state(net.neuron_groups(), 5, STEPS)
    plan = strategy.plan(state, net.widths)
    assert [(event.step, event.event, event.widths) for event in plan] == [
        (10, "densify: 4 input neurons", (12, 9, 7)),
        (25, "targeted decay of the weakest neurons begins", None),
        (45, "prune", (6, 4, 7)),
    ]
    by_threshold = AireStrategy(replace(CONFIG, prune_rule="threshold", epsilon=0.5)).plan(state, net.widths)
    assert by_threshold[-1].event == "prune (at most; contribution <= 0.5)"
    assert by_threshold[-1].widths is None
    # A share of what is left then, in the order of the schedule also where all is due at once.
    late = AireConfig(unit="steps", decay_start=5, prune_at=5, prune_fraction=0.5, densify_at=5, densify_fraction=0.25)
    for densify_at, expected in (
        (5, [("densify: 2 input neurons", (10, 9, 7)), ("targeted decay", None), ("prune", (5, 5, 7))]),
        (6, [("targeted decay", None), ("prune", (4, 5, 7)), ("densify: 1 input neurons", (5, 5, 7))]),
    ):
        strategy = AireStrategy(replace(late, densify_at=densify_at))
        net = SineMLP(2, [8, 9, 7], 1)
        state = strategy.init_state(net.neuron_groups(), 5, STEPS)
        plan = strategy.plan(state, net.widths)
        assert [(event.event.split(" of the")[0], event.widths) for event in plan] == expected
        for step in range(STEPS):
            strategy.step(net.neuron_groups(), [], state, step)
        assert tuple(net.widths) == plan[-1].widths


@pytest.mark.parametrize("option", [{"target_parameters": 40}, {"target_bytes": 160}])
def test_a_budget_is_kept_or_refused(option):
    net = SineMLP(2, [8, 9, 7], 1)
    config = AireConfig(unit="steps", decay_start=5, prune_at=10, **option)
    name = next(iter(option))
    with pytest.raises(ScheduleError, match=f"{name} is {option[name]}.* are added after the removal, at step 20"):
        AireStrategy(replace(config, densify_at=20, densify_count=2)).init_state(net.neuron_groups(), 5, STEPS)
    with pytest.raises(ScheduleError, match=f"{name} needs all chosen neurons to go"):
        check(replace(config, prune_rule="threshold"))
    with pytest.raises(ScheduleError, match=f"{name} is 8.*; one neuron in each of the 3 layers already takes 9 par"):
        AireStrategy(replace(config, **{name: 8})).init_state(net.neuron_groups(), 5, STEPS)


@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_the_penalty_grows_in_a_straight_line_over_the_decay(weight):
    """From 0 at its first step to the whole weight at the removal, however late in the run that is."""
    config = replace(CONFIG, densify_at=None, densify_count=0, decay_start=10, prune_at=50, decay_weight=weight)
    check(config)
    net = SineMLP(2, [8, 9, 7], 1)
    strategy = AireStrategy(config)
    groups, state = net.neuron_groups(), strategy.init_state(net.neuron_groups(), 5, STEPS)
    strategy.step(groups, [], state, 10)
    norms = sum(
        float(groups[layer].outgoing.parameter[:, chosen].abs().sum())
        for layer, chosen in zip(state.layers, state.targets, strict=True)
    )
    for step in (10, 20, 30, 49):
        expected = weight * (step - 10) / 40 * norms
        assert float(strategy.penalty(groups, state, step)) == pytest.approx(expected, rel=1e-5)


def test_a_strategy_refuses_what_only_another_one_does():
    targets = ({"target_psnr": 30.0}, {"target_parameters": 100, "rounds": 4})
    for target in targets:
        config = AireConfig(unit="steps", decay_start=1, prune_at=40, **target)
        with pytest.raises(ScheduleError, match=r"AireStrategy removes once.*make_strategy"):
            AireStrategy(config)
    assert TargetPsnrStrategy(AireConfig(unit="steps", decay_start=1, prune_at=40, **targets[0]))
    assert TargetSizeStrategy(AireConfig(unit="steps", decay_start=1, prune_at=40, **targets[1]))


def test_taylor_needs_gradients_of_what_it_chooses_from():
    net = SineMLP(2, [16, 16], 1)
    both = replace(CONFIG, criterion="taylor", densify_at=50, densify_count=4, decay_start=50, prune_at=90)
    with pytest.raises(ScheduleError, match=r"both step 50.*begin the decay later"):
        AireStrategy(both).init_state(net.neuron_groups(), 10, 100)
    assert AireStrategy(replace(both, decay_start=51)).init_state(net.neuron_groups(), 10, 100)
    # Gradients that were cleared before anybody looked.
    strategy = AireStrategy(replace(both, densify_at=None, densify_count=0, decay_start=3, prune_at=90))
    optimizer = torch.optim.Adam(net.parameters())
    state = strategy.init_state(net.neuron_groups(), 10, 100)
    for step in range(3):
        strategy.step(net.neuron_groups(), [optimizer], state, step)
        net(torch.rand(9, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        strategy.constrain(net.neuron_groups(), [optimizer], state, step)
    with pytest.raises(InputError, match="has seen no gradient; call constrain after backward and before zero_grad"):
        strategy.step(net.neuron_groups(), [optimizer], state, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"criterion": "l2"}, {"criterion": "taylor"}, {"prune_counts": (2, 5)}, {"target_parameters": 150},
        {"prune_layers": (1,), "prune_counts": None, "prune_fraction": 0.6, "densify_at": None, "densify_count": 0},
    ],
)  # fmt: skip
def test_candidates_are_those_that_are_chosen(changes):
    torch.manual_seed(0)
    net = SineMLP(2, [13, 11], 1)
    base = replace(CONFIG, densify_at=1, densify_count=3, decay_start=6, prune_at=9, prune_layers=(0, 1))
    strategy, optimizer = AireStrategy(replace(base, **changes)), torch.optim.Adam(net.parameters(), 1e-2)
    state = strategy.init_state(net.neuron_groups(), 10, 12)
    for step in range(12):
        before = strategy.candidates(net.neuron_groups(), state)
        strategy.step(net.neuron_groups(), [optimizer], state, step)
        if step == 6:
            assert sorted(before) == sorted(state.layers)
            for layer, indices in zip(state.layers, state.targets, strict=True):
                assert torch.equal(before[layer], indices)
                assert len(indices) > 0 or changes.get("target_parameters")
        optimizer.zero_grad()
        (net(torch.rand(9, 2)) - 1).square().mean().backward()
        optimizer.step()
        strategy.constrain(net.neuron_groups(), [optimizer], state, step)
    assert strategy.candidates(net.neuron_groups(), state) == {}


def test_nothing_is_a_candidate_where_none_will_be_chosen_or_data_decide():
    net = SineMLP(2, [13, 11], 1)
    for config in (
        replace(CONFIG, decay_start=None, prune_at=None, prune_layers=()),
        replace(CONFIG, criterion="activation"),
        replace(CONFIG, criterion="taylor"),
    ):
        strategy = AireStrategy(config)
        state = strategy.init_state(net.neuron_groups(), 10, 1000)
        assert strategy.candidates(net.neuron_groups(), state) == {}
