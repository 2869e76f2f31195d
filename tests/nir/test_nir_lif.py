"""NIR: MSF with one threshold as NIR's own LIF."""

import copy
import math

import pytest
import torch
from torch import nn

from msf_pmsn_plugins.surrogate import Soft
from tolerances import assert_same

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")
snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from nir_nets import BATCH, HIDDEN, STEPS, lif_net, randn, steps  # noqa: E402

from msf_pmsn_plugins.nir import export_to_nir, import_from_nir  # noqa: E402
from msf_pmsn_plugins.snntorch import MSF, PMSN, ParallelIF  # noqa: E402
from msf_pmsn_plugins.spikingjelly import FUNCTIONAL, MSFNode  # noqa: E402


def test_lif_has_the_published_fields():
    node = export_to_nir(MSF.published(0.75, 0.5, D=1), torch.zeros(2, 3), standard=True, dt=1e-3).nodes["_0"]
    assert type(node) is nir.LIF
    assert node.tau.tolist() == [4e-3] * 3  # 1 - dt/tau = 0.75
    assert node.r.tolist() == [4.0] * 3  # dt/tau * r = 1: the input as it is
    assert node.v_leak.tolist() == node.v_reset.tolist() == [0.0] * 3
    assert (node.v_threshold < 0.5).all()  # NIR fires above, MSF at it
    assert (torch.nextafter(torch.tensor(node.v_threshold), torch.tensor(1.0)) == 0.5).all()
    node = export_to_nir(
        MSFNode.published(D=1, tau=math.inf), torch.zeros(2, 3), standard=True, dt=1e-3
    ).nodes["_0"]
    assert type(node) is nir.IF
    assert node.r.tolist() == [1e3] * 3


@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.25, 0.3, 0.7, 0.9, 0.99, 1.0])
def test_lif_round_trip_at_ties_too(decay, host, tmp_path):
    net = nn.Sequential(MSF.published(decay, 0.75, D=1, **HIDDEN))
    graph = export_to_nir(net, torch.zeros(2, 4), standard=True)
    nir.write(tmp_path / "lif.nir", graph)
    assert {type(node) for node in nir.read(tmp_path / "lif.nir").nodes.values()} <= {
        nir.Input,
        nir.Output,
        nir.LIF,
        nir.IF,
    }
    copied = import_from_nir(tmp_path / "lif.nir", host)
    x = torch.randint(-2, 5, (STEPS, 2, 4), generator=torch.Generator().manual_seed(0)) / 4
    out, kept = steps(net, x)
    same, others = steps(copied, x)
    assert any((mem[0] == 0.75).any() for mem in kept)
    assert_same(same, out)
    if host == "snntorch":
        for a, b in zip(kept, others, strict=True):
            assert_same(b[0], a[0])


@pytest.mark.parametrize("dt", [1e-4, 1e-3, 0.37])
def test_decays_survive_the_time_constant(dt):
    decays = torch.linspace(0, 0.999, 100)
    net = nn.Sequential(*(MSF.published(decay.item(), D=1, **HIDDEN) for decay in decays))
    graph = export_to_nir(net, torch.zeros(1, 1), standard=True, dt=dt)
    back = import_from_nir(graph, "snntorch", dt=dt)
    assert_same(torch.tensor([m.neuron.decay for m in back.modules() if isinstance(m, MSF)]), decays)


def test_stock_importers_read_our_lif():
    """snnTorch's on both versions, bit for bit; SpikingJelly's where it has one, which fires at its threshold."""
    net, x = lif_net(), randn(40, BATCH, 6)
    graph = export_to_nir(net, x[0], standard=True)
    spikes, _ = steps(net, x)
    from snntorch.import_nir import import_from_nir as stock

    stock_net = stock(copy.deepcopy(graph))
    outputs = [stock_net(step) for step in x]
    assert_same(torch.stack([out[0] if isinstance(out, tuple) else out for out in outputs]), spikes)
    if FUNCTIONAL:
        from spikingjelly.activation_based import nir_exchange

        node, state, outputs = nir_exchange.import_from_nir(copy.deepcopy(graph)), None, []
        for step in x:
            out, state = node(step, state)
            outputs.append(out)
        assert (torch.stack(outputs) == spikes).all()


def test_leaky_goes_in_as_lif_only_where_it_is_one():
    leaky = snn.Leaky(0.9, threshold=0.5, reset_mechanism="zero", **HIDDEN)
    node = export_to_nir(leaky, torch.zeros(2, 3)).nodes["_0"]
    assert node.v_threshold.tolist() == [0.5] * 3  # it fires above, as NIR
    x = torch.randint(-2, 5, (STEPS, 2, 3), generator=torch.Generator().manual_seed(0)) / 4
    copied = import_from_nir(nir.NIRGraph.from_list(node), "snntorch")
    assert_same(steps(copied, x)[0], steps(leaky, x)[0])
    many = snn.Leaky(torch.rand(3), threshold=torch.rand(3), reset_mechanism="zero", **HIDDEN)
    node = export_to_nir(many, torch.zeros(2, 3)).nodes["_0"]
    assert_same(torch.tensor(node.v_threshold), many.threshold)
    assert_same(1 - torch.tensor(1e-4 / node.tau).float(), many.beta)
    copied = import_from_nir(nir.NIRGraph.from_list(node), "snntorch")
    assert_same(steps(copied, x)[0], steps(many, x)[0])
    for kwargs, message in (
        ({}, "'zero' alone"),
        ({"reset_mechanism": "zero", "graded_spikes_factor": 2.0}, "graded_spikes_factor"),
    ):
        with pytest.raises(ValueError, match=message):
            export_to_nir(snn.Leaky(0.9, **kwargs, **HIDDEN), torch.zeros(2, 3))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", [(3,), (3, 4)])
@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
def test_numbers_of_each_neuron_as_lif_and_back(host, shape, learned):
    generator = torch.Generator().manual_seed(0)
    beta, threshold = (0.2 + torch.rand(shape, generator=generator) / 2 for _ in range(2))
    net = MSF.published(beta, threshold, D=1, learn_beta=learned, learn_threshold=learned, **HIDDEN)
    x = randn(STEPS, BATCH, *shape)
    graph = export_to_nir(net, x[0], standard=True)
    node = graph.nodes["_0"]
    assert type(node) is nir.LIF
    assert node.v_threshold.shape == node.tau.shape == shape
    back = import_from_nir(graph, host)
    (twin,) = [m for m in back.modules() if hasattr(m, "neuron")]
    assert_same(twin.neuron.decay, net.beta)
    assert_same(twin.neuron.v_threshold, threshold)
    spikes = steps(net, x)[0]
    assert 0 < float(spikes.mean()) < 1
    assert_same(steps(back, x)[0], spikes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MSF.published(D=2), "D=2"),
        (lambda: MSF.published(D=1, reset_mechanism="subtract"), "resets to a value"),
        (lambda: MSF.published(D=1, graded_spikes_factor=2.0), "graded_spikes_factor"),
        (lambda: MSF.published(D=1, spike_grad=Soft("atan")), "parts of spikes"),
        (lambda: MSFNode.published(D=1, charge="lif", tau=2.0), "another order"),
        (lambda: PMSN(3), "no primitive for PMSN"),
        (lambda: ParallelIF(), "no primitive for ParallelIF"),
    ],
    ids=["counts", "subtract", "graded", "soft", "charge", "pmsn", "parallel-if"],
)
def test_what_is_no_lif_is_refused(make, message):
    with pytest.raises(ValueError, match=message) as error:
        export_to_nir(nn.Sequential(nn.Linear(3, 3), make()), torch.zeros(2, 3), standard=True)
    assert "'1' (" in str(error.value)


def test_float64_decay_that_no_time_constant_has():
    with pytest.raises(ValueError, match="standard=False, or from float32"):
        export_to_nir(MSF.published(0.1, D=1), torch.zeros(1, 1, dtype=torch.float64), standard=True)
    export_to_nir(MSF.published(0.25, D=1), torch.zeros(1, 1, dtype=torch.float64), standard=True)
