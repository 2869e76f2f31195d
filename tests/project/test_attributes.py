"""A node shows what its neuron will do next: constructor words are attributes, set at any time, in both frameworks."""

import inspect

import pytest
import torch
from torch import nn

from helpers import randn
from msf_pmsn_plugins import energy, neurons
from tolerances import F32, assert_same

X_SEQ = 2 * randn(12, 4, 3, dtype=F32)

# By class: other values for its words, in an order that each may be set in.
CHANGES = {
    ("spikingjelly", "MSFNode"): {
        "D": 3,
        "v_threshold": 0.75,
        "threshold_step": 0.5,
        "tau": 4.0,
        "v_reset": None,
        "detach_reset": True,
        "decay_input": False,
        "surrogate_function": "gaussian",
        "backend": "torch",
    },
    ("spikingjelly", "PMSNNode"): {"v_threshold": 0.3, "surrogate_function": "gaussian", "backend": "torch"},
    ("spikingjelly", "ParallelIFNode"): {"v_threshold": 0.3, "burst": True, "backend": "torch"},
    ("snntorch", "MSF"): {
        "D": 3,
        "threshold": 0.75,
        "threshold_step": 0.5,
        "beta": 0.75,
        "reset_mechanism": "zero",
        "spike_grad": "gaussian",
        "backend": "torch",
    },
    ("snntorch", "PMSN"): {"threshold": 0.3, "spike_grad": "gaussian", "backend": "torch"},
    ("snntorch", "ParallelIF"): {"threshold": 0.3, "burst": True, "backend": "torch"},
}
both_hosts_nodes = pytest.mark.parametrize(("host", "name"), CHANGES, ids="-".join)

# Arguments that make something, or that the hosts' own neurons do not keep either.
NOT_KEPT = {"self", "w", "options", "learn_beta", "learn_threshold", "learn_graded_spikes_factor"}


def node_class(host, name):
    return getattr(pytest.importorskip(f"msf_pmsn_plugins.{host}"), name)


def make(host, name, **words):
    if name.startswith("PMSN"):
        words["channels"] = 3
    mode = {"step_mode": "m"} if host == "spikingjelly" else {"sequence": True, "init_hidden": True}
    torch.manual_seed(0)
    return node_class(host, name)(**words, **mode)


@both_hosts_nodes
def test_every_word_of_the_constructor_can_be_read(host, name):
    node = make(host, name)
    for word in set(inspect.signature(type(node).__init__).parameters) - NOT_KEPT:
        getattr(node, word)


@both_hosts_nodes
def test_what_is_assigned_is_what_is_shown_and_done(host, name):
    """Also between two calls; equal to a node that was built so, in its repr, its spikes and its operations."""
    changes = CHANGES[host, name]
    built, node = make(host, name, **changes), make(host, name)
    with torch.no_grad():
        usual = node(X_SEQ)
        node.reset() if host == "spikingjelly" else node.reset_mem()
        for word, value in changes.items():
            setattr(node, word, value)
        assert repr(node) == repr(built)
        counted = []
        for one in (built, node):
            net = nn.Sequential(one)
            with energy.counting(net, samples=4) as counts:
                spikes = net(X_SEQ)
            counted.append((spikes, str(counts.energy())))
    assert_same(counted[0][0], counted[1][0])
    assert counted[0][1] == counted[1][1]
    assert not torch.equal(usual, counted[0][0])


@pytest.mark.parametrize(("host", "name"), [("spikingjelly", "PMSNNode"), ("snntorch", "PMSN")])
def test_the_variants_of_pmsn_are_attributes_too(host, name):
    changes = {"reset_mode": "serial", "burst": True, "coeff": 0.5, "dt_scale": 2.0}
    torch.manual_seed(0)
    held, node = neurons.PMSN(3, **changes), make(host, name)
    for word, value in changes.items():
        setattr(node, word, value)
        assert getattr(node, word) == value
    held.load_state_dict(node.neuron.state_dict())
    assert_same(node(X_SEQ), held(X_SEQ)[0])
    for word in ("compartments", "init", "tied"):  # chosen at construction
        with pytest.raises(AttributeError):
            setattr(node, word, getattr(node, word))


def test_a_node_shows_what_the_hosts_shows():
    node = make("spikingjelly", "MSFNode", D=1)
    host = pytest.importorskip("spikingjelly.activation_based.neuron").LIFNode(step_mode="m")
    shown = repr(node)
    for word in ("v_threshold", "v_reset", "detach_reset", "tau"):
        assert f"{word}={getattr(host, word)}" in host.extra_repr()
        assert f"{word}={getattr(host, word)}" in shown
    assert "step_mode='m'" in shown


def test_to_stock_takes_the_present_settings():
    node = make("spikingjelly", "MSFNode", D=1)
    node.v_threshold, node.tau, node.v_reset, node.detach_reset = 0.75, 4.0, None, True
    from msf_pmsn_plugins.spikingjelly import tools

    stock = tools.to_stock(nn.Sequential(node))[0]
    assert type(stock).__name__ == "LIFNode"
    for word in ("v_threshold", "tau", "v_reset", "detach_reset"):
        assert getattr(stock, word) == getattr(node, word)
    assert_same(stock(X_SEQ), node(X_SEQ))
