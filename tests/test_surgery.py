"""Laws of growing and pruning."""

import copy
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune

from aire_nerfstudio.adaptation import surgery
from aire_nerfstudio.adaptation.surgery import SurgeryError
from aire_nerfstudio.fields.sine_mlp import SineMLP

nets = st.tuples(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),  # widths
    st.integers(1, 4),  # in
    st.integers(1, 3),  # out
    st.sampled_from(["siren", "finer", "spder"]),
    st.integers(0, 2**31 - 1),  # seed
)


def build(spec):
    widths, n_in, n_out, activation, seed = spec
    torch.manual_seed(seed)
    net = SineMLP(n_in, widths, n_out, activation=activation, first_omega=3.0, hidden_omega=2.0).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x = torch.rand(17, n_in, dtype=torch.float64) * 2 - 1
    return net, optimizer, x


def train_step(net, optimizer, x):
    optimizer.zero_grad()
    loss = net(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def snapshot(net, optimizer):
    return {
        name: [p.detach().clone(), *(v.clone() for _, v in sorted(optimizer.state[p].items()))]
        for name, p in net.named_parameters()
    }


def random_rows(group, k):
    weight, outgoing = group.weight.parameter, group.outgoing.parameter
    return (
        torch.rand(k, weight.shape[1], dtype=weight.dtype),
        torch.rand(k, dtype=weight.dtype),
        torch.zeros(outgoing.shape[0], k, dtype=weight.dtype),
    )


@settings(max_examples=60, deadline=None)
@given(nets, st.data(), st.integers(0, 5))
def test_growing_with_zero_columns_leaves_the_function(spec, data, k):
    net, optimizer, x = build(spec)
    train_step(net, optimizer, x)
    layer = data.draw(st.integers(0, len(spec[0]) - 1))
    before = net(x).detach()
    group = net.neuron_groups()[layer]
    surgery.grow(group, *random_rows(group, k), [optimizer])
    assert net.widths[layer] == spec[0][layer] + k
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(nets, st.data(), st.integers(1, 5))
def test_prune_undoes_grow_with_moments_and_steps(spec, data, k):
    net, optimizer, x = build(spec)
    for _ in range(3):
        train_step(net, optimizer, x)
    before = snapshot(net, optimizer)
    ids = [id(p) for p in net.parameters()]
    layer = data.draw(st.integers(0, len(spec[0]) - 1))
    group = net.neuron_groups()[layer]
    n = group.width
    surgery.grow(group, *random_rows(group, k), [optimizer])
    surgery.prune(group, list(range(n, n + k)), [optimizer])
    assert [id(p) for p in net.parameters()] == ids
    for name, tensors in snapshot(net, optimizer).items():
        for ours, theirs in zip(tensors, before[name], strict=True):
            assert torch.equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(nets, st.data())
def test_pruned_network_equals_the_masked_one(spec, data):
    net, optimizer, x = build(spec)
    train_step(net, optimizer, x)
    layer = data.draw(st.integers(0, len(spec[0]) - 1))
    n = spec[0][layer]
    remove = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n - 1))
    group = net.neuron_groups()[layer]
    with torch.no_grad():  # the oracle: a neuron with no outgoing weight is not there
        masked = group.outgoing.parameter.clone()
        masked[:, remove] = 0
        state = {k: v.clone() for k, v in net.state_dict().items()}
        state[f"layers.{layer + 1}.weight"] = masked
        expected = torch.func.functional_call(net, state, (x,))
    old = snapshot(net, optimizer)
    surgery.prune(group, remove, [optimizer])
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)
    keep = [j for j in range(n) if j not in remove]
    new = snapshot(net, optimizer)
    for ours, theirs in zip(new[f"layers.{layer}.weight"][:3], old[f"layers.{layer}.weight"][:3], strict=True):
        assert torch.equal(ours, theirs[keep])
    for ours, theirs in zip(new[f"layers.{layer + 1}.weight"][:3], old[f"layers.{layer + 1}.weight"][:3], strict=True):
        assert torch.equal(ours, theirs[:, keep])


def test_next_backward_passes_while_the_old_loss_is_alive():
    net, optimizer, x = build(([6, 5], 2, 1, "siren", 0))
    old_loss = train_step(net, optimizer, x)
    group = net.neuron_groups()[0]
    surgery.grow(group, *random_rows(group, 3), [optimizer])
    train_step(net, optimizer, x)
    surgery.prune(group, [0, 7], [optimizer])
    train_step(net, optimizer, x)
    assert torch.isfinite(old_loss)


def test_everything_that_holds_the_parameter_holds_the_new_one():
    net, optimizer, x = build(([6, 5], 2, 1, "siren", 0))
    clipping_list = list(net.parameters())
    frozen = net.layers[1].weight.requires_grad_(False)
    train_step(net, optimizer, x)
    surgery.prune(net.neuron_groups()[0], [1, 2], [optimizer])
    assert clipping_list[0] is net.layers[0].weight
    assert clipping_list[0].shape == (4, 2)
    assert optimizer.param_groups[0]["params"][0] is net.layers[0].weight
    assert not frozen.requires_grad
    before = net.layers[0].weight.detach().clone()
    train_step(net, optimizer, x)
    assert not torch.equal(net.layers[0].weight, before), "the optimizer trains a dead tensor"


def test_step_of_adam_is_kept():
    net, optimizer, x = build(([6, 5], 2, 1, "siren", 0))
    for _ in range(4):
        train_step(net, optimizer, x)
    group = net.neuron_groups()[1]
    surgery.grow(group, *random_rows(group, 2), [optimizer])
    state = optimizer.state[net.layers[1].weight]
    assert float(state["step"]) == 4
    assert state["exp_avg"][-2:].abs().max() == 0
    assert state["exp_avg"][:-2].abs().max() > 0


def test_several_optimizers_and_one_without_state():
    net = SineMLP(2, [4, 4], 1)
    first = torch.optim.Adam(net.layers[0].parameters())
    rest = torch.optim.Adam([*net.layers[1].parameters(), *net.layers[2].parameters()])
    net(torch.rand(3, 2)).sum().backward()
    first.step()
    surgery.prune(net.neuron_groups()[0], [0], [first, rest])
    assert first.state[net.layers[0].weight]["exp_avg"].shape == (3, 2)
    assert net.layers[1].weight not in rest.state


@pytest.mark.parametrize(
    ("remove", "message"),
    [([0, 1, 2], "layer.0: pruning 3 of 3"), ([3], r"\[0, 3\)"), ([-1], r"\[0, 3\)"), ([1, 1], "distinct")],
)
def test_impossible_prunings_change_nothing(remove, message):
    net = SineMLP(2, [3, 4], 1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(SurgeryError, match=message):
        surgery.prune(net.neuron_groups()[0], remove)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_growing_with_wrong_shapes_or_nan_changes_nothing(unchecked_shapes):
    net = SineMLP(2, [3, 4], 1)
    group = net.neuron_groups()[0]
    with pytest.raises(SurgeryError, match=r"new outgoing has shape \[4, 1\]; it must be \[4, 2\]"):
        surgery.grow(group, torch.zeros(2, 2), torch.zeros(2), torch.zeros(4, 1))
    with pytest.raises(SurgeryError, match="not finite"):
        surgery.grow(group, torch.full((2, 2), torch.nan), torch.zeros(2), torch.zeros(4, 2))
    assert net.widths == [3, 4]


def test_resize_keeps_identity():
    net = SineMLP(2, [3, 4], 1)
    weight = net.layers[0].weight
    surgery.resize_to(weight, (7, 2))
    assert net.layers[0].weight is weight
    assert weight.shape == (7, 2)
    assert weight.abs().max() == 0


class _Marked(torch.nn.Parameter):
    """Somebody's own kind of parameter."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whoever_holds_a_parameter_or_a_loss_of_it_may_go_on(dtype):
    net = SineMLP(2, [7, 5], 1).to(dtype)
    x, called = torch.rand(9, 2, dtype=dtype), []
    weight = net.layers[0].weight = _Marked(net.layers[0].weight.detach())
    weight.tag = "mine"
    weight.register_hook(lambda g: (called.append(tuple(g.shape)), 3 * g)[1])
    weight.register_post_accumulate_grad_hook(lambda p: called.append(tuple(p.shape)))
    reference, alive = weakref.ref(weight), net(x).square().mean()  # a figure that was logged, say
    surgery.prune(net.neuron_groups()[0], [1, 4])
    surgery.grow(net.neuron_groups()[0], *random_rows(net.neuron_groups()[0], 3))
    surgery.prune(net.neuron_groups()[1], [0])
    plain = copy.deepcopy(net)
    plain.layers[0].weight = torch.nn.Parameter(plain.layers[0].weight.detach())
    net(x).sum().backward()
    plain(x).sum().backward()
    assert reference() is weight is net.layers[0].weight
    assert type(weight) is _Marked
    assert weight.tag == "mine"
    assert called == [(8, 2), (8, 2)]
    torch.testing.assert_close(weight.grad, 3 * plain.layers[0].weight.grad)
    for ours, theirs in zip(list(net.parameters())[1:], list(plain.parameters())[1:], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert alive.isfinite()


def _refused(net, group, match, **options):
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(SurgeryError, match=match):
        surgery.prune(group, [0], **options)
    with pytest.raises(SurgeryError, match=match):
        surgery.grow(
            group, torch.zeros(1, 2), torch.zeros(1), torch.zeros(group.outgoing.parameter.shape[0], 1), **options
        )
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_weights_that_are_computed_are_refused_and_nothing_is_changed():
    for change in (
        torch.nn.utils.parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ):
        net = SineMLP(2, [7, 5], 1)
        group = net.neuron_groups()[0]
        change(net.layers[1])
        # Past the tests' own check of types, which would not let it in.
        object.__setattr__(group.outgoing, "parameter", net.layers[1].weight)
        _refused(net, group, "prune.remove, parametrize.remove_parametrizations")


@pytest.mark.parametrize(
    ("optimizer", "is_known"),
    [(torch.optim.LBFGS, False), (torch.optim.Adafactor, False), *((o, True) for o in (
        torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam, torch.optim.RAdam,
        torch.optim.Adamax, torch.optim.Adadelta, torch.optim.ASGD, torch.optim.Adagrad, torch.optim.Rprop))],
)  # fmt: skip
def test_optimizers_go_through_a_surgery_or_are_refused_before_it(optimizer, is_known):
    torch.manual_seed(0)
    net = SineMLP(2, [7, 5], 1)
    options = {torch.optim.SGD: {"momentum": 0.9}, torch.optim.Adagrad: {"initial_accumulator_value": 0.1}}
    made = optimizer(net.parameters(), **options.get(optimizer, {}))
    x = torch.rand(9, 2)

    def step():
        def closure():
            made.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            return loss

        made.step(closure)

    step()
    if not is_known:
        return _refused(net, net.neuron_groups()[0], optimizer.__name__, optimizers=[made])
    surgery.grow(net.neuron_groups()[0], *random_rows(net.neuron_groups()[0], 2), [made])
    surgery.prune(net.neuron_groups()[1], [3], [made])
    for key, value in made.state[net.layers[0].bias].items():
        if torch.is_tensor(value) and value.shape == (9,):
            first = {"sum": 0.1, "step_size": 1e-2}.get(key, 0.0)
            assert torch.equal(value[7:], torch.full((2,), first)), key
    for _ in range(3):
        step()
    return None


@pytest.mark.parametrize(
    "remove",
    [torch.tensor([1.0, 3.0]), torch.tensor([1.7]), torch.tensor([False, True, False, False, False, False, False])],
)
def test_what_is_no_index_is_refused(remove):
    net = SineMLP(2, [7, 5], 1)
    with pytest.raises(SurgeryError, match="whole numbers"):
        surgery.prune(net.neuron_groups()[0], remove)
    assert net.widths == [7, 5]


def test_a_wrapper_that_averages_gradients_is_refused(tmp_path):
    """It would go on without a word, and average no more."""
    net = SineMLP(2, [7, 5], 1)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapper = torch.nn.parallel.DistributedDataParallel(net)
        _refused(net, net.neuron_groups()[0], "wrap the network again")
        del wrapper
        surgery.prune(net.neuron_groups()[0], [0])
    finally:
        torch.distributed.destroy_process_group()
    assert net.widths == [6, 5]
