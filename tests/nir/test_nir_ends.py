"""One input, one output, and all else on a way between them: of other graphs nirtorch never comes to an end."""

import copy

import pytest
import torch
from nir_nets import BATCH, HIDDEN, STEPS, lif_net, nir, randn, rest
from torch import nn

from msf_pmsn_plugins.nir import export_to_nir, import_from_nir
from msf_pmsn_plugins.snntorch import MSF
from tolerances import assert_same


class Unused(nn.Module):
    """What it computes beside its output nobody uses."""

    def __init__(self, what):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n, self.c = nn.Linear(6, 4), MSF.published(0.5, **HIDDEN), nn.Linear(4, 2)
        self.b, self.m = nn.Linear(4, 3), MSF.published(0.5, **HIDDEN, output=True)
        self.what = what

    def forward(self, x):
        s = self.n(self.a(x))
        if self.what == "layer":
            self.b(s)
        elif self.what == "neuron":
            self.m(self.b(s))
        elif self.what == "sum":
            self.b(s) + self.b(s)
        elif self.what == "membrane":
            _spk, _mem = self.m(s)
        return self.c(s)


@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
@pytest.mark.parametrize("what", ["layer", "neuron", "sum", "membrane"])
def test_what_nobody_uses_is_not_exported(what, host):
    net = Unused(what)
    graph = export_to_nir(net, torch.zeros(BATCH, 6))
    assert sorted(graph.nodes) == ["a", "c", "n", "output", "x"]
    copied = import_from_nir(graph, host)
    rest(net)
    for x in randn(STEPS, BATCH, 6):
        assert_same(copied(x)[0], net(x))


def ended(*edges, more=()):
    """A good graph with one node more, joined to it by ``edges``."""
    graph = export_to_nir(lif_net(), torch.zeros(BATCH, 6))
    graph = copy.deepcopy(graph)
    graph.nodes["more"] = copy.deepcopy(graph.nodes["_0"])
    for name in more:
        graph.nodes[name] = copy.deepcopy(graph.nodes["output" if name.startswith("output") else "input_1"])
    graph.edges += list(edges)
    return graph


@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ended(("input_1", "more")), r"no way leads to the output from \['more'\]"),
        (lambda: ended(("more", "_1")), r"no way from the input leads to \['more'\]"),
        (lambda: ended(), r"no way from the input leads to \['more'\]"),
        (
            lambda: ended(("input_1", "more"), ("more", "output_2"), more=["output_2"]),
            r"2 nodes Output, \['output', 'output_2'\]: a network here has one",
        ),
        (
            lambda: ended(("input_2", "more"), ("more", "_1"), more=["input_2"]),
            r"2 nodes Input, \['input_1', 'input_2'\]",
        ),
    ],
    ids=["no output", "no input", "alone", "two outputs", "two inputs"],
)
def test_other_ends_are_refused(make, words, host):
    with pytest.raises(ValueError, match=words):
        import_from_nir(make(), host)


def test_a_graph_without_an_output_is_refused():
    graph = ended()
    del graph.nodes["output"], graph.nodes["more"]
    graph.edges = [pair for pair in graph.edges if "output" not in pair]
    assert not any(isinstance(node, nir.Output) for node in graph.nodes.values())
    with pytest.raises(ValueError, match=r"0 nodes Output, \[\]"):
        import_from_nir(graph, "snntorch")
