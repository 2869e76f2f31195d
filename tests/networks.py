"""Small networks, bare and of either host's nodes, with the same numbers."""

import importlib

import pytest
import torch
from torch import nn

from helpers import randn
from msf_pmsn_plugins import state as states
from msf_pmsn_plugins.neurons import MSF, PMSN
from tolerances import F32


class Bare(nn.Module):
    """MSF and PMSN without a framework."""

    def __init__(self):
        super().__init__()
        self.first, self.msf, self.second, self.pmsn = nn.Linear(3, 6), MSF(), nn.Linear(6, 4), PMSN(4)

    def forward(self, x_seq):
        return self.pmsn(self.second(self.msf(self.first(x_seq))[0]))[0]


def nodes_for(host):
    """Our nodes for a host, or a skip where that is not installed."""
    # A part of it: tests/ has folders of the names of both, which can be imported without them.
    pytest.importorskip(
        {"spikingjelly": "spikingjelly.activation_based", "snntorch": "snntorch.surrogate"}[host]
    )
    return importlib.import_module(f"msf_pmsn_plugins.{host}")


def network(host, step_by_step=False, seed=0):
    """Linear, MSF, Linear, PMSN bare or of a host's nodes, with the same numbers; sequences, or single steps."""
    torch.manual_seed(seed)
    if host == "bare":
        return Bare()
    module = nodes_for(host)
    layers = nn.Linear(3, 6), nn.Linear(6, 4)
    if host == "spikingjelly":
        mode = "s" if step_by_step else "m"
        nodes = module.MSFNode.published(step_mode=mode), module.PMSNNode(4, step_mode=mode)
    else:
        options = {"init_hidden": True, "sequence": not step_by_step}
        nodes = module.MSF.published(**options), module.PMSN(4, **options)
    return nn.Sequential(layers[0], nodes[0], layers[1], nodes[1])


def rest(net):
    states.write(net, {}) if not isinstance(net, Bare) else None


every_host = pytest.mark.parametrize("host", ["bare", "spikingjelly", "snntorch"])


both_hosts = pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])


X_SEQ = 3 * randn(20, 5, 3, dtype=F32)


def run(net, x_seq=X_SEQ):
    """Output from rest and the gradients of its sum."""
    rest(net)
    y = net(x_seq)
    gradients = torch.autograd.grad(y.float().sum(), list(net.parameters()))
    rest(net)
    return y, gradients
