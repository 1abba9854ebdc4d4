"""NeRF's step as a graph holds it: samples in memory of a fixed size, and what becomes of rays that do not fit."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_config
from torch import nn

from aire_nerfstudio.adaptation.base import Report
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.models import nerf
from aire_nerfstudio.models.adaptive import AdaptiveModel
from aire_nerfstudio.models.sample_counts import GRANULE, MARGIN, SampleCounts
from aire_nerfstudio.ops import backend

NEEDS_MARCHER = pytest.mark.skipif(
    backend.RAY_MARCHING.load() is None, reason="compiled ray ops cannot be had; python -m aire_nerfstudio.ops says why"
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    torch.manual_seed(0)
    trainer = tiny_config("nerf", tmp_path_factory.mktemp("nerf")).setup(local_rank=0, world_size=1)
    trainer.setup()
    made = trainer.pipeline
    made.train()
    # So dense that light does not reach all.
    with torch.no_grad():
        made.model.field.density_net.layers[-1].bias[0] = 4
    made.model.grid.update(made.model.field.density_of, everywhere=True)
    made.model.adaptation.step = 1  # at which nothing is decided
    return made


@pytest.fixture(params=[True, False], ids=["stopped early", "to the end"])
def stopped(request, pipeline):
    pipeline.model.sample_counts.stops_early = request.param
    return request.param


def _plain(pipeline, seed):
    torch.manual_seed(seed)
    _, losses, metrics = pipeline.get_train_loss_dict(1)
    return losses["rgb_loss"], metrics


def _graphed(pipeline, seed, sizes):
    """As GraphedTraining calls the model, without a graph."""
    model = pipeline.model
    torch.manual_seed(seed)
    model.sample_counts.sizes, model.sample_counts._candidates = sizes, 96 * model.config.max_steps_per_ray
    batch = model.graph_batch(pipeline.datamanager, 1)
    outputs, rest = model.graph_outputs(batch)
    metrics = model.get_metrics_dict(outputs, rest)
    return model.get_loss_dict(outputs, rest, metrics)["rgb_loss"], metrics, outputs


def _batch(pipeline, seed):
    torch.manual_seed(seed)
    return pipeline.model.graph_batch(pipeline.datamanager, 1)


def _gradients(model, loss):
    return torch.autograd.grad(loss, list(model.field.parameters()))


@NEEDS_MARCHER
@pytest.mark.parametrize("spare", [0, 1, 5000])
def test_with_memory_for_all_it_is_the_step_without(pipeline, stopped, spare, monkeypatch):
    model, counted = pipeline.model, []
    measure = model.sample_counts.measure
    monkeypatch.setattr(model.sample_counts, "measure", lambda *counts: (counted.append(counts), measure(*counts)))
    loss, metrics = _plain(pipeline, 3)
    expected = _gradients(model, loss)
    marched, reached = model.sample_counts.sizes  # of measure()
    assert marched > reached > 100 or not stopped
    model.sample_counts.place(torch.device("cpu")).zero_()
    got, got_metrics, outputs = _graphed(pipeline, 3, (marched + spare, reached + spare))
    assert model.sample_counts.state()["most"][0] == counted[0][0]
    if stopped:
        assert model.sample_counts.state()["most"][1] == counted[0][1]
    else:
        assert 100 < model.sample_counts.state()["most"][1] < counted[0][0] == counted[0][1]
    assert int(outputs["complete"]) == 96
    assert float(got.detach()) == pytest.approx(float(loss), rel=1e-5)
    for name, value in metrics.items():
        assert float(got_metrics[name]) == pytest.approx(float(value), rel=1e-5)
    for a, b in zip(_gradients(model, got), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


@NEEDS_MARCHER
@pytest.mark.parametrize("kind", ["marched", "reached"])
def test_rays_that_find_no_memory_are_not_learned_from(pipeline, kind, monkeypatch):
    """Loss and gradients are those of the batch that the others make."""
    model = pipeline.model
    model.sample_counts.stops_early = kind == "reached"
    counted, measure = [], model.sample_counts.measure
    monkeypatch.setattr(model.sample_counts, "measure", lambda *counts: (counted.append(counts), measure(*counts)))
    loss, _ = _plain(pipeline, 4)
    marched, reached = counted[0][:2]
    for part in torch.linspace(0.8, 0.1, 70).tolist():
        sizes = (int(part * marched), marched) if kind == "marched" else (marched, int(part * reached))
        got, _, outputs = _graphed(pipeline, 4, sizes)
        complete = int(outputs["complete"])
        assert 0 < complete < 96
        # The first ray without memory has an error: behind it is not only background.
        if float(_batch(pipeline, 4)["image"][complete, 3]) > 0.5:
            break
    else:
        pytest.fail("no such ray was found")
    squares = _error_of_the_first(pipeline, 4, complete)
    assert float(got) == pytest.approx(float(squares), rel=1e-5)
    assert float(got) != pytest.approx(float(loss), rel=1e-3)
    for a, b in zip(_gradients(model, got), _gradients(model, squares), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


def _error_of_the_first(pipeline, seed, count):
    """The error of a batch's first rays, from colours rendered with memory for all."""
    model = pipeline.model
    _, _, outputs = _graphed(pipeline, seed, (1 << 14, 1 << 14))
    torch.manual_seed(seed)
    batch = model.graph_batch(pipeline.datamanager, 1)
    rgb, truth = model.background.compare(outputs, batch["image"], True)
    return (rgb - truth)[:count].square().mean()


@NEEDS_MARCHER
def test_a_batch_without_room_for_one_ray_teaches_nothing(pipeline):
    """No training has one: there is always memory for a ray."""
    for seed in range(40):
        got, _, outputs = _graphed(pipeline, seed, (1, 1))
        if int(outputs["complete"]) == 0:
            break
    assert int(outputs["complete"]) == 0
    assert float(got.detach()) == 0
    assert not any(bool(g.any()) for g in _gradients(pipeline.model, got))


@NEEDS_MARCHER
def test_a_training_without_graphs_decides_at_fixed_steps(pipeline, monkeypatch):
    """Whether to look for what light does not reach; until then nobody counts what it reaches."""
    model = pipeline.model
    counted, measure = [], model.sample_counts.measure
    monkeypatch.setattr(model.sample_counts, "measure", lambda *counts: (counted.append(counts), measure(*counts)))
    model.sample_counts.stops_early = False
    for step, decides in ((1, False), (15, False), (16, True), (17, False)):
        monkeypatch.setattr(model.adaptation, "step", step)
        _plain(pipeline, 3)
        assert counted[-1][3] is decides
        assert model.sample_counts.stops_early is (step >= 16)
    rays, samples = 96, model.config.max_steps_per_ray
    assert all(each[2] == rays * samples for each in counted)
    # Without the early stop all are used, and after it began those that light reaches.
    assert counted[0][0] == counted[0][1] == counted[2][0] > counted[2][1] == counted[3][1]


@NEEDS_MARCHER
def test_what_graphs_met_is_looked_at_when_the_grid_changes(pipeline, monkeypatch):
    model, looked = pipeline.model, []
    monkeypatch.setattr(AdaptiveModel, "before_step", lambda self, step: None)
    monkeypatch.setattr(model.grid, "update", lambda *arguments, **options: looked.append("grid"))
    monkeypatch.setattr(model.sample_counts, "follow", lambda: looked.append("met"))
    for number in (15, 16, 17):
        model.before_step(number)
    assert looked == ["grid", "met"]


def test_a_graph_depends_on_what_it_has_memory_for(pipeline):
    """And on nothing that it has not."""
    model = pipeline.model

    def revised(sizes, stops):
        model.sample_counts.sizes, model.sample_counts.stops_early = sizes, stops
        return model.graph_revision()

    assert revised((512, 512), False) == revised((512, 1024), False)
    assert len({revised((512, size), stops) for size in (512, 1024) for stops in (True, False)}) == 3
    assert revised((1024, 512), False) != revised((512, 512), False)
    model.graph._ray_generator = None
    before = revised((512, 512), True)
    model.graph._ray_generator = pipeline.datamanager.train_ray_generator
    assert revised((512, 512), True) != before
    model.graph._ray_generator = None


def test_checkpoints_of_earlier_releases_look_in_each_step(pipeline):
    model = pipeline.model
    state, history = model.get_extra_state(), model.adaptation.saved
    assert state["sample_counts"] == model.sample_counts.state()
    del state["sample_counts"]
    model.sample_counts.stops_early = False
    model.set_extra_state(state)
    assert model.sample_counts.stops_early
    assert model.sample_counts.sizes is None
    model.adaptation.saved = history


@NEEDS_MARCHER
def test_a_step_is_not_a_graph_until_samples_were_counted(pipeline):
    model = pipeline.model
    model.sample_counts.forget()
    state = torch.get_rng_state()
    assert model.graph_batch(pipeline.datamanager, 1) is None
    assert torch.equal(torch.get_rng_state(), state)
    _plain(pipeline, 1)
    assert model.graph_batch(pipeline.datamanager, 1) is not None


def test_a_removal_lets_a_step_count_again(pipeline):
    model = pipeline.model
    for event, is_known in (("densify", True), ("prune", False)):
        model.sample_counts.measure(1000, 1000, 1)
        model.on_change(Report(1, event, (1,), (14,), (13,)))
        assert (model.sample_counts.sizes is not None) == is_known


@NEEDS_MARCHER
def test_rays_of_other_cameras_are_made_before_the_graph(pipeline):
    """The same rays give the same loss."""
    expected, _, _ = _graphed(pipeline, 6, (1 << 14, 1 << 14))
    generator = pipeline.datamanager.train_ray_generator

    class Other(nn.Module):
        def forward(self, indices):
            return generator(indices)

    # Not by monkeypatch, which takes the module out of the manager for good.
    pipeline.datamanager.train_ray_generator = Other()
    try:
        got, _, _ = _graphed(pipeline, 6, (1 << 14, 1 << 14))
    finally:
        pipeline.datamanager.train_ray_generator = generator
    assert float(got) == float(expected)


@pytest.mark.parametrize(
    ("setting", "is_compiled", "said"),
    [
        ({}, False, r"compiled marcher cannot be had.*leave cuda_graph out"),
        ({"marcher": "nerfacc"}, True, r"marcher is nerfacc, which waits .*; use aire"),
    ],
)
def test_what_no_graph_can_hold_is_refused(pipeline, monkeypatch, setting, is_compiled, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nerf, "_marcher_is_compiled", lambda: is_compiled)
    wanted = replace(pipeline.model.config, cuda_graph=True, **setting)
    with pytest.raises(InputError, match=said):
        wanted.check_training("cuda")
    # Elsewhere the run can be looked at.
    wanted.check()
    replace(wanted, cuda_graph=False).check_training("cpu")
    monkeypatch.setattr(nerf, "_marcher_is_compiled", lambda: True)
    with pytest.raises(InputError, match=r"--machine\.device-type is cpu; leave one"):
        replace(pipeline.model.config, cuda_graph=True).check_training("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"there is no CUDA device"):
        wanted.check_training("cpu")


# --- how much memory -------------------------------------------------------------------------------------------------


def _noted(counts, *met):
    for marched, reached in met:
        counts.note(torch.tensor(marched), torch.tensor(reached))


def test_memory_follows_what_is_met():
    counts = SampleCounts()
    counts.follow()
    assert counts.sizes is None
    counts.measure(100_000, 30_000, 1000)
    begin = counts.sizes
    for size, count in zip(begin, (100_000, 30_000), strict=True):
        assert MARGIN * count <= size < MARGIN * count + GRANULE
        assert size % GRANULE == 0
    # What varies a little changes nothing, nor does a time in which nothing was noted.
    _noted(counts, (95_000, 31_000), (102_000, 28_000))
    counts.follow()
    counts.follow()
    assert counts.sizes == begin
    # More than there is memory for.
    _noted(counts, (120_000, 20_000), (90_000, 31_000))
    counts.follow()
    assert counts.sizes[0] >= MARGIN * 120_000
    assert counts.sizes[1] >= MARGIN * 31_000
    # Far less, for as long as there was between two looks.
    _noted(counts, (9_000, 8_000))
    counts.follow()
    assert counts.sizes[0] < 12_000
    # Of one of the two.
    counts.measure(100_000, 30_000, 1000)
    _noted(counts, (100_000, 1_000))
    counts.follow()
    assert counts.sizes == (begin[0], GRANULE * 3)
    counts.forget()
    assert counts.sizes is None


def test_where_rays_were_left_out_light_would_have_reached_more():
    counts = SampleCounts()
    counts.measure(10_000, 10_000, 1000)
    size = counts.sizes[0]
    _noted(counts, (2 * size, size))
    counts.follow()
    assert counts.sizes[1] >= 2 * size


def test_counts_go_through_a_checkpoint():
    counts, again = SampleCounts(), SampleCounts()
    assert counts.state() == {"stops_early": False, "sizes": [], "most": [0, 0], "candidates": 0}
    again.restore(counts.state(), torch.device("cpu"))
    assert again.sizes is None
    counts.measure(5000, 700, 1000, decides=True)
    _noted(counts, (6000, 10))
    again.measure(77_777, 5, 5)
    _noted(again, (9, 9))
    again.restore(counts.state(), torch.device("cpu"))
    assert (
        again.state()
        == counts.state()
        == {"stops_early": True, "sizes": list(counts.sizes), "most": [6000, 10], "candidates": 1000}
    )
    for made in (counts, again):
        made.follow()
    assert again.sizes == counts.sizes


@pytest.mark.parametrize(
    "damage",
    [
        *(
            {"sizes": [1, 2, 3]},
            {"sizes": [0, 5]},
            {"sizes": None},
            {"most": [-1, 0]},
            {"most": [5.0, 1]},
            {"most": []},
        ),
        *(
            {"stops_early": 1},
            {"more": 3},
            {"sizes": [True, True]},
            {"sizes": [512, 513]},
            {"candidates": 1.0},
            *({"most": [1, 1 << 40]}, {"sizes": [512, 512]}),
        ),
    ],
)
def test_damaged_counts_are_refused(damage):
    with pytest.raises(InputError, match=r"sample_counts is .*damaged"):
        SampleCounts().restore({**SampleCounts().state(), **damage}, torch.device("cpu"))
    with pytest.raises(InputError, match=r"sample_counts is 7; .*damaged"):
        SampleCounts().restore(7, torch.device("cpu"))


def test_light_that_reaches_little_is_looked_for():
    """And then for as long as it does not reach nearly all."""
    counts = SampleCounts()
    for reached, decides, stops in (
        *((100, True, False), (80, True, False), (70, False, False), (70, True, True), (82, True, True)),
        *((90, False, True), (84, True, False), (77, True, False), (0, True, True)),
    ):
        counts.measure(100, reached, 1000, decides)
        assert counts.stops_early is stops
        counts.measure(0, 0, 1000, decides)
        assert counts.stops_early is stops
    for reached, stops in ((60, True), (90, False), (75, True)):
        _noted(counts, (100, reached), (50, 5))
        counts.follow()
        assert counts.stops_early is stops


@pytest.mark.parametrize("compiled", [True, False])
def test_what_light_does_not_reach_changes_a_colour_by_less_than_epsilon(pipeline, monkeypatch, compiled):
    model, colours = pipeline.model, []
    if not compiled:
        monkeypatch.setenv("AIRE_OPS", "off")
    rays, _ = pipeline.datamanager.next_train(1)
    for stops in (True, False):
        torch.manual_seed(2)
        model.sample_counts.stops_early = stops
        colours.append(model(rays)["rgb"].detach())
    model.sample_counts.measure(5, 5, 1)
    difference = float((colours[0] - colours[1]).abs().max())
    assert 0 < difference < model.config.early_stop_epsilon


def test_memory_follows_the_batch_and_holds_one_ray():
    counts = SampleCounts(least=3000)
    counts.measure(100_000, 100, 1000)
    assert counts.sizes[1] == GRANULE * 6  # from 3,000 on
    begin = counts.sizes[0]
    counts.fit(1000)
    assert counts.sizes[0] == begin
    counts.fit(4000)
    assert 4 * begin <= counts.sizes[0] < 5 * begin
    counts.fit(1)
    assert counts.sizes == (GRANULE * 6, GRANULE * 6)


def test_what_was_short_is_told():
    counts = SampleCounts()
    for stops, reached, was_short in ((False, 10_000, False), (True, 10_000, True), (True, 1000, False)):
        counts.measure(10_000, 1000, 1000)
        counts.stops_early = stops
        _noted(counts, (10_000, reached))
        assert counts.follow() is was_short
    counts.measure(1000, 1000, 1000)
    _noted(counts, (5000, 0))
    assert counts.follow()
    # What was noted before a step without a graph is not looked at.
    _noted(counts, (9000, 0))
    counts.measure(1000, 1000, 1000)
    assert not counts.follow()
