"""NeRF's step as a graph holds it: samples in memory of a fixed size, and what becomes of rays that do not fit."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_config
from torch import nn

from aire_nerfstudio.adaptation.base import Report
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.models.sample_room import GRANULE, MARGIN, SampleRoom
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
    return made


def _plain(pipeline, seed):
    torch.manual_seed(seed)
    _, losses, metrics = pipeline.get_train_loss_dict(1)
    return losses["rgb_loss"], metrics


def _graphed(pipeline, seed, sizes):
    """As GraphedTraining calls the model, without a graph."""
    model = pipeline.model
    torch.manual_seed(seed)
    model._room.sizes = sizes
    batch = model.graph_batch(pipeline.datamanager, 1)
    outputs, rest = model.graph_outputs(batch)
    metrics = model.get_metrics_dict(outputs, rest)
    return model.get_loss_dict(outputs, rest, metrics)["rgb_loss"], metrics, outputs


def _gradients(model, loss):
    return torch.autograd.grad(loss, list(model.field.parameters()))


@NEEDS_MARCHER
@pytest.mark.parametrize("spare", [0, 1, 5000])
def test_with_memory_for_all_it_is_the_step_without(pipeline, spare, monkeypatch):
    model, counted = pipeline.model, []
    measure = model._room.measure
    monkeypatch.setattr(model._room, "measure", lambda *counts: (counted.append(counts), measure(*counts)))
    loss, metrics = _plain(pipeline, 3)
    expected = _gradients(model, loss)
    marched, reached = model._room.sizes  # of measure()
    assert marched > reached > 100
    model._room.place(torch.device("cpu")).zero_()
    got, got_metrics, outputs = _graphed(pipeline, 3, (marched + spare, reached + spare))
    assert tuple(model._room.state()[2:]) == counted[0]
    assert int(outputs["complete"]) == 96
    assert float(got.detach()) == pytest.approx(float(loss), rel=1e-5)
    for name, value in metrics.items():
        assert float(got_metrics[name]) == pytest.approx(float(value), rel=1e-5)
    for a, b in zip(_gradients(model, got), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


@NEEDS_MARCHER
@pytest.mark.parametrize("kind", ["marched", "reached"])
def test_rays_that_find_no_memory_are_not_learned_from(pipeline, kind):
    """Loss and gradients are those of the batch that the others make."""
    model = pipeline.model
    loss, _ = _plain(pipeline, 4)
    marched, reached = model._room.sizes
    sizes = (marched // 4, reached) if kind == "marched" else (marched, reached // 4)
    got, _, outputs = _graphed(pipeline, 4, sizes)
    complete = int(outputs["complete"])
    assert 3 < complete < 90
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
    rgb, truth = model._with_truth(outputs, batch["image"])
    return (rgb - truth)[:count].square().mean()


@NEEDS_MARCHER
def test_a_batch_without_room_for_one_ray_teaches_nothing(pipeline):
    got, _, outputs = _graphed(pipeline, 5, (1, 1))
    assert int(outputs["complete"]) < 40
    assert all(bool(g.isfinite().all()) for g in _gradients(pipeline.model, got))


@NEEDS_MARCHER
def test_a_step_is_not_a_graph_until_samples_were_counted(pipeline):
    model = pipeline.model
    model._room.forget()
    state = torch.get_rng_state()
    assert model.graph_batch(pipeline.datamanager, 1) is None
    assert torch.equal(torch.get_rng_state(), state)
    _plain(pipeline, 1)
    assert model.graph_batch(pipeline.datamanager, 1) is not None


def test_a_removal_lets_a_step_count_again(pipeline):
    model = pipeline.model
    for event, is_known in (("densify", True), ("prune", False)):
        model._room.measure(1000, 1000)
        model.on_change(Report(1, event, (1,), (14,), (13,)))
        assert (model._room.sizes is not None) == is_known


@NEEDS_MARCHER
def test_rays_of_other_cameras_are_made_before_the_graph(pipeline, monkeypatch):
    """The same rays give the same loss."""
    expected, _, _ = _graphed(pipeline, 6, (1 << 14, 1 << 14))
    generator = pipeline.datamanager.train_ray_generator

    class Other(nn.Module):
        def forward(self, indices):
            return generator(indices)

    monkeypatch.setattr(pipeline.datamanager, "train_ray_generator", Other())
    got, _, _ = _graphed(pipeline, 6, (1 << 14, 1 << 14))
    assert float(got) == float(expected)


def test_without_a_compiled_marcher_graphs_are_refused(pipeline, monkeypatch):
    monkeypatch.setenv("AIRE_OPS", "off")
    with pytest.raises(InputError, match=r"compiled marcher cannot be had.*leave cuda_graph out"):
        pipeline.model.check_graph()


def test_nerfacc_and_graphs_are_refused(pipeline, monkeypatch):
    config = replace(pipeline.model.config, marcher="nerfacc", cuda_graph=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"marcher is nerfacc, which waits .*; use aire"):
        config.check()


# --- how much memory -------------------------------------------------------------------------------------------------


def _noted(room, *counts):
    for marched, reached in counts:
        room.note(torch.tensor(marched), torch.tensor(reached))


def test_room_follows_what_is_met():
    room = SampleRoom()
    room.follow()
    assert room.sizes is None
    room.measure(100_000, 30_000)
    begin = room.sizes
    for size, count in zip(begin, (100_000, 30_000), strict=True):
        assert MARGIN * count <= size < MARGIN * count + GRANULE
        assert size % GRANULE == 0
    # What varies a little changes nothing, nor does a time in which nothing was noted.
    _noted(room, (95_000, 31_000), (102_000, 28_000))
    room.follow()
    room.follow()
    assert room.sizes == begin
    # More than there is memory for.
    _noted(room, (120_000, 20_000), (90_000, 31_000))
    room.follow()
    assert room.sizes[0] >= MARGIN * 120_000
    assert room.sizes[1] >= MARGIN * 31_000
    # Far less, for as long as there was between two looks.
    _noted(room, (9_000, 8_000))
    room.follow()
    assert room.sizes[0] < 12_000
    # Of one of the two.
    room.measure(100_000, 30_000)
    _noted(room, (100_000, 1_000))
    room.follow()
    assert room.sizes == (begin[0], GRANULE * 3)
    room.forget()
    assert room.sizes is None


def test_where_rays_were_left_out_light_would_have_reached_more():
    room = SampleRoom()
    room.measure(10_000, 10_000)
    size = room.sizes[0]
    _noted(room, (2 * size, size))
    room.follow()
    assert room.sizes[1] >= 2 * size


def test_room_goes_through_a_checkpoint():
    room, again = SampleRoom(), SampleRoom()
    assert room.state() == []
    again.restore(room.state(), torch.device("cpu"))
    assert again.sizes is None
    room.measure(5000, 700)
    _noted(room, (6000, 10))
    again.restore(room.state(), torch.device("cpu"))
    assert again.state() == room.state() == [*room.sizes, 6000, 10]
    for made in (room, again):
        made.follow()
    assert again.sizes == room.sizes


@pytest.mark.parametrize(
    "state", [[1, 2, 3], [0, 5, 1, 1], [5, 5, -1, 0], [5.0, 5, 1, 1], "room", {"a": 1}, [True] * 4]
)
def test_a_damaged_room_is_refused(state):
    with pytest.raises(InputError, match=r"room is .*damaged"):
        SampleRoom().restore(state, torch.device("cpu"))
