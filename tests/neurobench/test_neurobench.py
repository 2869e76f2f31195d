"""NeuroBench's harness: rest between batches, counts as accumulations, membranes of every neuron."""
# ruff: noqa: E402

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

for needed in ("neurobench", "spikingjelly", "snntorch"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")
import snntorch as snn
from neurobench.benchmarks import Benchmark
from neurobench.metrics import workload
from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
from neurobench.models import SNNTorchModel, TorchModel
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch.utils.data import DataLoader, TensorDataset

from msf_pmsn_plugins import energy, neurons, state
from msf_pmsn_plugins import neurobench as nb
from msf_pmsn_plugins.snntorch import MSF, PMSN, ParallelIF, reset
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode

OURS = [nb.SynapticOperations, nb.MembraneUpdates, nb.NeuronOperations]
THEIRS = [workload.SynapticOperations, workload.MembraneUpdates, workload.NeuronOperations]


def randn(*shape, seed=0):
    """Multiples of 1/64: sums of a few of them are exact in float32."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((128 * values).round() / 64).float()


def grid(net):
    """``net`` with weights on a coarse grid, so that every path adds up to the same bits; some are zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1 or parameter.numel() > 1:
                parameter.copy_((16 * parameter).round() / 8)  # large enough to fire
    return net


def run(model, x, metrics, batch=4, static=(), y=None):
    data = TensorDataset(x, torch.zeros(len(x)) if y is None else y)
    return Benchmark(model, DataLoader(data, batch), [], [], [list(static), metrics]).run(quiet=True)


class Stepped(nn.Module):
    """A snnTorch net that takes one step [N, 5] and keeps its states; NeuroBench resets it by name."""

    def __init__(self, neuron):
        super().__init__()
        self.fc1, self.act1 = nn.Linear(5, 6), neuron()
        self.fc2, self.act2 = nn.Linear(6, 3), neuron()
        grid(self)

    def forward(self, x):
        s = self.act2(self.fc2(self.act1(self.fc1(x))))
        return s, s


def leaky():
    return snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism="zero")


def counting_msf(**settings):
    """The same neuron as one of ours."""
    return MSF(beta=0.5, init_hidden=True, reset_mechanism="zero", **settings)


def pair(D=1):
    """A net of Leaky and one of MSF with the same weights."""
    theirs, ours = Stepped(leaky), Stepped(lambda: counting_msf(D=D))
    ours.load_state_dict(theirs.state_dict(), strict=False)
    return theirs, ours


def test_leaky_has_the_figures_of_neurobench_itself_and_so_has_msf_with_one_threshold():
    x = randn(10, 7, 5)
    theirs, ours = pair()
    expected = run(SNNTorchModel(theirs), x, THEIRS)
    assert expected["SynapticOperations"]["Effective_ACs"] > 0
    assert 0 < expected["MembraneUpdates"] <= 7 * 9
    for net in (theirs, ours):
        assert run(nb.Model(net, "steps"), x, OURS) == expected


def test_neurobench_alone_books_counts_as_multiplications_and_misses_membranes():
    """What the adapter is for."""
    x = randn(10, 7, 5)
    _, net = pair(D=4)
    with pytest.raises(ValueError, match="it was left by another batch"):
        run(SNNTorchModel(net), x, THEIRS)
    reset(net)
    alone = run(SNNTorchModel(net), x, THEIRS, batch=10)
    ours = run(nb.Model(net, "steps"), x, OURS)
    assert ours["SynapticOperations"]["Effective_MACs"] < alone["SynapticOperations"]["Effective_MACs"]
    assert ours["MembraneUpdates"] == alone["MembraneUpdates"] > 0
    assert ours["NeuronOperations"]["Neuron Dense Ops"] == 7 * (6 + 3) * (4 + 3)

    jelly = TorchModel(Sequence(lambda c: MSFNode(step_mode="m")))
    jelly.add_activation_module(MSFNode)
    assert run(jelly, x, THEIRS, batch=10)["MembraneUpdates"] == 0


def test_batches_do_not_leak_into_each_other():
    x = randn(12, 7, 5)
    for net, how in (
        (Stepped(lambda: counting_msf(D=4)), "steps"),
        (Stepped(lambda: ParallelIF(init_hidden=True)), "steps"),
        (Sequence(lambda c: PMSNNode(c, step_mode="m")), "sequence"),
    ):
        model = nb.Model(net, how)
        whole = model(x)
        apart = torch.cat([model(part) for part in x.split(3)])
        assert torch.equal(whole, apart), net
        assert not state.read(net), "the net is left at rest"
    leaking = SNNTorchModel(Stepped(lambda: counting_msf(D=4)))
    first = leaking(x[:3])
    assert not torch.equal(first, leaking(x[:3])), "the control: NeuroBench passes our neurons by"


class Sequence(nn.Module):
    """[T, N, 5] -> [T, N, 3], SpikingJelly."""

    def __init__(self, neuron):
        super().__init__()
        self.fc1, self.act1 = nn.Linear(5, 6), neuron(6)
        self.block = nn.Sequential(nn.Linear(6, 3), neuron(3))
        grid(self)

    def forward(self, x):
        return self.block(self.act1(self.fc1(x)))


def test_a_count_k_is_k_accumulations():
    x = randn(6, 5, 5)
    net = Sequence(lambda c: MSFNode(D=4, step_mode="m", v_threshold=0.25, threshold_step=0.25))
    with torch.no_grad():
        net.block[0].weight[0] = 0.0  # pruned: no operation
    model = nb.Model(net)
    result = run(model, x, OURS)["SynapticOperations"]
    with torch.no_grad():
        s = net.act1(net.fc1(x.transpose(0, 1)))
        model.reset()
    assert s.max() >= 3
    live = (net.block[0].weight != 0).float().sum(0)
    assert result["Effective_ACs"] == float((s * live).sum()) / 6
    assert result["Effective_MACs"] == float(((x != 0) * (net.fc1.weight != 0).float().sum(0)).sum()) / 6
    assert result["Dense"] == 5 * (5 * 6 + 6 * 3)
    assert run(nb.Model(net, real=["block.0"]), x, OURS)["SynapticOperations"]["Effective_ACs"] == 0
    # NeuroBench's own metric on the same hooks: one count above 1 and the layer is multiplied
    assert run(model, x, THEIRS[:1])["SynapticOperations"]["Effective_ACs"] == 0


@pytest.mark.parametrize(
    "layer",
    [
        sj_layer.Conv2d(4, 6, 3, padding=1, stride=2, groups=2, step_mode="m"),
        sj_layer.Conv1d(4, 6, 3, padding=1, step_mode="m"),
        sj_layer.Linear(5, 4, step_mode="m"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_cost_what_energy_counts(layer):
    """Borders, strides and groups included; where there are no counts as NeuroBench does."""
    shape = {"Conv2d": (3, 2, 4, 7, 6), "Conv1d": (3, 2, 4, 7), "Linear": (3, 2, 5)}[type(layer).__name__]
    counts = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(1)).float()
    net = nn.Sequential(layer)
    with torch.no_grad(), energy.counting(net) as expected:
        net(counts)
    work = nb.metrics.work_of(layer, (counts,))
    assert (work.macs, work.accumulates) == (0, expected.accumulates)
    for x in (counts.clamp(max=1), counts * 0.5):
        plain, spiking = nb.library.single_layer_MACs(x, layer)
        dense, _ = nb.library.single_layer_MACs(x, layer, total=True)
        work = nb.metrics.work_of(layer, (x,))
        assert work == ((dense, 0, plain) if spiking else (dense, plain, 0))


NODES = {
    "MSF": lambda c: neurons.MSF(D=4, decay=0.5),
    "MSF, soft": lambda c: neurons.MSF(D=2, decay=0.5, reset_mode="soft"),
    "PMSN": lambda c: neurons.PMSN(c),
    "MSN": lambda c: neurons.MSN(c, 3),
    "ParallelIF": lambda c: neurons.ParallelIF(),
}


def by_hand(net, x):
    """Neurons whose state changes, step after step from rest; [N, T, 5], one sample."""
    total = 0
    layers = [m for m in net.modules() if isinstance(m, neurons.Neuron)]
    fcs = [m for m in net.modules() if isinstance(m, nn.Linear)]
    states = [None] * len(layers)
    for now in x.unbind(1):
        for i, (fc, neuron) in enumerate(zip(fcs, layers, strict=True)):
            before = states[i]
            now, states[i], _ = neuron.step(fc(now), before or neuron.initial_state(fc(now)))
            moved = torch.ones(now.shape, dtype=torch.bool)
            if before is not None:
                parts = zip(before, states[i], strict=True)
                changed = [(a != b).reshape(*now.shape, -1).any(-1) for a, b in parts]
                moved = torch.stack(changed).any(0)
            total += int(moved.sum())
    return total


@torch.no_grad()
@pytest.mark.parametrize("name", NODES)
def test_membrane_updates_are_those_of_single_steps(name):
    # every other step is silent and the first sample all along: not every neuron moves
    x = randn(4, 6, 5)
    x[:, ::2] = 0
    x[0] = 0

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.act1 = nn.Linear(5, 6, bias=False), NODES[name](6)
            self.fc2, self.act2 = nn.Linear(6, 3, bias=False), NODES[name](3)

        def forward(self, x):
            s, _ = self.act1(self.fc1(x))
            return self.act2(self.fc2(s))

    torch.manual_seed(0)
    bare = grid(Bare())
    expected = by_hand(bare, x) / 4
    assert 0 < expected < 6 * 9
    results = run(nb.Model(bare), x, OURS)
    assert results["MembraneUpdates"] == expected
    cost = nb.operations(bare.act1)
    assert results["NeuronOperations"] == {
        "Effective Neuron Ops": expected * cost,
        "Neuron Dense Ops": 6 * 9 * cost,
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", ["msf", "pmsn"])
def test_both_frameworks_and_modes_have_the_same_figures(kind):
    x = randn(5, 6, 5)
    x[0] = 0
    held = {"msf": lambda c: neurons.MSF(D=4, decay=0.5), "pmsn": lambda c: neurons.PMSN(c)}[kind]
    jelly, torchy = {"msf": (MSFNode, MSF), "pmsn": (PMSNNode, PMSN)}[kind]
    results, weights = [], None
    for how in ("sequence", "steps"):
        mode = {"sequence": "m", "steps": "s"}[how]
        for node in (
            lambda c, mode=mode: jelly.from_neuron(held(c), step_mode=mode),
            lambda c, how=how: torchy.from_neuron(held(c), init_hidden=True, sequence=how == "sequence"),
        ):
            torch.manual_seed(0)
            net = Sequence(node)
            linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
            if weights is None:
                weights = [m.state_dict() for m in linear]
            for m, w in zip(linear, weights, strict=True):
                m.load_state_dict(w)
            results.append(run(nb.Model(net, how), x, OURS))
    assert all(result == results[0] for result in results)
    assert results[0]["MembraneUpdates"] > 0


def test_a_neuron_without_single_steps_updates_at_every_one():
    net = Sequence(lambda c: PMSNNode.from_neuron(neurons.PMSN(c, context="global"), step_mode="m"))
    result = run(nb.Model(net), randn(4, 6, 5), OURS)
    assert result["MembraneUpdates"] == 6 * 9


def test_states_passed_by_hand_are_followed():
    """snnTorch's other style: the net passes mem on."""

    class Passing(nn.Module):
        def __init__(self, hidden):
            super().__init__()
            self.fc, self.act = (
                nn.Linear(5, 6),
                MSF(beta=0.5, reset_mechanism="zero", D=4, init_hidden=hidden),
            )
            grid(self)

        def forward(self, x):
            if self.act.init_hidden:
                return torch.stack([self.act(self.fc(step)) for step in x])
            mem, out = self.act.reset_mem(), []
            for step in x:
                s, mem = self.act(self.fc(step), mem)
                out.append(s)
            return torch.stack(out)

    torch.manual_seed(0)
    ours = Passing(False)
    kept = Passing(True)
    kept.fc.load_state_dict(ours.fc.state_dict())

    def alone(net, batch):
        return net(batch.transpose(0, 1)).transpose(0, 1)

    x = randn(5, 6, 5)
    results = [run(nb.Model(net, alone), x, OURS) for net in (ours, kept)]
    assert results[0] == results[1]
    assert results[0]["MembraneUpdates"] > 6


def test_padded_steps_update_nothing():
    x = randn(4, 6, 5)
    net = Sequence(lambda c: PMSNNode(c, step_mode="m"))
    lengths = torch.tensor([6, 3, 1, 0])

    def cut(net, batch):
        with state.padded(net, lengths):
            return net(batch.transpose(0, 1)).transpose(0, 1)

    result = run(nb.Model(net, cut), x, OURS)
    cost = nb.operations(net.act1)
    assert result["NeuronOperations"]["Neuron Dense Ops"] == 10 * 9 * cost / 4
    parts = [run(nb.Model(net), x[i : i + 1, :n], OURS)["MembraneUpdates"] for i, n in enumerate([6, 3, 1])]
    assert result["MembraneUpdates"] == sum(parts) / 4


@pytest.mark.parametrize("mode", "ms")
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_spikingjellys_own_neurons_are_counted_too(mode, v_reset):
    """v_reset=0 and a soft reset, in both step modes; as our node with the same dynamics."""
    x = randn(5, 6, 5)
    results = []
    for node in (
        lambda c: sj_neuron.LIFNode(tau=2.0, v_reset=v_reset, step_mode=mode),
        lambda c: MSFNode(tau=2.0, v_reset=v_reset, D=1, step_mode=mode),
    ):
        torch.manual_seed(0)
        net = Sequence(node)
        results.append(run(nb.Model(net, "sequence" if mode == "m" else "steps"), x, OURS))
        assert not any(getattr(m, "store_v_seq", False) for m in net.modules()), "left as it was"
    assert results[0] == results[1]
    assert 0 < results[0]["MembraneUpdates"] <= 6 * 9


@pytest.mark.parametrize(
    ("neuron", "expected"),
    [
        (neurons.MSF(D=1, decay=0.5), 4),  # v*k, +x, f*m, m - ..: NeuroBench's Leaky
        (neurons.MSF(D=4, decay=0.5), 7),
        (neurons.MSF(D=1, decay=0.5, reset_mode="soft"), 4),
        (neurons.MSF(D=1, decay=0.5, reset_mode="none"), 2),
        (neurons.MSF(D=1, decay=0.5, input_scale=0.5), 5),
        (neurons.MSF(D=1, decay=0.5, v_reset=0.25), 7),
        (MSFNode(D=1), 5),  # v + (x - v)/tau, reset
        (neurons.PMSN(3), 56),
        (neurons.PMSN(3, reset_mode="none"), 53),
        (neurons.PMSN(3, v_threshold=2.0), 57),
        (neurons.ParallelIF(), 3),
        (neurons.MSN(3, 1), 5),
        (snn.Leaky(beta=0.5), 4),
        (snn.Synaptic(alpha=0.5, beta=0.5, reset_mechanism="zero"), 8),
        (sj_neuron.IFNode(), 3),
        (sj_neuron.LIFNode(v_reset=None), 5),
        (sj_neuron.ParametricLIFNode(), 5),
    ],
)
def test_operations_of_an_update(neuron, expected):
    assert nb.operations(neuron) == expected


def test_layers_are_found_once_and_by_their_paths():
    act = MSFNode(D=4, step_mode="m")
    net = nn.Sequential(nn.Linear(5, 5), act, nn.Sequential(nn.Linear(5, 5), act))
    model = nb.Model(net)
    assert [layer["layer_name"] for layer in model.activation_layers()] == ["1"]
    assert len(model.connection_layers()) == 2
    x = randn(4, 6, 5)
    result = run(model, x, [*OURS, nb.ActivationSparsityByLayer, workload.ActivationSparsity])
    assert result["NeuronOperations"]["Neuron Dense Ops"] == 2 * 6 * 5 * nb.operations(act)
    assert result["ActivationSparsityByLayer"] == {"1": result["ActivationSparsity"]}
    assert 0 < result["ActivationSparsity"] < 1
    alone = nb.Model(MSFNode(D=4, step_mode="m"))
    assert run(alone, x, OURS)["MembraneUpdates"] > 0, "the net itself is a neuron"


def test_two_benchmarks_of_one_model_see_it_once():
    x = randn(4, 6, 5)
    model = nb.Model(Sequence(lambda c: MSFNode(D=4, step_mode="m")))
    expected = run(model, x, OURS)
    loader = DataLoader(TensorDataset(x, torch.zeros(4)), 4)
    bench = Benchmark(model, loader, [], [], [[], OURS])
    bench = Benchmark(model, loader, [], [], [[], OURS])  # the first one is collected after this one was made
    assert bench.run(quiet=True) == expected
    del bench
    assert not model.activation_hooks


def test_everything_else_of_neurobench_works_with_it():
    x, y = randn(8, 6, 5), torch.randint(3, (8,), generator=torch.Generator().manual_seed(0))
    net = Sequence(lambda c: PMSNNode(c, step_mode="m"))
    model = nb.Model(net)
    result = Benchmark(
        model,
        DataLoader(TensorDataset(x, y), 4),
        [],
        [lambda s: s.sum(1).argmax(1)],
        [[ParameterCount, Footprint, ConnectionSparsity], [workload.ClassificationAccuracy]],
    ).run(quiet=True)
    assert result["ParameterCount"] == sum(p.numel() for p in net.parameters())
    answer = model(x).sum(1).argmax(1)
    assert result["ClassificationAccuracy"] == pytest.approx(float((answer == y).float().mean()))
    batch_first = nb.Model(nn.Flatten(), "whole")
    assert torch.equal(batch_first(x), x.flatten(1))


def test_an_rnn_cell_is_left_to_neurobench():
    cell = nn.RNNCell(5, 4)
    x, h = randn(3, 5), randn(3, 4)
    work = nb.metrics.work_of(cell, (x, h))
    assert work.macs == nb.library.single_layer_MACs((x, h), cell)[0] > 0


def test_what_is_wrong_is_said_before_the_run():
    net = Sequence(lambda c: MSFNode(step_mode="m"))
    with pytest.raises(ValueError, match="unknown run 'fast'; known: 'sequence', 'steps', 'whole'"):
        nb.Model(net, "fast")
    with pytest.raises(ValueError, match=r"run='steps' does not fit act1, which takes whole sequences"):
        nb.Model(net, "steps")
    with pytest.raises(ValueError, match=r"run='sequence' does not fit act1, which takes single steps"):
        nb.Model(Stepped(lambda: counting_msf(D=4)))
    with pytest.raises(ValueError, match=r"not layers of the net: \['fc9'\]"):
        nb.Model(net, real=["fc9"])
    with pytest.raises(ValueError, match="real is a list"):
        nb.Model(net, real="fc1")
    with pytest.raises(TypeError, match=r"Model takes a torch\.nn\.Module, got int"):
        nb.Model(3)
    odd = Sequence(lambda c: sj_neuron.QIFNode(step_mode="m"))
    with pytest.raises(ValueError, match=r"act1: it is not known .* give operations=\{'QIFNode': \.\.\}"):
        nb.Model(odd)
    result = run(nb.Model(odd, operations={"QIFNode": 3}), randn(4, 6, 5), OURS)
    assert result["NeuronOperations"]["Neuron Dense Ops"] == 3 * 6 * 9
    none = nn.Sequential(nn.Linear(5, 3), snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism="none"))
    with pytest.raises(ValueError, match="NeuroBench has no figure for reset 'none' of Leaky"):
        nb.Model(none, "steps")


def test_metrics_of_membranes_want_our_model(capsys):
    net = Sequence(lambda c: MSFNode(step_mode="m"))
    model = TorchModel(net)
    model.add_activation_module(MSFNode)
    data = TensorDataset(randn(2, 6, 5), torch.zeros(2))
    Benchmark(model, DataLoader(data, 2), [], [], [[], [nb.MembraneUpdates]]).run()
    assert (
        "MembraneUpdates watches a msf_pmsn_plugins.neurobench.Model, got TorchModel"
        in capsys.readouterr().out
    )


def test_the_page_prints_what_stands_in_it(capsys):
    page = (Path(__file__).parents[2] / "docs" / "neurobench.md").read_text()
    code, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL).groups()
    exec(compile(code, "neurobench.md", "exec"), {})
    assert capsys.readouterr().out == shown
    figures = dict(re.findall(r"\| (.+?) \| ([\d, +D]+) \|", page.split("| neuron | operations")[1]))
    assert figures["SpikingJelly's IF, LIF, PLIF"] == "3, 5, 5"


def test_a_neurobench_that_moved_is_named(monkeypatch):
    library = "msf_pmsn_plugins.neurobench.library"
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, library)
        patch.setattr("importlib.metadata.version", lambda name: "3.0.1")
        with pytest.raises(ImportError, match=r"NeuroBench 3\.0\.1 may count otherwise than 2\.3"):
            importlib.import_module(library)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, library)
        patch.setitem(sys.modules, "neurobench.hooks.neuron", None)
        with pytest.raises(ImportError, match=r"NeuroBench 2\.3\.\d+ cannot be imported .*neurobench\]'"):
            importlib.import_module(library)


def test_the_networks_of_the_recipes_run_in_the_harness(monkeypatch):
    """As the page says: frames to a network that takes time first and answers once."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    from recipes import neurons as factories
    from recipes.models import MHSANet, SequenceNet

    def time_first(net, batch):
        return net(batch.transpose(0, 1))

    torch.manual_seed(0)
    frames = torch.poisson(torch.full((4, 3, 2, 16, 16), 0.5))
    nets = {
        MHSANet(layers=[1, 1, 1], classes=5, stem="dvs", planes=8, neuron=factories.MSF()): frames,
        SequenceNet(5, [8, 8], 5, factories.PMSN()): randn(4, 6, 5),
    }
    for net, x in nets.items():
        result = run(nb.Model(net, time_first), x, OURS, batch=2)
        assert result["SynapticOperations"]["Effective_ACs"] > 0
        assert result["MembraneUpdates"] > 0
        assert nb.Model(net, time_first)(x).shape == (4, 5)
