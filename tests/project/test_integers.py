"""Integers and booleans are taken as torch's default dtype in every way of calling a neuron."""

import copy

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from helpers import all_backends
from msf_pmsn_plugins import deploy, energy, export, neurons, nir, plot, snntorch, swap
from msf_pmsn_plugins.spikingjelly import MSFNode, ParallelIFNode, PMSNNode
from msf_pmsn_plugins.spikingjelly.version import FUNCTIONAL
from tolerances import assert_same

INTEGERS = pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
DEFAULTS = pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
NEURONS = {
    "msf": neurons.MSF,
    "own_surrogate": lambda: neurons.MSF(surrogate=surrogate.ATan(spiking=True)),
    "pmsn": lambda: neurons.PMSN(5),
    "global": lambda: neurons.PMSN(5, context="global"),
    "msn": lambda: neurons.MSN(5),
    "parallel_if": neurons.ParallelIF,
}


def margin():
    node = PMSNNode(5)
    node.v_threshold = torch.linspace(0.5, 1.5, 10).reshape(2, 5)
    return node


# Each as a function of whether it takes sequences.
NODES = {
    "MSFNode": lambda whole: MSFNode(step_mode="m" if whole else "s"),
    "host_surrogate": lambda whole: MSFNode(surrogate_function=surrogate.ATan(), store_v_seq=True),
    "PMSNNode": lambda whole: PMSNNode(5, store_v_seq=True),
    "margin": lambda whole: margin(),
    "ParallelIFNode": lambda whole: ParallelIFNode(),
    "MSF": lambda whole: snntorch.MSF(init_hidden=True, sequence=whole),
    "quantised": lambda whole: snntorch.MSF(init_hidden=True, state_quant=torch.tanh, sequence=whole),
    "inhibited": lambda whole: snntorch.MSF(init_hidden=True, inhibition=True, sequence=whole),
    "PMSN": lambda whole: snntorch.PMSN(5, init_hidden=True, sequence=whole),
    "ParallelIF": lambda whole: snntorch.ParallelIF(init_hidden=True, sequence=whole),
}


@pytest.fixture(autouse=True)
def the_default_comes_back():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def frames(dtype=torch.int64):
    return torch.randint(0, 4, (6, 2, 5), generator=torch.Generator().manual_seed(0)).to(dtype)


@INTEGERS
@DEFAULTS
@pytest.mark.parametrize("name", NEURONS)
def test_neurons(name, default, dtype):
    torch.manual_seed(0)
    held, x_seq = NEURONS[name](), frames(dtype)
    torch.set_default_dtype(default)
    expected, last, membranes = held.sequence(x_seq.to(default), membrane=True)
    assert expected.any()
    assert expected.dtype == default
    found, state, m_seq = held.sequence(x_seq, membrane=True)
    for one, other in zip((found, *state, m_seq), (expected, *last, membranes), strict=True):
        assert_same(one, other)
    lengths = torch.tensor([2, 6])
    assert_same(held(x_seq, lengths=lengths)[0], held(x_seq.to(default), lengths=lengths)[0])
    assert held(x_seq[:0])[0].dtype == default
    if name == "global":
        return  # it has no steps
    assert_same(held.trajectory(x_seq)[0], expected)
    for step in (held.single, held.step):
        state = held.initial_state(x_seq[0])
        for x, s in zip(x_seq, held.sequence(x_seq.to(default))[0], strict=True):
            spikes, state, _ = step(x, state)
            assert_same(spikes, s)


@all_backends
def test_backends(backend):
    held = neurons.MSF(backend=backend)
    assert_same(held(frames())[0], held(frames().float())[0])
    assert_same(neurons.parallel_reset(frames())[0], neurons.parallel_reset(frames().float())[0])


@INTEGERS
@DEFAULTS
@pytest.mark.parametrize("whole", [False, True], ids=["steps", "sequence"])
@pytest.mark.parametrize("name", NODES)
def test_nodes(name, whole, default, dtype):
    torch.manual_seed(0)
    node, x_seq = NODES[name](whole), frames(dtype)
    if isinstance(node, neuron.BaseNode):
        node.step_mode = "m" if whole else "s"
    torch.set_default_dtype(default)
    twin, given = copy.deepcopy(node), x_seq.to(default)
    found = [node(x) for x in ([x_seq] if whole else x_seq)]
    expected = [twin(x) for x in ([given] if whole else given)]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == default
        assert_same(one, other)
    for one, other in zip(node.carried, twin.carried, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_the_hosts_results(dtype):
    """The stock neurons' spikes and dtypes; of booleans they raise."""
    x_seq = frames(dtype)
    for mode, x in (("m", x_seq), ("s", x_seq[0])):
        stock, ours = neuron.IFNode(step_mode=mode), MSFNode(D=1, charge="if", step_mode=mode)
        ours.v_threshold, ours.v_reset = 1.0, 0.0
        assert_same(ours(x), stock(x))
        assert_same(ours.v, stock.v)
    assert_same(snntorch.MSF(0.9, D=1)(x_seq[0] * 2)[0], snn.Leaky(0.9)(x_seq[0] * 2)[0])


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = (snn.Leaky(0.9, init_hidden=True) for _ in range(2))
        self.linear = nn.Linear(5, 4)

    def forward(self, x_seq):
        return torch.stack([self.last(self.linear(self.first(x))) for x in x_seq])


@pytest.mark.parametrize("target", [swap.MSF(D=4), swap.PMSN()], ids=["msf", "pmsn"])
def test_swaps(target):
    torch.manual_seed(0)
    net = nn.Sequential(neuron.LIFNode(step_mode="m"), nn.Linear(5, 4), neuron.IFNode(step_mode="m"))
    # In evaluation the stock nodes of 0.0.0.0.14 answer integers with integers, which Linear refuses.
    for model in (net, Loop()) if FUNCTIONAL else (Loop(),):
        plan = swap.plan(model, frames(), target)
        assert str(plan) == str(swap.plan(model, frames().float(), target))
        plan.apply()
        assert model(frames()).dtype == torch.float32


def test_tools():
    """What runs a network on an example, or counts what it does, is told the same as of floats."""
    torch.manual_seed(0)
    net = nn.Sequential(MSFNode(D=2), nn.Linear(5, 4)).eval()
    tables, answers = [], []
    for x in (frames()[0], frames()[0].float()):
        with torch.no_grad(), energy.counting(net) as counts:
            net(x)
        net[0].reset()
        step = export.Streaming(net)
        binary = deploy.to_binary(net, x, exact=False)
        graph = nir.export_to_nir(nn.Sequential(MSFNode(D=1), nn.Linear(5, 4)), x)
        tables.append((str(counts), sorted(graph.nodes)))
        answers.append([binary(x), *step(x, *step.initial_states(x))])
        net[0].reset()
    for one, other in zip(*answers, strict=True):
        assert_same(one, other)
    assert tables[0] == tables[1]
    plot.gradient_by_lag(neurons.MSF(), frames())
