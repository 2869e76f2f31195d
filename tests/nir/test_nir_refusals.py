"""NIR: what is refused at export and at import, by name."""

import math

import pytest
import torch
from torch import nn

from msf_pmsn_plugins import neurons
from msf_pmsn_plugins.surrogate import Custom, Soft
from tolerances import assert_same

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")
snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from nir_nets import BATCH, HIDDEN, STEPS, graph_of, lif, randn, steps  # noqa: E402

from msf_pmsn_plugins.nir import export_to_nir, import_from_nir  # noqa: E402
from msf_pmsn_plugins.snntorch import MSF, PMSN, SnnTorchNeuron  # noqa: E402
from msf_pmsn_plugins.spikingjelly import MSFNode  # noqa: E402


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.fc, self.lif, self.raw, self.drop = (
            nn.Linear(3, 3),
            MSF.published(**HIDDEN),
            MSF.published(),
            nn.Dropout(),
        )
        self.function = function

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda net, x: torch.relu(net.lif(x)), "relu"),
        (lambda net, x: net.lif(x) + 1, "add"),
        (lambda net, x: net.lif(x).add(x, alpha=2), "add"),
        (lambda net, x: net.lif(x) * x, "mul"),
        (lambda net, x: net.lif(net.fc(net.lif(x))), "called twice"),
        (lambda net, x: torch.stack([net.lif(step) for step in x.unbind(0)]), "cannot be traced"),
        (lambda net, x: net.lif(x[0]), "getitem"),
        (lambda net, x: net.lif(net.fc(x) + net.fc.bias), "bias"),
        (lambda net, x: net.fc(net.raw(x)[1]), "getitem"),
        (lambda net, x: net.fc(net.raw(x)), r"take the first, \[0\]"),
        (lambda net, x: net.raw(x)[1], "0 results"),
        (lambda net, x: (net.lif(x), net.fc(x)), "2 results"),
        (lambda net, x: net.fc((net.lif(x) + x) + x), "added to itself"),
        (lambda net, x: net.fc(net.drop(x) + x), "added to itself"),
        (lambda net, x: net.fc(x) + x, "nirtorch cannot"),
    ],
    ids=[
        "function",
        "constant",
        "scaled",
        "product",
        "twice",
        "loop",
        "index",
        "parameter",
        "state",
        "tuple",
        "state-out",
        "two-out",
        "double",
        "double-dropout",
        "input-out",
    ],
)
def test_an_operation_without_a_node_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        export_to_nir(Calls(function), torch.zeros(3, 3))


class Louder(MSF):
    def forward(self, x):
        return 2 * super().forward(x)


class Leaking(neurons.MSF):
    pass


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (
            lambda: [nn.Linear(3, 3), nn.BatchNorm1d(3), MSF.published(**HIDDEN)],
            (2, 3),
            "'1' is a BatchNorm1d.*fuse",
        ),
        (lambda: [nn.Linear(3, 3), nn.ReLU()], (2, 3), "'1' is a ReLU"),
        (lambda: [snn.Synaptic(0.9, 0.9, **HIDDEN)], (2, 3), "Synaptic"),
        (lambda: [Scaled(3, 3)], (2, 3), "has linear"),
        (
            lambda: [MSF.published(**HIDDEN), MSF.published(sequence=True, **HIDDEN)],
            (4, 2, 3),
            "some sequences",
        ),
        (lambda: [nn.Linear(3, 3), MSF.published(**HIDDEN)], (2, 4, 3), "flatten it"),
        (lambda: [nn.Conv2d(1, 1, 3, padding_mode="circular", padding=1)], (2, 1, 4, 4), "circular"),
        (lambda: [nn.AvgPool2d(2, ceil_mode=True)], (2, 1, 5, 5), "ceil_mode"),
        (lambda: [MSF.published(sequence=True, **HIDDEN), nn.Flatten(1)], (4, 2, 3, 2), "batch or time"),
        (lambda: [PMSN(**HIDDEN)], (2, 3), "not known"),
        (lambda: [MSF.published(state_quant=torch.round, **HIDDEN)], (2, 3), "state_quant"),
        (lambda: [MSF.published(spike_grad=Soft("atan"), **HIDDEN)], (2, 3), "soft surrogate"),
        (lambda: [neurons.MSN(3)], (4, 2, 3), "MSN has no node"),
        (lambda: [Louder(**HIDDEN)], (2, 3), "'0' .Louder.: Louder has no node"),
        (lambda: [SnnTorchNeuron(Leaking(), **HIDDEN)], (2, 3), "Leaking has no node"),
    ],
    ids=[
        "norm",
        "relu",
        "stock",
        "subclass",
        "modes",
        "matrix",
        "padding",
        "pooling",
        "flatten",
        "lazy",
        "quantised",
        "soft",
        "msn",
        "own-node",
        "own-neuron",
    ],
)
def test_a_module_without_a_node_is_refused(net, x, message):
    with pytest.raises(ValueError, match=message):
        export_to_nir(nn.Sequential(*net()), torch.zeros(x))


@pytest.mark.filterwarnings("ignore:Inhibition:UserWarning")
def test_inhibition_is_refused():
    with pytest.raises(ValueError, match=r"'0' \(MSF\): inhibition"):
        export_to_nir(MSF.published(inhibition=True), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "kwargs",
    [{"learn_graded_spikes_factor": True}, {"spike_grad": Custom(torch.sigmoid)}],
    ids=["graded", "surrogate"],
)
def test_what_is_lost_for_training_is_said(kwargs):
    with pytest.warns(UserWarning, match="exported as a number|trains with its default"):
        export_to_nir(MSF.published(**kwargs), torch.zeros(2, 3))


@pytest.mark.parametrize("dt", [0.0, -1e-3, math.nan])
def test_bad_dt(dt):
    with pytest.raises(ValueError, match="dt must be positive"):
        export_to_nir(MSF.published(), torch.zeros(2, 3), dt=dt)


@pytest.mark.parametrize(
    ("node", "host", "message"),
    [
        (lambda: lif(tau=[2e-4, 3e-4]), "snntorch", "tau differs"),
        (lambda: lif(v_leak=[0.5, 0.5]), "snntorch", "leaks to 0.5"),
        (lambda: lif(tau=[5e-5] * 2), "snntorch", "shorter than the time step"),
        (lambda: lif(v_reset=[-1.0] * 2, v_leak=[-1.0] * 2), "snntorch", "has no v_reset=-1"),
    ],
    ids=["heterogeneous", "leak", "fast", "reset"],
)
def test_a_lif_that_is_no_msf_is_refused(node, host, message):
    with pytest.raises(ValueError, match=f"node 'lif'.*{message}"):
        import_from_nir(graph_of(node()), host)


@pytest.mark.parametrize(("r", "scale"), [(2.0, 1.0), (1.0, 0.5), (5.0, 2.5)])
def test_resistance_is_a_gain(r, scale):
    x = randn(STEPS, BATCH, 2)
    plain, scaled = (
        import_from_nir(graph_of(lif()), "snntorch"),
        import_from_nir(graph_of(lif(r=[r] * 2)), "snntorch"),
    )
    assert_same(steps(scaled, x)[0], steps(plain, scale * x)[0])
    if scale != 2.5:
        assert_same(
            steps(import_from_nir(graph_of(lif(r=[r] * 2)), "spikingjelly"), x)[0], steps(plain, scale * x)[0]
        )


@pytest.mark.parametrize(
    ("make", "there", "message"),
    [
        (lambda: MSF.published(reset_mechanism="subtract"), "spikingjelly", "no reset 'subtract'"),
        (lambda: MSF.published(reset_mechanism="none"), "spikingjelly", "no reset 'none'"),
        (lambda: MSF.published(graded_spikes_factor=2.0), "spikingjelly", "no graded_spikes_factor"),
        (lambda: MSFNode.published(v_reset=None), "snntorch", "before the decay"),
        (lambda: MSFNode.published(v_reset=-1.0), "snntorch", "v_reset=-1"),
        (lambda: MSFNode.published(charge="lif", tau=2.0), "snntorch", "charge='lif'"),
    ],
    ids=["subtract", "none", "graded", "soft", "v-reset", "charge"],
)
def test_what_the_other_framework_has_not_is_refused(make, there, message):
    graph = export_to_nir(make(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=message):
        import_from_nir(graph, there)


def test_bad_graphs():
    import numpy as np

    with pytest.raises(ValueError, match="unknown host 'lava'; known: spikingjelly, snntorch"):
        import_from_nir(graph_of(lif()), "lava")
    with pytest.raises(TypeError, match="NIRGraph or a path, got LIF"):
        import_from_nir(lif(), "snntorch")
    with pytest.raises(ValueError, match=r"node 'delay' is a Delay.*known: Affine"):
        import_from_nir(graph_of(nir.Delay(delay=np.ones(2))), "snntorch")
    graph = graph_of(lif(), nir.Linear(np.eye(2)))
    graph.edges.append(("linear", "lif"))
    for host, words in (("snntorch", {"sequence": True}), ("spikingjelly", {"step_mode": "m"})):
        with pytest.raises(ValueError, match="the graph is recurrent .*runs step by step"):
            import_from_nir(graph, host, **words)


def test_a_layer_that_does_not_fit_is_named():
    net = nn.Sequential(nn.Linear(6, 4), MSF.published(init_hidden=True), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"'2' \(Linear\) with an input of shape \(1, 4\)"):
        export_to_nir(net, torch.zeros(1, 6))
