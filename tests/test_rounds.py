"""Removal in rounds, to a size or a PSNR: kept in the end, nothing lost at a removal, resumed to the bit."""

import io
import itertools
import math
from dataclasses import replace

import pytest
import torch
from test_aire_strategy import CONFIG, X, Y, one_step

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.budget import count_parameters
from aire_nerfstudio.adaptation.schedule import Schedule, ScheduleError
from aire_nerfstudio.adaptation.variants import make_strategy
from aire_nerfstudio.fields.sine_mlp import SineMLP

STEPS, SIZES = 600, (20, 18, 14)
CONFIG_PSNR = AireConfig(unit="percent", densify_at=5, densify_count=4, decay_start=20, prune_at=90, target_psnr=30.0)
CONFIG_SIZE = replace(CONFIG_PSNR, target_psnr=None, target_parameters=250, rounds=5)


def start(config):
    torch.manual_seed(1)
    net = SineMLP(2, SIZES, 1, first_omega=5.0, hidden_omega=5.0)
    return net, torch.optim.Adam(net.parameters(), lr=2e-3), strategy_of(config)


def strategy_of(config):
    return make_strategy("aire", config, SIZES, 2, 1, 2, 5.0)


def train(config, stop_at=STEPS):
    net, optimizer, strategy = start(config)
    state = strategy.init_state(net.neuron_groups(), 1, STEPS)
    reports = [r for step in range(stop_at) for r in one_step(net, optimizer, strategy, state, step)]
    return net, optimizer, strategy, state, reports


def psnr(net):
    return -10 * math.log10(float((net(X) - Y).detach().square().mean()) / 4)


def test_the_target_is_kept_and_a_lower_one_takes_fewer_neurons():
    sizes = []
    for target in (15.0, 35.0, 60.0):
        net, optimizer, strategy, state, reports = train(replace(CONFIG_PSNR, target_psnr=target))
        assert psnr(net) >= target - 0.1
        assert strategy.missed_target(state) is None
        assert {r.event for r in reports} == {"densify", "prune"}
        prunes = [r for r in reports if r.event == "prune"]
        assert all(0.2 * STEPS <= r.step <= 0.9 * STEPS and sum(r.counts) > 0 for r in prunes)
        assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in net.parameters())
        sizes.append(net.num_parameters)
    assert sizes[0] < sizes[1] < sizes[2] < SineMLP(2, SIZES, 1).num_parameters


@pytest.mark.parametrize("config", [CONFIG_PSNR, CONFIG_SIZE], ids=["psnr", "size"])
def test_the_removed_neurons_have_decayed(config):
    net, optimizer, strategy = start(config)
    state = strategy.init_state(net.neuron_groups(), 1, STEPS)
    changes = []
    for step in range(STEPS):
        before = net(X).detach() if step == state.removal_at else None
        groups = net.neuron_groups()
        strategy.step(groups, [optimizer], state, step)
        if before is not None:
            changes.append(float((net(X) - before).abs().max()))
        optimizer.zero_grad()
        error = (net(X) - Y).square().mean()
        (error + strategy.penalty(groups, state, step)).backward()
        optimizer.step()
        strategy.constrain(groups, [optimizer], state, step, error.detach() / 4)
    assert len(changes) >= 2
    assert max(changes) < 0.01


def test_out_of_reach_removes_nothing_and_says_so():
    net, _, strategy, state, reports = train(replace(CONFIG_PSNR, target_psnr=120.0))
    assert [r.event for r in reports] == ["densify"]
    assert tuple(net.widths) == (24, 18, 14)
    message = strategy.missed_target(state)
    assert message is not None
    assert "target_psnr is 120 dB" in message
    assert f"{psnr(net):.0f}" in message
    assert "nothing was removed" in message


def test_an_idle_target_shrinks_to_one_neuron_a_layer_at_most():
    config = replace(CONFIG_PSNR, target_psnr=1.0)
    net, _, strategy, state, _ = train(config)
    assert min(net.widths) >= 1
    assert net.num_parameters < 40
    assert strategy.missed_target(state) is None


@pytest.mark.parametrize("config", [CONFIG_PSNR, CONFIG_SIZE], ids=["psnr", "size"])
@pytest.mark.parametrize("stop_at", [1, 119, 130, 200, 590])
def test_resume_equals_the_uninterrupted_run(stop_at, config):
    whole = train(config)[0]
    net, optimizer, strategy, state, _ = train(config, stop_at)
    file, rng = io.BytesIO(), torch.get_rng_state()
    torch.save({"net": net.state_dict(), "adam": optimizer.state_dict(), "state": state.to_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    net, optimizer, strategy = start(config)
    for name, parameter in net.named_parameters():
        surgery.resize_to(parameter, saved["net"][name].shape)
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["adam"])
    state = strategy.restore(saved["state"])
    torch.set_rng_state(rng)
    for step in range(stop_at, STEPS):
        one_step(net, optimizer, strategy, state, step)
    assert net.widths == whole.widths
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_psnr": 0.0}, "target_psnr is 0.0; it must be finite and at least 1"),
        ({"target_psnr": math.nan}, "target_psnr is nan"),
        ({"target_psnr": math.inf}, "target_psnr is inf"),
        ({"target_parameters": 100}, "target_parameters and target_psnr exclude each other"),
        ({"target_bytes": 100}, "target_bytes and target_psnr exclude each other"),
        ({"target_psnr": None, "target_bytes": 3}, "target_bytes is 3; it must be finite and at least 4"),
        ({"decay_start": None, "prune_at": None}, "nothing is ever removed; set decay_start and prune_at"),
        ({"prune_rule": "threshold"}, "use prune_rule 'all'"),
        ({"rounds": 0}, "rounds is 0; it must be at least 1"),
        ({"rounds": 3, "target_psnr": None}, "more than 1 need target_parameters or target_bytes"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ScheduleError, match=message):
        strategy_of(replace(CONFIG_PSNR, **change))


def test_so_many_rounds_reach_the_size_by_equal_shares():
    net, _, _, _, reports = train(CONFIG_SIZE)
    prunes = [r for r in reports if r.event == "prune"]
    assert [r.step for r in prunes] == [162, 246, 330, 414, 498]  # the window is 420 steps: rounds of 84
    sizes = [count_parameters(2, r.before, 1) for r in prunes] + [net.num_parameters]
    assert sizes[0] == count_parameters(2, (24, 18, 14), 1)
    assert 235 < sizes[-1] <= 250
    ratio = (250 / sizes[0]) ** (1 / 5)
    assert all(b / a == pytest.approx(ratio, abs=0.05) for a, b in itertools.pairwise(sizes))


def test_rounds_need_room():
    groups = SineMLP(2, SIZES, 1).neuron_groups()
    for config in (CONFIG_PSNR, replace(CONFIG_SIZE, rounds=2)):
        with pytest.raises(ScheduleError, match="takes at least 2 steps"):
            strategy_of(replace(config, unit="steps", decay_start=20, prune_at=21)).init_state(groups, 1, 99)
        with pytest.raises(ScheduleError, match="must not come after decay_start"):
            strategy_of(replace(config, densify_at=95)).init_state(groups, 1, STEPS)


def test_a_task_without_errors_cannot_have_a_target_psnr():
    net, optimizer, strategy = start(CONFIG_PSNR)
    state = strategy.init_state(net.neuron_groups(), 1, STEPS)
    with pytest.raises(ScheduleError, match="does not give"):
        strategy.constrain(net.neuron_groups(), [optimizer], state, 0)


def test_bytes_are_four_a_parameter():
    from test_aire_strategy import train as train_aire

    config = replace(CONFIG, prune_counts=None, target_parameters=90)
    by_bytes = train_aire(replace(config, target_parameters=None, target_bytes=363))[0]
    assert by_bytes.widths == train_aire(config)[0].widths
    assert by_bytes.num_parameters <= 90


def _reached(state, decibel):
    state.error = torch.tensor(10 ** (-decibel / 10))


def test_what_a_round_cost_says_how_much_the_next_may_free():
    strategy = strategy_of(CONFIG_PSNR)  # 30 dB
    state = strategy.init_state(start(CONFIG_PSNR)[0].neuron_groups(), 1, STEPS)
    _reached(state, 32.0)
    assert strategy._next_size(state, 120, 1000) == 875  # an eighth at first
    assert state.spare == pytest.approx(2.0, abs=1e-4)
    assert strategy._is_granted(state, 0.12)
    _reached(state, 31.4)  # 0.6 dB for 0.12: 5 dB for all; a quarter is the most
    assert strategy._next_size(state, 140, 1000) == 750
    assert state.price == pytest.approx(5.0, abs=1e-3)
    assert strategy._is_granted(state, 0.25)
    _reached(state, 30.9)  # 2 dB for all: 0.9 dB would buy 0.45, more than a quarter
    assert strategy._next_size(state, 160, 1000) == 750
    assert strategy._is_granted(state, 0.2)
    _reached(state, 30.1)  # 0.8 dB for 0.2: 4 dB for all; 0.1 dB buys 0.025
    assert strategy._next_size(state, 180, 1000) == 975
    assert strategy._is_granted(state, 0.0249)
    assert not strategy._is_granted(state, 0.026)
    state.freed = 0.0
    assert strategy._next_size(state, 180, 20) == 19  # a neuron at the least
    assert strategy._is_granted(state, 0.01)
    share = state.share
    _reached(state, 29.9)
    assert strategy._next_size(state, 200, 1000) is None
    assert state.share == share / 2


def test_the_running_error_is_the_mean_over_an_eighth_of_a_round():
    net, optimizer, strategy = start(CONFIG_PSNR)
    state, groups = strategy.init_state(net.neuron_groups(), 1, STEPS), net.neuron_groups()
    pace = 1 / (strategy._round_length(state.schedule) // 8)
    expected = None
    for step, error in enumerate((0.5, 0.25, 0.125)):
        strategy.constrain(groups, [optimizer], state, step, torch.tensor(error))
        expected = error if expected is None else expected + pace * (error - expected)
        assert float(state.error) == pytest.approx(expected)


def test_a_target_too_far_is_said_with_what_was_reached():
    strategy = strategy_of(CONFIG_PSNR)
    state = strategy.init_state(start(CONFIG_PSNR)[0].neuron_groups(), 1, STEPS)
    assert "reach -inf dB in the end (so nothing was removed)" in strategy.missed_target(state)
    _reached(state, 29.5)
    state.round_removal = 300
    assert "reach 29.50 dB in the end (the last removal cost more" in strategy.missed_target(state)
    _reached(state, 30.001)
    assert strategy.missed_target(state) is None


@pytest.mark.parametrize(("asked", "window", "made"), [(3, 60, 3), (100, 7, 3), (100, 2, 1)])
def test_a_round_takes_two_steps_at_least(asked, window, made):
    strategy = strategy_of(replace(CONFIG_SIZE, rounds=asked))
    schedule = Schedule(total=100, decay_start=10, prune_at=10 + window)
    assert strategy._rounds(schedule) == made
    assert strategy._round_length(schedule) == window // made >= 2


def test_a_round_for_a_psnr_is_a_32nd_of_the_window_and_not_too_short():
    strategy = strategy_of(CONFIG_PSNR)
    lengths = [((50, 120), 40), ((50, 70), 20), ((120, 540), 40), ((1000, 4200), 100)]
    for (begin, end), length in lengths:
        assert strategy._round_length(Schedule(total=5000, decay_start=begin, prune_at=end)) == length


def test_what_a_round_is_to_free_is_what_it_frees():
    net, optimizer, strategy = start(CONFIG_PSNR)
    state, seen = strategy.init_state(net.neuron_groups(), 1, STEPS), 0
    for step in range(STEPS):
        before, freed = net.num_parameters, state.freed
        for report in one_step(net, optimizer, strategy, state, step):
            if report.event == "prune":
                seen += 1
                assert freed == pytest.approx(1 - net.num_parameters / before)
    assert seen >= 2
