"""Single steps and NeuroBench's batches: no sequence is taken for one step, and an exception leaves nothing behind."""
# ruff: noqa: E402

import pytest
import torch
from torch import nn

for needed in ("neurobench", "spikingjelly", "snntorch"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")
import snntorch as snn
from neurobench.benchmarks import Benchmark
from neurobench.metrics import workload
from spikingjelly.activation_based import neuron as sj_neuron
from torch.utils.data import DataLoader, TensorDataset

from msf_pmsn_plugins import neurobench as nb
from msf_pmsn_plugins import state
from msf_pmsn_plugins.snntorch import MSF
from msf_pmsn_plugins.spikingjelly import MSFNode

OURS = [nb.SynapticOperations, nb.MembraneUpdates, nb.NeuronOperations]
X = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))


def benchmark(model, *more):
    return Benchmark(model, DataLoader(TensorDataset(X, torch.zeros(4)), 4), [], [], [[], [*OURS, *more]])


class Looping(nn.Module):
    """[T, N, 5] -> [T, N, 6]: a loop of its own over time, the states passed by hand or kept."""

    def __init__(self, neuron):
        super().__init__()
        self.fc, self.act = nn.Linear(5, 6), neuron

    def forward(self, x):
        if self.act.init_hidden:
            return torch.stack([self.act(self.fc(step)) for step in x])
        out, states = [], ()
        for step in x:
            spikes, *states = self.act(self.fc(step), *states)
            out.append(spikes)
        return torch.stack(out)


SINGLE_STEPS = {
    "Leaky": lambda **how: snn.Leaky(beta=0.5, **how),
    "Lapicque": lambda **how: snn.Lapicque(beta=0.5, **how),
    "Synaptic": lambda **how: snn.Synaptic(alpha=0.5, beta=0.4, **how),
    "Alpha": lambda **how: snn.Alpha(alpha=0.5, beta=0.4, **how),
    "RLeaky": lambda **how: snn.RLeaky(beta=0.5, linear_features=6, **how),
    "RSynaptic": lambda **how: snn.RSynaptic(alpha=0.5, beta=0.4, linear_features=6, **how),
    "MSF": lambda **how: MSF(beta=0.5, D=4, **how),
}


@pytest.mark.parametrize("name", SINGLE_STEPS)
def test_single_steps_are_not_taken_for_a_sequence(name):
    """A stock neuron that is given [T, N, *] at once would forget all between the steps."""
    costs = {"RLeaky": 9, "RSynaptic": 9}
    for twice in (False, True):
        node = SINGLE_STEPS[name](init_hidden=True)
        parts = [nn.Linear(5, 6), node, *[nn.Linear(6, 6), node] * twice]
        words = r"does not fit 1.* takes single steps.*give run='steps'"
        with pytest.raises(ValueError, match=words):
            nb.Model(nn.Sequential(*parts), operations=costs)(X)
    model = nb.Model(nn.Sequential(*parts[:2]), "steps", operations=costs)
    assert model(X).shape == (4, 6, 6)
    if name == "MSF":  # it says that it takes single steps: known before a batch
        return
    one = nb.Model(nn.Sequential(*parts[:2]), operations=costs)
    assert one(X[:, :1]).shape == (4, 1, 6), "one step is one step"
    for hidden in (True, False):
        torch.manual_seed(0)
        net = Looping(SINGLE_STEPS[name](init_hidden=hidden))
        result = benchmark(nb.Model(net, operations=costs)).run(quiet=True)
        assert result["NeuronOperations"]["Neuron Dense Ops"] == 6 * 6 * nb.operations(net.act, costs)


class Strided(nn.Module):
    """Two of the six steps at a time: its neuron takes three."""

    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(10, 6), snn.Leaky(beta=0.5, init_hidden=True)

    def forward(self, x):
        pairs = x.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)
        return torch.stack([self.act(self.fc(pair)) for pair in pairs])


class Averaged(nn.Module):
    """A neuron that takes sequences, and one that takes the average over time."""

    def __init__(self):
        super().__init__()
        self.act, self.fc = MSFNode(D=4, step_mode="m"), nn.Linear(5, 6)
        self.read = snn.Leaky(beta=0.5, init_hidden=True)

    def forward(self, x):
        return self.read(self.fc(self.act(x).mean(0))).unsqueeze(0)


@pytest.mark.parametrize("net", [Strided, Averaged])
def test_a_net_with_its_own_way_with_time_is_taken(net):
    torch.manual_seed(0)
    found = nb.Model(net())(X)
    assert found.shape[:2] == (4, 3 if net is Strided else 1)


def test_steps_that_are_folded_into_the_batch_are_seen():
    leaky = snn.Leaky(beta=0.5, init_hidden=True)
    net = nn.Sequential(nn.Flatten(0, 1), nn.Linear(5, 6), leaky, nn.Unflatten(0, (6, 4)))
    with pytest.raises(ValueError, match=r"does not fit 2 \(Leaky\), .* was given all 6 at once"):
        nb.Model(net)(X)


def test_neurons_of_spikingjellys_old_layout_go_by_their_names():
    class BaseNode(nn.Module):  # a copy, as old model files hold it
        v_reset, decay_input = 0.0, True

        def __init__(self):
            super().__init__()
            self.reset()

        def reset(self):
            self.v = 0.0

    class LIFNode(BaseNode):
        def forward(self, x):
            self.v = self.v + (x - self.v) / 2
            spikes = (self.v >= 1).float()
            self.v = self.v * (1 - spikes)
            return spikes

    class MultiStepLIFNode(LIFNode):
        def forward(self, x):
            return torch.stack([super(MultiStepLIFNode, self).forward(step) for step in x])

    assert nb.Model(nn.Sequential(MultiStepLIFNode()))(X).shape == X.shape
    with pytest.raises(ValueError, match=r"does not fit 0 \(LIFNode\), .* was given all 6 at once"):
        nb.Model(nn.Sequential(LIFNode()))(X)


def test_an_exception_leaves_no_hook_and_nothing_to_count():
    class Failing(nn.Module):
        def __init__(self, node):
            super().__init__()
            self.act, self.fails = node, False

        def forward(self, x):
            out = self.act(x)
            if self.fails:
                raise RuntimeError("boom")
            return out

    for node in (MSFNode(D=4, step_mode="m"), sj_neuron.LIFNode(step_mode="m")):
        net = Failing(node)
        model = nb.Model(net)
        bench = benchmark(model, workload.ActivationSparsity)
        expected = bench.run(quiet=True)
        net.fails = True
        with pytest.raises(RuntimeError, match="boom"):
            bench.run(quiet=True)
        assert not node._forward_hooks
        assert not node._forward_pre_hooks
        assert not getattr(node, "store_v_seq", False), "left as it was"
        assert not state.read(net), "and at rest"
        net.fails = False
        assert bench.run(quiet=True) == expected, "the same benchmark watches again"
        model(X)  # in between, of no benchmark's batches
        assert bench.run(quiet=True) == expected
        model.cleanup_hooks()
        model(X)
        assert not node._forward_hooks, "no benchmark, no hook"
