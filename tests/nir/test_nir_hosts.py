"""NIR: the frameworks are those of ``hosts.HOSTS``, one that somebody adds too."""

import sys
import types

import pytest
import torch
from torch import nn

from msf_pmsn_plugins import neurons
from msf_pmsn_plugins.hosts import HOSTS, Host

pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")
from nir_nets import BATCH, STEPS, randn

from msf_pmsn_plugins.nir import export_to_nir, import_from_nir
from tolerances import assert_same


class Tiny(nn.Module):
    """A node of a framework that takes steps: it holds a neuron and carries its state."""

    def __init__(self, held):
        super().__init__()
        self.neuron, self.carried = held, None

    @classmethod
    def from_neuron(cls, held):
        return cls(held)

    def forward(self, x):
        spikes, self.carried, _ = self.neuron.single(x, self.carried or self.neuron.initial_state(x))
        return spikes


@pytest.fixture
def tiny(monkeypatch):
    host = types.ModuleType("tiny_host.host")
    host.NODES = {"msf": Tiny, "pmsn": neurons.PMSN}
    monkeypatch.setitem(sys.modules, "tiny_host.host", host)
    monkeypatch.setattr(Tiny, "__module__", "tiny_host.nodes")
    monkeypatch.setitem(HOSTS, "tiny", Host("tiny_host.host", r"tiny\.neurons"))


RESETS = {
    "hard": {},
    "delayed": {"reset_delay": True},
    "soft": {"reset_mode": "soft", "reset_step": 0.3},
    "soft-delayed": {"reset_mode": "soft", "reset_delay": True},
    "retaken": {"reset_mode": "soft", "retake": True},
    "none": {"reset_mode": "none"},
}


@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("reset", RESETS)
def test_a_host_is_one_entry_for_nir_too(tiny, reset, D):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), Tiny(neurons.MSF(D, 0.75, v_threshold=0.5, **RESETS[reset])))
    graph = export_to_nir(net, torch.zeros(BATCH, 6))
    copied = import_from_nir(graph, "tiny")
    assert any(isinstance(module, Tiny) for module in copied.modules())
    for x in randn(STEPS, BATCH, 6):
        spikes = net(x)
        assert_same(copied(x)[0], spikes)
    assert spikes.any()


@pytest.mark.parametrize("standard", [False, True])
def test_nodes_of_nir_itself_in_a_host_of_ones_own(tiny, standard):
    held = neurons.MSF(1, 0.75)
    graph = export_to_nir(held, torch.zeros(1, BATCH, 5), standard=standard)
    copied, x_seq = import_from_nir(graph, "tiny"), randn(STEPS, BATCH, 5)
    assert_same(torch.stack([copied(x)[0] for x in x_seq]), held(x_seq)[0])


@pytest.mark.parametrize(
    "make", [lambda: neurons.PMSN(5), lambda: neurons.ParallelIF()], ids=["pmsn", "parallel-if"]
)
def test_what_a_host_has_no_node_for_is_named(tiny, make):
    graph = export_to_nir(make(), torch.zeros(1, BATCH, 5))
    with pytest.raises(ValueError, match=r"tiny has no node for \w+: NODES.*from_neuron"):
        import_from_nir(graph, "tiny")


def test_a_host_that_left_is_unknown(tiny, monkeypatch):
    net = nn.Sequential(Tiny(neurons.MSF()))
    graph = export_to_nir(net, torch.zeros(BATCH, 5))
    monkeypatch.delitem(HOSTS, "tiny")
    with pytest.raises(ValueError, match="unknown host 'tiny'; known: spikingjelly, snntorch"):
        import_from_nir(graph, "tiny")
    with pytest.raises(ValueError, match="Tiny has no node"):
        export_to_nir(net, torch.zeros(BATCH, 5))
