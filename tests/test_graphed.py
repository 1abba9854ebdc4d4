"""Training steps as CUDA graphs: captured once for each set of tensors and shapes, and equal to steps without."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config, train
from torch import nn

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.aire import AireStrategy
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.control import Refused, Request
from aire_nerfstudio.data.image_manager import ImageDataManager
from aire_nerfstudio.fields.differential import gradient_and_motion, value_and_gradient
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.losses import FlowWeights, eikonal, flow_loss, flow_residual
from aire_nerfstudio.method_configs.image import aire_image_siren
from aire_nerfstudio.models import sample_counts
from aire_nerfstudio.models.adaptive import AdaptiveModel
from aire_nerfstudio.models.trainer import AdaptiveTrainer
from aire_nerfstudio.models.trainer_checks import advise
from aire_nerfstudio.ops import graphed, triton_network
from aire_nerfstudio.ops.graphed import GraphedStep

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def captures(monkeypatch):
    """Shapes of the tensors of each capture."""
    made = []

    class Watched(graphed._Graph):
        def __init__(self, network, loss, batch, *rest):
            made.append(tuple(tuple(t.shape) for t in batch))
            super().__init__(network, loss, batch, *rest)

    monkeypatch.setattr(graphed, "_Graph", Watched)
    return made


def _batch(n, device="cuda", outputs=3, inputs=2):
    return torch.rand(n, inputs, device=device), torch.rand(n, outputs, device=device)


def _loss(network, weight, x, target):
    """An error, a penalty on the last weight, and something that is only measured."""
    error = network.mean_square_step(x, target)
    size = network.affines()[-1].weight.abs().sum()
    losses = {"error": error, "penalty": torch.zeros_like(error) if weight is None else weight * size}
    return losses, {"size": size.detach()}


def _network(seed=0, widths=(8, 8)):
    torch.manual_seed(seed)
    return SineMLP(2, widths, 3).cuda()


def _adam(network, **options):
    return torch.optim.Adam(network.parameters(), 1e-3, fused=True, **options)


def _plain_step(network, optimizer, weight, *batch):
    """What a graph stands for."""
    optimizer.zero_grad()
    losses, others = _loss(network, torch.tensor(weight, device="cuda") if weight else None, *batch)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    return losses, others


@NEEDS_CUDA
def test_a_graph_is_captured_for_whatever_it_depends_on(captures):
    network = _network()
    optimizer = _adam(network)
    _plain_step(network, optimizer, 0.0, *_batch(32))
    step = GraphedStep(network, _loss, optimizer)
    for count in (32, 32, 20, 32, 20):
        step(*_batch(count))
    assert captures == [((32, 2), (32, 3)), ((20, 2), (20, 3))]
    # A penalty or none, and what it is on; not how much it weighs, nor the learning rate.
    for weight, revision, so_many in ((0.1, 0, 3), (0.2, 0, 3), (0.2, 1, 4), (0.0, 1, 5)):
        optimizer.param_groups[0]["lr"] *= 0.9
        step(*_batch(32), weight=weight, revision=revision)
        assert len(captures) == so_many
    optimizer.param_groups[0]["eps"] = 1e-6
    step(*_batch(32), revision=1)
    assert len(captures) == 6
    # Nothing may hold on to the parameters: what is exchanged must be nobody's.
    surgery.prune(network.neuron_groups("image")[0], torch.tensor([1, 5], device="cuda"), [optimizer])
    for _ in range(2):
        step(*_batch(32), revision=1)
    assert len(captures) == 7
    before = torch.get_float32_matmul_precision()
    for precision in ("high", before):
        torch.set_float32_matmul_precision(precision)
        step(*_batch(32), revision=1)
    assert len(captures) == 8
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(*_batch(32), revision=1)
    assert len(captures) == 9


@NEEDS_CUDA
def test_a_graph_keeps_what_its_penalty_reads(captures):
    network = _network()
    step, reads = GraphedStep(network, _loss), torch.tensor([1, 2], device="cuda")
    for weight in (0.0, 0.3):
        step(*_batch(32), weight=weight, reads=[reads])
    assert len(captures) == 1
    # A copy elsewhere, then other numbers in the same place.
    other = reads.clone()
    step(*_batch(32), weight=0.3, reads=[other])
    assert len(captures) == 2
    assert step._reads[0] is other
    other.add_(1)
    step(*_batch(32), weight=0.3, reads=[other])
    assert len(captures) == 3


@NEEDS_CUDA
@pytest.mark.parametrize("kind", ["surface", "flow"])
def test_losses_on_derivatives_at_medium_are_captured(kind, monkeypatch):
    """Replayed at points and weights other than those of the capture."""
    monkeypatch.setattr(triton_network, "FEWEST_ROWS", 1)  # a device takes any number, an emulated one its time

    def loss(network, _, points):
        if kind == "surface":
            value, gradient = value_and_gradient(network, points)
            return {"error": value.square().mean() + eikonal(gradient[:, :3]).mean()}, {}
        gradient, motion = gradient_and_motion(network, points)
        return {"error": flow_residual(gradient[:, 3], motion, 1e-2).square().mean()}, {}

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        network = SineMLP(4, (20, 12), 1).cuda()
        graph = GraphedStep(network, loss)
        for _ in range(2):
            points = 2 * torch.rand(150, 4, device="cuda") - 1
            stepped = graph(points)
            error = loss(network, None, points)[0]["error"]
            assert torch.equal(stepped.total, error)
            parameters = list(network.parameters())
            expected = torch.autograd.grad(error, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, expected, strict=True):
                assert torch.equal(parameter.grad, torch.zeros_like(parameter) if gradient is None else gradient)
                with torch.no_grad():
                    parameter.add_(1e-2 * torch.rand_like(parameter))
    finally:
        torch.set_float32_matmul_precision(before)


@NEEDS_CUDA
@pytest.mark.parametrize(
    ("precision", "steps", "off"), [("highest", 16, False), ("highest", 16, True), ("medium", 6, False)]
)
def test_training_by_graphs_and_a_surgery_is_training_without(precision, steps, off, monkeypatch):
    monkeypatch.setattr(triton_network, "FEWEST_ROWS", 1)
    if off:
        # Adam is PyTorch's then.
        monkeypatch.setenv("AIRE_OPS", "off")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        ends = []
        for is_graphed in (False, True):
            network = _network(widths=(40, 24))
            optimizer = _adam(network, weight_decay=1e-3)
            graph, told = GraphedStep(network, _loss, optimizer), []
            for number in range(steps):
                generator = torch.Generator("cuda").manual_seed(number)
                count = 200 if number % 5 else 220
                x = 2 * torch.rand(count, 2, device="cuda", generator=generator) - 1
                batch = (x, torch.rand(count, 3, device="cuda", generator=generator))
                weight = 1e-3 * max(0, number - 3)
                optimizer.param_groups[0]["lr"] = 1e-3 * 0.9**number
                if is_graphed and graph.can_step(*batch):
                    stepped = graph(*batch, weight=weight, revision=number > 2)
                    losses, others = stepped.losses, stepped.others
                    assert torch.allclose(stepped.total, losses["error"] + losses["penalty"])
                    assert bool(stepped.finite)
                else:
                    assert not is_graphed or number == 0
                    losses, others = _plain_step(network, optimizer, weight, *batch)
                told.append([float(v) for v in (*losses.values(), *others.values())])
                if number == 2:
                    surgery.prune(network.neuron_groups("image")[0], torch.arange(9, device="cuda"), [optimizer])
            ends.append(([p.detach().clone() for p in network.parameters()], torch.tensor(told)))
        for a, b in zip(ends[0][0], ends[1][0], strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        assert torch.allclose(ends[0][1], ends[1][1], rtol=1e-3, atol=1e-5)
        counts = {float(optimizer.state[p]["step"]) for p in network.parameters()}
        assert counts == {float(steps)}
    finally:
        torch.set_float32_matmul_precision(before)


@NEEDS_CUDA
def test_a_capture_itself_changes_nothing_and_a_replay_is_one_step():
    network = _network()
    optimizer = _adam(network)
    batch = _batch(64)
    _plain_step(network, optimizer, 0.0, *batch)
    twin = copy.deepcopy(network)
    other = _adam(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    GraphedStep(network, _loss, optimizer)(*batch)
    _plain_step(twin, other, 0.0, *batch)
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)
        assert float(optimizer.state[a]["step"]) == 2
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-8)


@NEEDS_CUDA
def test_what_is_written_into_a_batch_is_seen():
    network = _network()
    step = GraphedStep(network, _loss)
    x, target = _batch(64)
    first = float(step(x, target).losses["error"])
    assert float(step(x, target).losses["error"]) == first
    target.mul_(0)
    assert float(step(x, target).losses["error"]) == pytest.approx(float(network(x).square().mean()), rel=1e-5)


@NEEDS_CUDA
def test_without_an_optimizer_gradients_are_all_that_is_made():
    network = _network()
    before = [p.detach().clone() for p in network.parameters()]
    step = GraphedStep(network, _loss)
    assert not step.updates
    for batch in (_batch(64), _batch(64)):
        step(*batch, weight=0.5)
        found = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()
        losses, _ = _loss(network, torch.tensor(0.5, device="cuda"), *batch)
        (losses["error"] + losses["penalty"]).backward()
        assert all(
            torch.allclose(a, p.grad, rtol=1e-5, atol=1e-7) for a, p in zip(found, network.parameters(), strict=True)
        )
    assert all(torch.equal(a, p) for a, p in zip(before, network.parameters(), strict=True))
    # Adam that is not fused, or of another kind, follows outside.
    assert not GraphedStep(network, _loss, torch.optim.Adam(network.parameters(), fused=False)).updates
    assert not GraphedStep(network, _loss, torch.optim.AdamW(network.parameters(), fused=True)).updates
    assert not GraphedStep(network, _loss, _adam(network, amsgrad=True)).updates
    assert GraphedStep(network, _loss, _adam(network)).updates


@NEEDS_CUDA
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_fault_is_told(value):
    network = _network()
    step = GraphedStep(network, _loss)
    x, target = _batch(64)
    assert bool(step(x, target).finite)
    target[3, 1] = value
    assert not bool(step(x, target).finite)

    def steep(network, _, x):
        return {"root": (0 * network(x)).abs().sqrt().sum()}, {}

    stepped = GraphedStep(network, steep)(x)
    assert float(stepped.total) == 0
    assert not bool(stepped.finite)


@NEEDS_CUDA
def test_frozen_parameters_get_no_gradient():
    network = _network()
    frozen = network.affines()[0].weight
    frozen.requires_grad_(False)
    step, batch = GraphedStep(network, _loss), _batch(64)
    step(*batch)
    assert frozen.grad is None
    assert all(p.grad is not None for p in network.parameters() if p is not frozen)
    network.requires_grad_(False)
    assert not step.can_step(*batch)


@NEEDS_CUDA
def test_what_cannot_be_a_graph_is_said_before():
    network = _network()
    optimizer = _adam(network)
    step, batch = GraphedStep(network, _loss, optimizer), _batch(64)
    assert not step.can_step(*batch)  # Adam has no moments yet
    _plain_step(network, optimizer, 0.0, *batch)
    assert step.can_step(*batch)
    assert not step.can_step()
    assert not step.can_step(batch[0], batch[1].cpu())
    with torch.no_grad():
        assert not step.can_step(*batch)
    with torch.autocast("cuda"):
        assert not step.can_step(*batch)


def test_elsewhere_no_step_is_a_graph():
    network = SineMLP(2, (8,), 3)
    assert not GraphedStep(network, _loss).can_step(*_batch(10, "cpu"))
    assert not GraphedStep(nn.Identity(), _loss).can_step(*_batch(10, "cpu"))


@NEEDS_CUDA
def test_a_flow_through_a_graph():
    network = SineMLP(4, (32, 32), 1).cuda()
    points, normals = 2 * torch.rand(600, 4, device="cuda") - 1, torch.rand(200, 3, device="cuda")
    distances = torch.rand(200, device="cuda")

    def loss(network, _, *batch):
        return flow_loss(network, *batch, 1e-3, FlowWeights()), {}

    GraphedStep(network, loss)(points, normals, distances)
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    torch.stack(list(loss(network, None, points, normals, distances)[0].values())).sum().backward()
    for a, p in zip(found, network.parameters(), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-3, atol=1e-4 * float(p.grad.abs().max()))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"gradient_accumulation_steps": {"fields": 2}}, "--gradient-accumulation-steps above 1"),
        ({"mixed_precision": True}, "--mixed-precision True"),
        ({"log_gradients": True}, "--log-gradients True"),
        ({"use_grad_scaler": True}, "--use-grad-scaler True"),
        ({"max_norm": 1.0}, "an optimizer's max-norm"),
    ],
)
def test_graphs_refuse_what_comes_between_backward_and_update(setting, said):
    specification = copy.deepcopy(aire_image_siren).config
    specification.pipeline.model.cuda_graph = True
    for name, value in setting.items():
        setattr(specification.optimizers["fields"]["optimizer"] if name == "max_norm" else specification, name, value)
    with pytest.raises(SystemExit, match=f"cuda_graph is True and {said}.*leave one of them out"):
        AdaptiveTrainer(specification)


@NEEDS_CUDA
@pytest.mark.parametrize("task", ["image", "sdf", "flow", "nerf", "nerf, stopped early"])
def test_a_run_by_graphs_is_the_run_without(task, captures, tmp_path, monkeypatch):
    """Through densification, decay and removal, whatever steps an iteration has, but for the rate's rounding."""
    ends = {}
    if task.endswith("early"):
        task = "nerf"
        for name in ("STOP_BELOW", "STOP_ABOVE"):
            monkeypatch.setattr(sample_counts, name, 2.0)
    for is_graphed, each in ((False, 1), (True, 1), (True, 4)):
        config = tiny_config(
            *(task, tmp_path / f"{is_graphed} {each}", {"cuda_graph": is_graphed}),
            max_num_iterations=48 // each, steps_per_iteration=each,
        )  # fmt: skip
        config.machine.device_type = "cuda"
        trainer = train(config)
        model = trainer.pipeline.model
        record = {name: torch.tensor(column) for name, column in model.adaptation.record.columns.items()}
        ends[is_graphed, each] = ([p.detach().cpu() for p in model.field.parameters()], record)
        assert bool(captures) is is_graphed
    plain, graphed_run, fourfold = ends.values()
    assert [tuple(p.shape) for p in plain[0]] == [tuple(p.shape) for p in graphed_run[0]]
    for a, b, c in zip(plain[0], graphed_run[0], fourfold[0], strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)
        assert torch.allclose(c, b, rtol=1e-3, atol=1e-5)
    for _, record in (graphed_run, fourfold):
        assert set(plain[1]) == set(record)
        for name, column in plain[1].items():
            assert torch.allclose(column, record[name], rtol=1e-2, atol=1e-5, equal_nan=True), name


@NEEDS_CUDA
def test_a_run_by_graphs_returns_from_a_fault(monkeypatch, tmp_path):
    """The step that was not finite has changed the weights by the time it is seen, and is undone with them."""
    next_train, seen = ImageDataManager.next_train, []

    def spoiled(self, step):
        points, batch = next_train(self, step)
        if step == 70 and not seen:
            seen.append(step)
            batch = {"image": batch["image"] * math.inf}
        return points, batch

    monkeypatch.setattr(ImageDataManager, "next_train", spoiled)
    config = tiny_config("image", tmp_path, {"cuda_graph": True}, max_num_iterations=120, steps_per_save=1000)
    config.machine.device_type = "cuda"
    model = train(config).pipeline.model
    assert seen == [70]
    assert (model.adaptation.history[-1]["event"], model.adaptation.history[-1]["step"]) == ("return", 50)
    assert all(bool(p.isfinite().all()) for p in model.field.parameters())


@NEEDS_CUDA
def test_a_request_that_is_refused_leaves_what_the_graph_reads(monkeypatch, tmp_path):
    """In a decay, of which a captured step reads the chosen neurons: they stay, or it is captured anew."""
    after_step, told = AdaptiveModel.after_step, []

    def pressing(self, step):
        if step == 22:
            self.by_hand.ask_for(Request("densify", 10_000), told.append)
        after_step(self, step)

    runs = {}
    for asks in (False, True):
        monkeypatch.setattr(AdaptiveModel, "after_step", pressing if asks else after_step)
        config = tiny_config("image", tmp_path / str(asks), {"cuda_graph": True})
        config.machine.device_type = "cuda"
        trainer = train(config)
        step = trainer._graphed._step
        runs[asks] = [p.detach().cpu() for p in trainer.pipeline.model.field.parameters()]
        assert step._reads == tuple(trainer.pipeline.model.adaptation.penalty_reads()) == ()
    assert len(told) == 1
    assert told[0].startswith("refused")
    assert all(torch.equal(a, b) for a, b in zip(*runs.values(), strict=True))


def test_a_refused_request_keeps_the_chosen_neurons_where_they_are():
    network = SineMLP(2, (12, 10), 3)
    groups = network.neuron_groups()
    config = AireConfig(unit="steps", densify_at=None, decay_start=2, prune_at=9, prune_layers=(0,), prune_fraction=0.5)
    strategy = AireStrategy(config)
    state = strategy.init_state(groups, 1, 20)
    strategy.step(groups, [], state, 2)
    before = strategy.penalty_reads(state, torch.device("cpu"))
    assert len(before) == 1
    with pytest.raises(Refused):
        strategy.control(groups, [], state, 3, Request("densify", 10_000))
    assert all(a is b for a, b in zip(before, strategy.penalty_reads(state, torch.device("cpu")), strict=True))


@NEEDS_CUDA
@pytest.mark.parametrize("variant", ["aire_rounds", "rigl", "target_psnr", "weight_decay"])
def test_variants_by_graphs_are_the_variants_without(variant, monkeypatch, tmp_path):
    """They ask for gradients, batch errors and masks after a step; the last batch of an epoch is smaller."""
    after_step, ends, errors = AdaptiveModel.after_step, [], []

    def noting(self, step):
        errors.append(float(self.batch_error))
        after_step(self, step)

    monkeypatch.setattr(AdaptiveModel, "after_step", noting)
    for is_graphed in (False, True):
        model = {"cuda_graph": is_graphed, "variant": "aire" if variant == "target_psnr" else variant}
        config = tiny_config("image", tmp_path / str(is_graphed), model, max_num_iterations=60)
        config.pipeline.datamanager.test_fraction = 0.998  # 524 pixels train: batches of 240, 240 and 44
        changes = {"unit": "percent", "densify_at": 5, "decay_start": 15, "prune_at": 60, "prune_layers": (0,)}
        if variant == "target_psnr":
            changes = {"unit": "percent", "target_psnr": 9.0, "densify_at": 5, "decay_start": 15, "prune_at": 90}
        config.pipeline.model.adaptation = replace(config.pipeline.model.adaptation, **changes)
        config.machine.device_type = "cuda"
        trainer = train(config)
        model = trainer.pipeline.model
        events = [{k: v for k, v in e.items() if k not in ("effect", "bound")} for e in model.adaptation.history]
        ends.append((events, [p.detach().cpu() for p in model.field.parameters()]))
    assert ends[0][0] == ends[1][0]
    assert errors[:60] == pytest.approx(errors[60:], rel=1e-3)
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "is_graph", "is_told"), [("medium", False, True), ("medium", True, False), ("high", False, False)]
)
def test_medium_without_graphs_is_advised_against(precision, is_graph, is_told, monkeypatch, tmp_path, capsys):
    config = tiny_config("image", tmp_path, {"cuda_graph": is_graph}, matmul_precision=precision)
    config.machine.device_type = "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    advise(config)
    said = " ".join("".join(capsys.readouterr()).split())
    assert ("add --pipeline.model.cuda-graph True" in said) is is_told
