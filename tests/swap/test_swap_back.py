"""The way back to stock neurons: what one of them cannot hold is named, and where nothing is, the counts are equal."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

import msf_pmsn_plugins.snntorch as snntorch_nodes
import msf_pmsn_plugins.spikingjelly as spikingjelly_nodes
from msf_pmsn_plugins import hosts, swap
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.spikingjelly import tools

X_SEQ = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0)) + 0.5
BY_CHANNEL = torch.tensor([0.5, 1.0, 1.5, 2.0, 0.75])
# What a neuron may be told, and what of it a stock node of either framework has otherwise ("" is nothing).
WORDS = {
    "the paper's": ({}, "", ""),
    "counts": ({"D": 3}, "counts 0..3 become 0 and 1", "counts 0..3 become 0 and 1"),
    "thresholds": ({"thresholds": (0.7,)}, "", ""),
    "soft": ({"reset_mode": "soft"}, "", "retake=False becomes True"),
    "none": ({"reset_mode": "none"}, "reset_mode='none' becomes 'hard'", ""),
    "v_reset": ({"v_reset": 0.3}, "leaks to 0 V, a stock node to v_reset=0.3", "v_reset=0.3 becomes 0"),
    "amount": (
        {"reset_mode": "soft", "reset_step": 0.3},
        "reset_step=0.3 becomes 1",
        "reset_step=0.3 becomes 1",
    ),
    "amounts": (
        {"reset_mode": "soft", "reset_step": BY_CHANNEL},
        "reset_step=tensor [5] becomes 1",
        "reset_step=tensor [5] becomes 1",
    ),
    "delay": ({"reset_mode": "soft", "reset_delay": True}, "reset_delay=True becomes False", ""),
    "retake": ({"reset_mode": "soft", "retake": True}, "retake=True becomes False", ""),
    "scale": ({"input_scale": 0.5}, "input_scale=0.5 becomes 0.75", "input_scale=0.5 becomes 1"),
    "learned threshold": ({"learn_threshold": True}, "its learned v_threshold becomes a number", ""),
    "thresholds by channel": ({"v_threshold": BY_CHANNEL}, "a v_threshold of several numbers", ""),
    "decays by channel": ({"decay": BY_CHANNEL / 4}, "a decay of several numbers", ""),
}


def counts(node):
    with torch.no_grad():
        return torch.stack([node(x) for x in X_SEQ])


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
@pytest.mark.parametrize("name", WORDS)
def test_what_a_stock_neuron_has_otherwise_is_named(name, host):
    given, *named = WORDS[name]
    held = MSF(**{"D": len(given.get("thresholds", "1")), **given})
    expected = held(X_SEQ)[0].detach()
    if host == "spikingjelly":
        node, said = spikingjelly_nodes.MSFNode.from_neuron(held), named[0]
    else:
        node, said = snntorch_nodes.MSF.from_neuron(held, init_hidden=True), named[1]
    net = nn.Sequential(node)
    assert torch.equal(counts(node), expected)
    if said:
        with pytest.raises(swap.SwapError) as refused:
            swap.lif(net)
        assert said in str(refused.value)
        assert net[0] is node
        if host == "spikingjelly":
            with pytest.raises(ValueError, match="no stock node computes"):
                tools.to_stock(net, exact=False)
    else:
        swap.lif(net)
        assert hosts.host_of_node(net[0]) is None
        assert torch.equal(counts(net[0]), expected)
        assert expected.any()


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_a_pruned_amount_is_named_as_it_is_now(host):
    held = MSF(D=1, reset_mode="soft", retake=host == "snntorch", reset_step=nn.Parameter(torch.ones(())))
    prune.identity(held, "reset_step")
    kind = spikingjelly_nodes.MSFNode if host == "spikingjelly" else snntorch_nodes.MSF
    net = nn.Sequential(kind.from_neuron(held))
    with torch.no_grad():
        held.reset_step_orig.fill_(0.25)
    with pytest.raises(swap.SwapError, match=r"reset_step=0\.25 becomes 1"):
        swap.lif(net)
