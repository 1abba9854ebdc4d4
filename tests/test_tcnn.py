"""The form that tiny-cuda-nn wants computes the same; where it cannot run, one line says why."""

import copy
import importlib.util

import pytest
import torch
from tiny import tiny_config, train

from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.ops import tcnn
from aire_nerfstudio.ops.tcnn import TcnnNetwork, TcnnUnavailableError, evaluator, fold, why_not


def _emulated(folded, x):
    """What tiny-cuda-nn's CutlassMLP computes of flat parameters, in the tensors' own precision."""
    width, layers = folded.config["n_neurons"], folded.config["n_hidden_layers"]
    inputs, outputs = (-(-n // 16) * 16 for n in (folded.n_inputs, folded.n_outputs))
    shapes = [(width, inputs), *[(width, width)] * (layers - 1), (outputs, width)]
    # Whatever fills the padding: its weights are zero.
    h = torch.cat([x, x.new_ones(len(x), 1), x.new_full((len(x), inputs - folded.n_inputs), 7.0)], -1)
    rest = folded.parameters
    for index, (rows, columns) in enumerate(shapes):
        h = h @ rest[: rows * columns].view(rows, columns).T
        rest = rest[rows * columns :]
        if index < layers:
            h = torch.sin(h)
    assert len(rest) == 0
    return h[:, : folded.n_outputs]


@pytest.mark.parametrize(
    ("widths", "d", "out"), [((7,), 2, 1), ((33, 16, 5), 3, 3), ((31, 64), 15, 17), ((15,), 16, 16)]
)
def test_the_folded_network_is_the_network(widths, d, out):
    torch.manual_seed(0)
    network = SineMLP(d, widths, out, "siren", 20.0, 7.0).double()
    x = 2 * torch.rand(50, d, dtype=torch.double) - 1
    folded = fold(*network.for_ops()[:4])
    assert folded.config["n_neurons"] % 16 == 0
    assert torch.allclose(_emulated(folded, x), network(x), atol=1e-12)


@pytest.mark.parametrize("activation", ["finer", "spder"])
def test_other_activations_are_refused(activation):
    with pytest.raises(TcnnUnavailableError, match=activation.upper()):
        fold(*SineMLP(2, (8,), 1, activation).for_ops()[:4])


def test_where_it_cannot_run_one_line_says_why():
    network = SineMLP(2, (8,), 1)
    with pytest.raises(TcnnUnavailableError) as caught:
        TcnnNetwork(*network.for_ops())
    wanted = "CUDA only" if importlib.util.find_spec("tinycudann") else "not installed"
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    not torch.cuda.is_available() or why_not(torch.device("cuda")) is not None, reason="no CUDA device with tinycudann"
)
def test_tinycudann_itself_agrees():
    network = SineMLP(2, (60, 48), 3, "siren", 15.0, 15.0).cuda()
    made = TcnnNetwork(*network.for_ops())
    assert made.error(2 * torch.rand(4096, 2, device="cuda") - 1) < 0.05


@pytest.mark.parametrize(
    ("asked", "activation", "said"),
    [
        ("fast", "siren", "AIRE_INFERENCE is 'fast'; it must be own or tinycudann"),
        ("tinycudann", "finer", "plain sines only, not FINER"),
        ("tinycudann", "siren", "AIRE_INFERENCE is tinycudann, and tinycudann"),
    ],
)
def test_what_cannot_evaluate_is_refused_in_one_line(monkeypatch, asked, activation, said):
    monkeypatch.setenv("AIRE_INFERENCE", asked)
    if why_not(torch.device("cuda" if torch.cuda.is_available() else "cpu")) is None and (asked, activation) == (
        "tinycudann",
        "siren",
    ):
        pytest.skip("tinycudann is here")
    with pytest.raises(TcnnUnavailableError) as caught:
        evaluator(activation)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_training_that_asks_for_it_ends_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("AIRE_INFERENCE", "anything")
    with pytest.raises(SystemExit, match="AIRE_INFERENCE is 'anything'"):
        train(tiny_config("image", tmp_path))


def test_an_evaluator_is_asked_outside_training_and_follows_the_weights(monkeypatch):
    """The evaluator's own logic, with tiny-cuda-nn's computation in its place."""
    made = []

    class Emulated(torch.nn.Module):
        def __init__(self, *network):
            super().__init__()
            made.append(fold(*network[:4]))

        def forward(self, x):
            return _emulated(made[-1], x).half()

    monkeypatch.setattr(tcnn, "TcnnNetwork", Emulated)
    network = SineMLP(2, (9, 7), 3, "siren", 5.0, 5.0)
    network.evaluator = tcnn.TcnnEvaluator()
    x = 2 * torch.rand(4, 25, 2) - 1
    for change in (1.0, 0.5):
        with torch.no_grad():
            network.affines()[1].weight *= change
        expected = network(x).detach()
        assert network(x).requires_grad
        network.eval()
        with torch.no_grad():
            got, first = network(x), network.first_output(x)
            network(x)
        assert got.dtype == torch.float32
        assert torch.allclose(got, expected, atol=2e-3)
        assert torch.equal(first, got[..., 0])
        network.train()
    assert len(made) == 2  # once for each state of the weights
    network.eval()
    with torch.no_grad():
        assert network(x[:0]).shape == (0, 25, 3)
        assert copy.deepcopy(network)(x).shape == (4, 25, 3)
